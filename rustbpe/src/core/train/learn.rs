//! Counts of pieces into tokens.

use super::counts::Counts;
use super::neighbours::Neighbours;
use super::pairs::{Occurrences, PairQueue};
use super::sequence::{Pair, Sequence};
use crate::core::error::{Error, Result};
use crate::core::parallel::Check;

/// Places that are merged before `check` is called again.
const CHECKED: usize = 1 << 18;

/// The tokens in rank order: the 256 bytes, then one for each merge of the pair with the highest count (of
/// several, the smallest pair of ids). Overlapping occurrences count (aaa holds aa twice) and are merged from
/// the left. Fewer than `vocab_size` where no pair is left to merge.
///
/// Only pairs above a floor are followed; a pair never gains occurrences after the merge that made it, so that one below
/// the floor need not be known before all above it are merged. Then the floor falls, and all pairs are counted anew.
///
/// Errors: `Invalid` where `vocab_size` is below 256.
pub fn learn(counts: Counts, vocab_size: usize, check: &mut Check) -> Result<Vec<Vec<u8>>> {
    if vocab_size < 256 {
        return Err(Error::Invalid(format!("vocab_size is {vocab_size}, but the 256 bytes alone are 256 tokens")));
    }
    let bytes = (0..=255).map(|byte| vec![byte]).collect();
    if vocab_size == 256 {
        return Ok(bytes);
    }
    let mut learner = Learner::new(bytes, counts, vocab_size)?;
    let mut touched = 0;
    while learner.tokens.len() < vocab_size {
        let Some((pair, places)) = learner.queue.pop() else {
            if learner.queue.floor() == 1 {
                break;
            }
            check()?;
            learner.lower_floor();
            continue;
        };
        touched += places.len() + 1;
        if touched > CHECKED {
            touched = 0;
            check()?;
        }
        learner.merge(pair, &places);
    }
    Ok(learner.tokens)
}

/// The tokens so far, the sequence in which they are merged, and its frequent pairs.
struct Learner {
    tokens: Vec<Vec<u8>>,
    sequence: Sequence,
    queue: PairQueue,
    /// Of the merge at hand: the tokens before and after its places, each place with those around it, and the pairs that it makes.
    before: Neighbours,
    after: Neighbours,
    merged: Vec<(u32, Pair)>,
    fresh: Vec<(Pair, Occurrences)>,
}

impl Learner {
    fn new(bytes: Vec<Vec<u8>>, counts: Counts, vocab_size: usize) -> Result<Self> {
        let sequence = Sequence::new(counts)?;
        // No more tokens than bytes and merges of at least two slots each.
        let most = vocab_size.min(256 + sequence.len());
        let (before, after) = (Neighbours::new(most), Neighbours::new(most));
        let queue = PairQueue::new(&sequence);
        Ok(Learner { tokens: bytes, sequence, queue, before, after, merged: Vec::new(), fresh: Vec::new() })
    }

    fn lower_floor(&mut self) {
        self.sequence.compact();
        self.queue = PairQueue::new(&self.sequence);
    }

    /// Makes a token of a pair that is at `places`.
    fn merge(&mut self, pair: Pair, places: &[u32]) {
        let id = self.tokens.len() as u32;
        self.tokens.push([&*self.tokens[pair.0 as usize], &*self.tokens[pair.1 as usize]].concat());
        self.sequence.merge(pair, id, places, |place, around, count| {
            self.before.add(around.0, count);
            self.after.add(around.1, count);
            self.merged.push((place, around));
        });
        self.count_pairs(pair, id);
        self.place_pairs();
        for (pair, found) in self.fresh.drain(..) {
            self.queue.push(pair, found);
        }
        self.merged.clear();
        self.before.clear();
        self.after.clear();
    }

    /// Takes the occurrences of the pairs that the merge took apart, and counts those of the pairs that it made.
    fn count_pairs(&mut self, (left, right): Pair, id: u32) {
        let (floor, fresh, queue) = (self.queue.floor(), &mut self.fresh, &mut self.queue);
        let mut gain = |pair: Pair, count: i64| {
            (count >= floor).then(|| {
                fresh.push((pair, Occurrences { count, at: Vec::new() }));
                fresh.len() - 1
            })
        };
        // In a run (abab) the token before may be one of this merge: then its pair with `left` was created and removed again.
        let own = self.before.count(id);
        self.before.visit(|token, count| {
            queue.lose((token, left), count);
            gain((token, id), count)
        });
        self.after.visit(|token, count| {
            queue.lose((right, token), count);
            gain((id, token), count - if token == left { own } else { 0 })
        });
    }

    /// Writes down where the pairs are that the merge made.
    fn place_pairs(&mut self) {
        if self.fresh.is_empty() {
            return;
        }
        for &(place, around) in &self.merged {
            if let Some(pair) = self.before.pair(around.0) {
                self.fresh[pair].1.at.push(place - self.sequence.width(around.0));
            }
            if let Some(pair) = self.after.pair(around.1) {
                self.fresh[pair].1.at.push(place);
            }
        }
    }
}
