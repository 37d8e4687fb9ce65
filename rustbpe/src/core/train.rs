//! Learning the merges of byte-level BPE.
//!
//! First the texts become unique pieces with counts (`Counter`); then the most frequent pair of neighbouring
//! tokens becomes a token, again and again (`learn`). Pair counts are kept up to date where a merge changes
//! them, so the cost of a merge is the number of places it touches, however long a piece is.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::collections::hash_map::Entry;

use rustc_hash::FxHashMap;

use super::split::Splitter;
use super::{Check, Error, Result, group_by_bytes, parallel, thread_count};

/// Texts per job of a thread, in bytes.
const JOB_BYTES: usize = 1 << 16;

type Counts = FxHashMap<Box<str>, i64>;

/// Counts the pieces of a stream of texts, on several threads, each with a map of its own.
pub struct Counter {
    splitter: Splitter,
    maps: Vec<Counts>,
}

impl Counter {
    /// `threads` 0 is every core. Errors: `Invalid` for a bad pattern.
    pub fn new(pattern: &str, threads: usize) -> Result<Self> {
        let maps = (0..thread_count(threads)).map(|_| Counts::default()).collect();
        Ok(Counter { splitter: Splitter::new(pattern)?, maps })
    }

    /// Counts the pieces of one batch of texts.
    pub fn add(&mut self, texts: &[&str], check: &mut Check) -> Result<()> {
        let jobs = group_by_bytes(texts, JOB_BYTES);
        let splitter = &self.splitter;
        parallel(&mut self.maps, jobs.len(), check, |counts, job| {
            for text in &texts[jobs[job].clone()] {
                splitter.split(text, |piece| match counts.get_mut(piece) {
                    Some(count) => *count += 1,
                    None => drop(counts.insert(piece.into(), 1)),
                });
            }
            Ok(())
        })?;
        Ok(())
    }

    /// Each unique piece and how often it was seen, in no particular order.
    pub fn finish(self) -> Vec<(Box<str>, i64)> {
        let mut maps = self.maps.into_iter();
        let mut total = maps.next().unwrap_or_default();
        for (piece, count) in maps.flatten() {
            *total.entry(piece).or_insert(0) += count;
        }
        total.into_iter().collect()
    }
}

type Pair = (u32, u32);

/// How often a pair of neighbouring tokens occurs, and where it was when it was last written down: places
/// that a later merge has taken are left in the list and recognised when their turn comes.
#[derive(Default)]
struct Occurrences {
    count: i64,
    at: Vec<u32>,
}

/// No token: between pieces, and inside a token.
const NONE: u32 = u32::MAX;

/// All unique pieces behind each other, NONE between them. A token of n bytes covers n slots and writes its
/// id into the first and the last of them, so that neighbours are found from either side.
struct Sequence {
    slots: Vec<u32>,
    /// (first slot, count) of each group of pieces that share a count, ascending in the slot.
    groups: Vec<(u32, i64)>,
}

impl Sequence {
    fn new(mut pieces: Vec<(Box<str>, i64)>) -> Result<Self> {
        pieces.retain(|(piece, _)| piece.len() > 1);
        // Equal counts behind each other, so that a place's count is found by a short search.
        pieces.sort_unstable_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
        let length = 1 + pieces.iter().map(|(piece, _)| piece.len() + 1).sum::<usize>();
        if length >= NONE as usize {
            return Err(Error::Invalid(format!(
                "the texts hold {length} bytes of different pieces; at most {NONE} can be trained on: use fewer texts"
            )));
        }
        let mut slots = Vec::with_capacity(length);
        let mut groups: Vec<(u32, i64)> = Vec::new();
        slots.push(NONE);
        for (piece, count) in pieces {
            if groups.last().is_none_or(|group| group.1 != count) {
                groups.push((slots.len() as u32, count));
            }
            slots.extend(piece.bytes().map(u32::from));
            slots.push(NONE);
        }
        Ok(Sequence { slots, groups })
    }

    /// How often the piece around slot `at` was seen.
    fn count(&self, at: u32) -> i64 {
        self.groups[self.groups.partition_point(|group| group.0 <= at) - 1].1
    }

    fn pairs(&self) -> FxHashMap<Pair, Occurrences> {
        let mut pairs: FxHashMap<Pair, Occurrences> = FxHashMap::default();
        for at in 0..self.slots.len() - 1 {
            let pair = (self.slots[at], self.slots[at + 1]);
            if pair.0 != NONE && pair.1 != NONE {
                let occurrences = pairs.entry(pair).or_default();
                occurrences.count += self.count(at as u32);
                occurrences.at.push(at as u32);
            }
        }
        pairs
    }
}

/// The tokens in rank order: the 256 bytes, then one for each merge of the pair with the highest count (of
/// several, the smallest pair of ids). Overlapping occurrences count (aaa holds aa twice) and are merged from
/// the left. Fewer than `vocab_size` where no pair is left to merge.
///
/// Errors: `Invalid` where `vocab_size` is below 256.
pub fn learn(pieces: Vec<(Box<str>, i64)>, vocab_size: usize, check: &mut Check) -> Result<Vec<Vec<u8>>> {
    if vocab_size < 256 {
        return Err(Error::Invalid(format!("vocab_size is {vocab_size}, but the 256 bytes alone are 256 tokens")));
    }
    let mut tokens: Vec<Vec<u8>> = (0..=255).map(|byte| vec![byte]).collect();
    if vocab_size == 256 {
        return Ok(tokens);
    }
    let mut sequence = Sequence::new(pieces)?;
    let mut pairs = sequence.pairs();
    // The heap's counts may be too high (a pair's count only falls once the merge that made it is done): an
    // entry found so is put back with the true count.
    let mut heap: BinaryHeap<(i64, Reverse<Pair>)> = pairs.iter().map(|(&pair, found)| (found.count, Reverse(pair))).collect();
    let mut fresh = Vec::new();
    let mut touched = 0;
    while tokens.len() < vocab_size {
        let Some((count, Reverse(pair))) = heap.pop() else { break };
        let Entry::Occupied(entry) = pairs.entry(pair) else { continue };
        let now = entry.get().count;
        if now != count {
            if now > 0 {
                heap.push((now, Reverse(pair)));
            } else {
                entry.remove();
            }
            continue;
        }
        let places = entry.remove().at;
        touched += places.len() + 1;
        if touched > 1 << 18 {
            touched = 0;
            check()?;
        }
        let (left, right) = pair;
        let token = [&*tokens[left as usize], &*tokens[right as usize]].concat();
        let (left_len, len) = (tokens[left as usize].len(), token.len());
        let id = tokens.len() as u32;
        tokens.push(token);
        for place in places {
            let start = place as usize;
            let middle = start + left_len;
            if sequence.slots[start] != left || sequence.slots[middle] != right {
                continue; // an earlier merge took one of the two
            }
            let end = start + len;
            let (before, after) = (sequence.slots[start - 1], sequence.slots[end]);
            let count = sequence.count(place);
            let slots = &mut sequence.slots;
            (slots[middle - 1], slots[middle]) = (NONE, NONE);
            (slots[start], slots[end - 1]) = (id, id);

            let mut change = |old: Pair, new: Pair, at: usize| {
                if let Some(found) = pairs.get_mut(&old) {
                    found.count -= count;
                }
                let found = pairs.entry(new).or_insert_with(|| {
                    fresh.push(new);
                    Occurrences::default()
                });
                found.count += count;
                found.at.push(at as u32);
            };
            if before != NONE {
                change((before, left), (before, id), start - tokens[before as usize].len());
            }
            if after != NONE {
                change((right, after), (id, after), start);
            }
        }
        // A run of equal tokens makes pairs that it takes back at once.
        heap.extend(fresh.drain(..).map(|pair| (pairs[&pair].count, Reverse(pair))).filter(|entry| entry.0 > 0));
    }
    Ok(tokens)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::split::GPT4_PATTERN;
    use proptest::prelude::*;

    fn train(texts: &[&str], vocab_size: usize, threads: usize) -> Vec<Vec<u8>> {
        let mut counter = Counter::new(GPT4_PATTERN, threads).unwrap();
        for batch in texts.chunks(3) {
            counter.add(batch, &mut || Ok(())).unwrap();
        }
        learn(counter.finish(), vocab_size, &mut || Ok(())).unwrap()
    }

    /// Counts every pair of every piece anew before each merge.
    fn slow(texts: &[&str], vocab_size: usize) -> Vec<Vec<u8>> {
        let mut tokens: Vec<Vec<u8>> = (0..=255).map(|byte| vec![byte]).collect();
        let mut pieces: Vec<Vec<u32>> = Vec::new();
        for text in texts {
            let splitter = Splitter::new(GPT4_PATTERN).unwrap();
            splitter.split(text, |piece| pieces.push(piece.bytes().map(u32::from).collect()));
        }
        while tokens.len() < vocab_size {
            let mut counts = std::collections::BTreeMap::new();
            for pair in pieces.iter().flat_map(|piece| piece.windows(2)) {
                *counts.entry((pair[0], pair[1])).or_insert(0) += 1;
            }
            let Some((&(a, b), _)) = counts.iter().max_by_key(|&(&pair, &count)| (count, Reverse(pair))) else { break };
            for piece in &mut pieces {
                let mut merged = Vec::new();
                let mut rest = &piece[..];
                while let [first, tail @ ..] = rest {
                    if *first == a && tail.first() == Some(&b) {
                        merged.push(tokens.len() as u32);
                        rest = &tail[1..];
                    } else {
                        merged.push(*first);
                        rest = tail;
                    }
                }
                *piece = merged;
            }
            tokens.push([&*tokens[a as usize], &*tokens[b as usize]].concat());
        }
        tokens
    }

    #[test]
    fn the_most_frequent_pair_first_then_the_smallest_ids() {
        let tokens = train(&["abab cd cd ab"], 260, 1);
        assert_eq!(tokens[256], b"ab"); // 3 times
        assert_eq!(tokens[257], b" c"); // 2 times, as "cd" and " cd": the smallest ids
        assert_eq!(tokens[258], b" cd");
    }

    #[test]
    fn stops_when_nothing_is_left() {
        assert_eq!(train(&["ab"], 1000, 1).len(), 257);
        assert_eq!(train(&[], 1000, 2).len(), 256);
        assert_eq!(train(&["ab ab"], 256, 2).len(), 256);
        assert!(learn(vec![], 255, &mut || Ok(())).is_err());
    }

    #[test]
    fn long_pieces_are_not_quadratic() {
        let mut state = 1u32;
        let genome: String = (0..300_000)
            .map(|_| {
                state = state.wrapping_mul(1664525).wrapping_add(1013904223);
                "acgt".as_bytes()[(state >> 30) as usize] as char
            })
            .collect();
        assert_eq!(train(&[&genome], 1000, 1).len(), 1000);
        let spaces = train(&[&" ".repeat(1 << 18)], 1000, 1);
        assert_eq!(spaces.last().unwrap().len(), 1 << 18);
    }

    #[test]
    fn the_check_can_stop_it() {
        let pieces = vec![("ab".repeat(1 << 19).into(), 1)];
        assert!(matches!(learn(pieces, 300, &mut || Err(Error::Stopped)), Err(Error::Stopped)));
    }

    proptest! {
        #[test]
        fn equals_the_slow_reference(texts in prop::collection::vec("[abc ]{0,30}|[aé字 \\n12]{0,20}", 0..8), extra in 0usize..40) {
            let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
            let tokens = train(&texts, 256 + extra, 1);
            prop_assert_eq!(&tokens, &slow(&texts, 256 + extra));
            prop_assert_eq!(&tokens, &train(&texts, 256 + extra, 3));
            let unique: std::collections::HashSet<_> = tokens.iter().collect();
            prop_assert_eq!(unique.len(), tokens.len());
        }
    }
}
