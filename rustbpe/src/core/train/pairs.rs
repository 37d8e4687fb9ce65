//! The frequent pairs of neighbouring tokens, and which of them merges next.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use rustc_hash::FxHashMap;

use super::sequence::{Pair, Sequence};

/// Count of a pair of neighbouring tokens, and its places when they were last recorded, ascending. Places that a later
/// merge has taken stay in the list and are recognised when they are read.
#[derive(Default)]
pub struct Occurrences {
    pub count: i64,
    pub at: Vec<u32>,
}

/// Ratio of the highest count to the least count of a tracked pair; small in tests, so that the floor is lowered often.
const FLOOR: i64 = if cfg!(test) { 2 } else { 64 };

/// The pairs above a floor, the most frequent first; of several, the smallest pair of ids.
pub struct PairQueue {
    floor: i64,
    pairs: FxHashMap<Pair, Occurrences>,
    /// Counts here may be too high (a pair's count only falls once the merge that made it is done): an entry found so is put back
    /// with the true count.
    heap: BinaryHeap<(i64, Reverse<Pair>)>,
}

impl PairQueue {
    /// The pairs of a compact sequence that occur at least `floor` times: a `FLOOR`th of the highest count.
    pub fn new(sequence: &Sequence) -> Self {
        let mut counts = pair_counts(sequence);
        let floor = (counts.values().copied().max().unwrap_or(0) / FLOOR).max(1);
        counts.retain(|_, count| *count >= floor);
        let mut pairs: FxHashMap<Pair, Occurrences> =
            counts.into_iter().map(|(pair, count)| (pair, Occurrences { count, at: Vec::new() })).collect();
        sequence.pairs(|pair, at, _| {
            if let Some(found) = pairs.get_mut(&pair) {
                found.at.push(at);
            }
        });
        let heap = pairs.iter().map(|(&pair, found)| (found.count, Reverse(pair))).collect();
        PairQueue { floor, pairs, heap }
    }

    /// The least count of a tracked pair; 1 if all are tracked.
    pub fn floor(&self) -> i64 {
        self.floor
    }

    /// Takes the next pair with its places; None if none above the floor is left.
    pub fn pop(&mut self) -> Option<(Pair, Vec<u32>)> {
        loop {
            let (count, Reverse(pair)) = self.heap.pop()?;
            let Some(found) = self.pairs.get(&pair) else { continue };
            if found.count == count {
                return self.pairs.remove(&pair).map(|found| (pair, found.at));
            }
            if found.count >= self.floor {
                self.heap.push((found.count, Reverse(pair)));
            } else {
                self.pairs.remove(&pair);
            }
        }
    }

    /// Adds a new pair.
    pub fn push(&mut self, pair: Pair, occurrences: Occurrences) {
        self.heap.push((occurrences.count, Reverse(pair)));
        self.pairs.insert(pair, occurrences);
    }

    /// Subtracts `count` from a pair's count.
    #[inline]
    pub fn lose(&mut self, pair: Pair, count: i64) {
        if let Some(found) = self.pairs.get_mut(&pair) {
            found.count -= count;
        }
    }
}

/// Counts of pairs.
fn pair_counts(sequence: &Sequence) -> FxHashMap<Pair, i64> {
    let mut counts: FxHashMap<Pair, i64> = FxHashMap::default();
    if sequence.is_bytes() {
        let mut table = vec![0; 1 << 16];
        sequence.pairs(|pair, _, count| table[(pair.0 << 8 | pair.1) as usize] += count);
        counts.extend((0..).zip(table).map(|(pair, count)| ((pair >> 8, pair & 255), count)));
    } else {
        sequence.pairs(|pair, _, count| *counts.entry(pair).or_insert(0) += count);
    }
    counts
}
