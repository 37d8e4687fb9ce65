//! The same packing over lengths alone.

use super::best_fit::{Waiting, check_buffer};
use crate::core::error::{Error, Result};

/// Where one part of an item goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Placement {
    pub row: usize,
    pub item: usize,
    /// The part is item[start..start + length].
    pub start: usize,
    pub length: usize,
}

/// The same best fit over lengths alone, in the order of placing. A length counts all of an item's ids; no
/// BOS is added to it or to a remainder. With `crop` every row but the last is full; without it nothing is
/// cropped, and a row into which none of the waiting items fits stays short.
///
/// Errors: `Invalid` where `row` or `buffer` is 0, a length is below 1, or, without `crop`, above `row`.
pub fn plan_rows(lengths: &[i64], row: usize, buffer: usize, crop: bool) -> Result<Vec<Placement>> {
    if row == 0 {
        return Err(Error::Invalid("row is 0; it must be at least 1".into()));
    }
    check_buffer(buffer)?;
    let mut waiting = Waiting::new();
    let mut plan = Vec::with_capacity(lengths.len());
    let (mut index, mut used) = (0, 0);
    let mut arrivals = lengths.iter().enumerate();
    loop {
        while waiting.len() < buffer {
            let Some((item, &length)) = arrivals.next() else { break };
            match usize::try_from(length) {
                Ok(length) if length > 0 && (crop || length <= row) => waiting.add(length, (item, 0)),
                Ok(length) if length > 0 => {
                    return Err(Error::Invalid(format!("item {item} has length {length}, longer than a row of {row}: truncate it first")));
                }
                _ => return Err(Error::Invalid(format!("item {item} has length {length}; it must be at least 1"))),
            }
        }
        if let Some((length, (item, start))) = waiting.take_longest(row - used) {
            plan.push(Placement { row: index, item, start, length });
            used += length;
        } else if waiting.len() == 0 {
            return Ok(plan);
        } else if !crop {
            used = row;
        } else if let Some((length, (item, start))) = waiting.take_shortest() {
            let space = row - used;
            plan.push(Placement { row: index, item, start, length: space });
            waiting.add(length - space, (item, start + space));
            used = row;
        }
        if used == row {
            (index, used) = (index + 1, 0);
        }
    }
}
