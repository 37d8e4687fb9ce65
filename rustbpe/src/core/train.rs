//! Learning the merges of byte-level BPE.
//!
//! First the texts become unique pieces with counts (`Counter`); then the most frequent pair of neighbouring
//! tokens becomes a token, again and again (`learn`). Pair counts are kept up to date where a merge changes
//! them, so the cost of a merge is the number of places it touches, however long a piece is.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use rustc_hash::FxHashMap;

use super::pieces::Counts;
use super::split::Splitter;
use super::text::{Text, no_utf8};
use super::{Check, Error, Result, group_by_length, parallel, thread_count};

/// Text per job of a thread, in bytes or characters.
const JOB_LENGTH: usize = 1 << 18;

/// Counts the pieces of a stream of texts, on several threads, each with a table of its own.
pub struct Counter {
    splitter: Splitter,
    tables: Vec<Counts>,
}

impl Counter {
    /// `threads` 0 is every core. Errors: `Invalid` for a bad pattern.
    pub fn new(pattern: &str, threads: usize) -> Result<Self> {
        let tables = (0..thread_count(threads)).map(|_| Counts::default()).collect();
        Ok(Counter { splitter: Splitter::new(pattern)?, tables })
    }

    /// Counts the pieces of one batch of texts. Errors: `Surrogate`.
    pub fn add(&mut self, texts: &[Text], check: &mut Check) -> Result<()> {
        let parts = self.splitter.parts(texts, JOB_LENGTH);
        let jobs = group_by_length(&parts, JOB_LENGTH);
        let splitter = &self.splitter;
        parallel(&mut self.tables, jobs.len(), check, |counts, job| {
            let mut room = Vec::new();
            for (text, _) in &parts[jobs[job].clone()] {
                counts.add(splitter, text.utf8(&mut room).ok_or_else(|| no_utf8(texts))?);
            }
            Ok(())
        })?;
        Ok(())
    }

    /// Each unique piece and how often it was seen.
    pub fn finish(self) -> Counts {
        let mut tables = self.tables.into_iter();
        let mut total = tables.next().unwrap_or_default();
        tables.for_each(|table| total.merge(table));
        total
    }
}

type Pair = (u32, u32);

/// How often a pair of neighbouring tokens occurs, and where it was when it was last written down, ascending: places
/// that a later merge has taken are left in the list and recognised when their turn comes.
#[derive(Default)]
struct Occurrences {
    count: i64,
    at: Vec<u32>,
}

/// No token: between pieces, and inside a token.
const NONE: u32 = u32::MAX;

/// All unique pieces behind each other, NONE between them. A token covers as many slots as it had parts when the slots
/// were last compacted, and has its id in the first and the last of them, so that neighbours are found from either side.
struct Sequence {
    slots: Vec<u32>,
    /// (first slot, count) of each group of pieces that share a count, ascending in the slot.
    groups: Vec<(u32, i64)>,
    /// Slots of each token.
    widths: Vec<u32>,
}

impl Sequence {
    fn new(counts: Counts) -> Result<Self> {
        let (bytes, pieces) = counts.size();
        let length = 1 + bytes + pieces;
        if length >= NONE as usize {
            return Err(Error::Invalid(format!(
                "the texts hold {length} bytes of different pieces; at most {NONE} can be trained on: use fewer texts"
            )));
        }
        let mut slots = Vec::with_capacity(length);
        let mut groups: Vec<(u32, i64)> = Vec::new();
        slots.push(NONE);
        counts.visit(|piece, count| {
            if piece.len() > 1 {
                if groups.last().is_none_or(|group| group.1 != count) {
                    groups.push((slots.len() as u32, count));
                }
                slots.extend(piece.iter().copied().map(u32::from));
                slots.push(NONE);
            }
        });
        Ok(Sequence { slots, groups, widths: vec![1; 256] })
    }

    /// One slot for each token again, and no more pieces of one token.
    fn compact(&mut self) {
        // Groups whose pieces are all gone begin where the next one does.
        let (mut from, mut to, mut group) = (1, 1, 0);
        while from < self.slots.len() {
            while self.groups.get(group).is_some_and(|next| next.0 as usize == from) {
                self.groups[group].0 = to as u32;
                group += 1;
            }
            let token = self.slots[from];
            from += if token == NONE { 1 } else { self.widths[token as usize] as usize };
            if token == NONE && self.slots[to - 2] == NONE {
                to -= 1;
            } else {
                self.slots[to] = token;
                to += 1;
            }
        }
        self.slots.truncate(to);
        self.widths.fill(1);
    }

    /// Calls `visit` with each pair, its place and its piece's count; every token covers one slot.
    fn pairs(&self, mut visit: impl FnMut(Pair, u32, i64)) {
        let mut group = Group::default();
        for (at, pair) in self.slots.windows(2).enumerate() {
            if pair[0] != NONE && pair[1] != NONE {
                visit((pair[0], pair[1]), at as u32, group.count(&self.groups, at as u32));
            }
        }
    }

    /// The pairs that occur at least `floor` times, and that number: a `FLOOR`th of the highest count.
    fn frequent(&self) -> (i64, FxHashMap<Pair, Occurrences>) {
        let mut counts: FxHashMap<Pair, i64> = FxHashMap::default();
        if self.widths.len() == 256 {
            let mut table = vec![0; 1 << 16];
            self.pairs(|pair, _, count| table[(pair.0 << 8 | pair.1) as usize] += count);
            counts.extend((0..).zip(table).map(|(pair, count)| ((pair >> 8, pair & 255), count)));
        } else {
            self.pairs(|pair, _, count| *counts.entry(pair).or_insert(0) += count);
        }
        let floor = (counts.values().copied().max().unwrap_or(0) / FLOOR).max(1);
        counts.retain(|_, count| *count >= floor);
        let mut pairs: FxHashMap<Pair, Occurrences> =
            counts.into_iter().map(|(pair, count)| (pair, Occurrences { count, at: Vec::new() })).collect();
        self.pairs(|pair, at, _| {
            if let Some(found) = pairs.get_mut(&pair) {
                found.at.push(at);
            }
        });
        (floor, pairs)
    }
}

/// How far below the highest count a pair may be to be followed; so little in tests that the floor falls often.
const FLOOR: i64 = if cfg!(test) { 2 } else { 64 };

/// Finds the counts of places that ascend.
#[derive(Default)]
struct Group(usize);

impl Group {
    /// The count of the group that `place` is in.
    #[inline]
    fn count(&mut self, groups: &[(u32, i64)], place: u32) -> i64 {
        // In steps that double, then between the last two.
        let mut step = 1;
        while groups.get(self.0 + step).is_some_and(|group| group.0 <= place) {
            step *= 2;
        }
        let within = &groups[self.0 + step / 2..groups.len().min(self.0 + step)];
        self.0 += step / 2 + within.partition_point(|group| group.0 <= place).max(1) - 1;
        groups[self.0].1
    }
}

/// A merge's neighbours on one side: how often each token stood there, and where pairs with it go.
struct Neighbours {
    counts: Vec<i64>,
    seen: Vec<u32>,
    /// Which of the merge's new pairs has this token; NONE for no frequent one.
    pairs: Vec<u32>,
}

impl Neighbours {
    fn new(tokens: usize) -> Self {
        Neighbours { counts: vec![0; tokens], seen: Vec::new(), pairs: vec![NONE; tokens] }
    }

    #[inline]
    fn add(&mut self, token: u32, count: i64) {
        let total = &mut self.counts[token as usize];
        if *total == 0 {
            self.seen.push(token);
        }
        *total += count;
    }

    /// The new pair to write down for a token, if there is one.
    #[inline]
    fn pair(&self, token: u32) -> Option<usize> {
        self.pairs.get(token as usize).copied().filter(|&pair| pair != NONE).map(|pair| pair as usize)
    }

    fn clear(&mut self) {
        for token in self.seen.drain(..) {
            self.counts[token as usize] = 0;
            self.pairs[token as usize] = NONE;
        }
    }
}

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
    let mut tokens: Vec<Vec<u8>> = (0..=255).map(|byte| vec![byte]).collect();
    if vocab_size == 256 {
        return Ok(tokens);
    }
    let mut sequence = Sequence::new(counts)?;
    // No more tokens than bytes and merges of at least two slots each.
    let most = vocab_size.min(256 + sequence.slots.len());
    let (mut before, mut after) = (Neighbours::new(most), Neighbours::new(most));
    let (mut floor, mut pairs) = sequence.frequent();
    // The heap's counts may be too high (a pair's count only falls once the merge that made it is done): an
    // entry found so is put back with the true count.
    let mut heap = heap_of(&pairs);
    let mut merged: Vec<(u32, Pair)> = Vec::new();
    let mut fresh: Vec<(Pair, Occurrences)> = Vec::new();
    let mut touched = 0;
    while tokens.len() < vocab_size {
        let Some((count, Reverse(pair))) = heap.pop() else {
            if floor == 1 {
                break;
            }
            check()?;
            sequence.compact();
            (floor, pairs) = sequence.frequent();
            heap = heap_of(&pairs);
            continue;
        };
        let Some(found) = pairs.get(&pair) else { continue };
        if found.count != count {
            if found.count >= floor {
                heap.push((found.count, Reverse(pair)));
            } else {
                pairs.remove(&pair);
            }
            continue;
        }
        let places = pairs.remove(&pair).unwrap_or_default().at;
        touched += places.len() + 1;
        if touched > 1 << 18 {
            touched = 0;
            check()?;
        }
        let (left, right) = pair;
        let id = tokens.len() as u32;
        tokens.push([&*tokens[left as usize], &*tokens[right as usize]].concat());
        let (left_width, right_width) = (sequence.widths[left as usize], sequence.widths[right as usize]);
        sequence.widths.push(left_width + right_width);

        let mut group = Group::default();
        for place in places {
            let start = place as usize;
            let middle = start + left_width as usize;
            let slots = &mut sequence.slots;
            if slots[start] != left || slots[middle] != right {
                continue; // an earlier merge took one of the two
            }
            let end = middle + right_width as usize;
            let around = (slots[start - 1], slots[end]);
            let count = group.count(&sequence.groups, place);
            (slots[middle - 1], slots[middle]) = (NONE, NONE);
            (slots[start], slots[end - 1]) = (id, id);
            if around.0 != NONE {
                before.add(around.0, count);
            }
            if around.1 != NONE {
                after.add(around.1, count);
            }
            merged.push((place, around));
        }

        let mut lose = |pair: Pair, count: i64| {
            if let Some(found) = pairs.get_mut(&pair) {
                found.count -= count;
            }
        };
        let mut gain = |pair: Pair, count: i64, place: &mut u32| {
            if count >= floor {
                *place = fresh.len() as u32;
                fresh.push((pair, Occurrences { count, at: Vec::new() }));
            }
        };
        // In a run (abab) what stands before may be this merge's own token: then its pair with `left` came and went.
        let own = before.counts[id as usize];
        for &token in &before.seen {
            let count = before.counts[token as usize];
            lose((token, left), count);
            gain((token, id), count, &mut before.pairs[token as usize]);
        }
        for &token in &after.seen {
            let count = after.counts[token as usize];
            lose((right, token), count);
            gain((id, token), count - if token == left { own } else { 0 }, &mut after.pairs[token as usize]);
        }
        if !fresh.is_empty() {
            for &(place, around) in &merged {
                if let Some(pair) = before.pair(around.0) {
                    fresh[pair].1.at.push(place - sequence.widths[around.0 as usize]);
                }
                if let Some(pair) = after.pair(around.1) {
                    fresh[pair].1.at.push(place);
                }
            }
        }
        for (pair, found) in fresh.drain(..) {
            heap.push((found.count, Reverse(pair)));
            pairs.insert(pair, found);
        }
        merged.clear();
        before.clear();
        after.clear();
    }
    Ok(tokens)
}

fn heap_of(pairs: &FxHashMap<Pair, Occurrences>) -> BinaryHeap<(i64, Reverse<Pair>)> {
    pairs.iter().map(|(&pair, found)| (found.count, Reverse(pair))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::split::GPT4_PATTERN;
    use proptest::prelude::*;

    fn train(texts: &[&str], vocab_size: usize, threads: usize) -> Vec<Vec<u8>> {
        let mut counter = Counter::new(GPT4_PATTERN, threads).unwrap();
        for batch in texts.chunks(3) {
            let batch: Vec<Text> = batch.iter().map(|&text| text.into()).collect();
            counter.add(&batch, &mut || Ok(())).unwrap();
        }
        learn(counter.finish(), vocab_size, &mut || Ok(())).unwrap()
    }

    /// Counts every pair of every piece anew before each merge.
    fn slow(texts: &[&str], vocab_size: usize) -> Vec<Vec<u8>> {
        let mut tokens: Vec<Vec<u8>> = (0..=255).map(|byte| vec![byte]).collect();
        let mut pieces: Vec<Vec<u32>> = Vec::new();
        for text in texts {
            let splitter = Splitter::new(GPT4_PATTERN).unwrap();
            splitter.split(text, |start, end| pieces.push(text[start..end].bytes().map(u32::from).collect()));
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
        assert!(learn(Counts::default(), 255, &mut || Ok(())).is_err());
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
        let mut counts = Counts::default();
        counts.add(&Splitter::new(GPT4_PATTERN).unwrap(), &"ab".repeat(1 << 19));
        assert!(matches!(learn(counts, 300, &mut || Err(Error::Stopped)), Err(Error::Stopped)));
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
