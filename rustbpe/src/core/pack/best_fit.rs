//! Best fit: which of the waiting items goes into the rest of a row.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use crate::core::error::{Error, Result};

/// Items that wait for a row, found by length; of equal lengths the one that came first.
pub struct Waiting<T> {
    by_length: BTreeMap<(usize, Reverse<u64>), T>,
    arrivals: u64,
}

impl<T> Waiting<T> {
    pub fn new() -> Self {
        Waiting { by_length: BTreeMap::new(), arrivals: 0 }
    }

    pub fn len(&self) -> usize {
        self.by_length.len()
    }

    pub fn add(&mut self, length: usize, item: T) {
        self.by_length.insert((length, Reverse(self.arrivals)), item);
        self.arrivals += 1;
    }

    /// Takes the longest of at most `space`, with its length.
    pub fn take_longest(&mut self, space: usize) -> Option<(usize, T)> {
        let key = *self.by_length.range(..=(space, Reverse(0))).next_back()?.0;
        self.by_length.remove(&key).map(|item| (key.0, item))
    }

    /// Takes the shortest, with its length.
    pub fn take_shortest(&mut self) -> Option<(usize, T)> {
        let shortest = self.by_length.first_key_value()?.0.0;
        self.take_longest(shortest)
    }
}

/// Whether so many items may wait: at least one.
pub fn check_buffer(buffer: usize) -> Result<()> {
    if buffer == 0 { Err(Error::Invalid("buffer is 0; it must be at least 1".into())) } else { Ok(()) }
}
