//! From text to ids and back.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::sync::Mutex;

use rustc_hash::FxHashMap;

use super::characters::Characters;
use super::memory;
use super::merges::{ID_BITS, Merges, NONE};
use super::pieces;
use super::split::Splitter;
use super::text::{Text, no_utf8};
use super::window;
use super::{Check, Error, Result, group_by_length, parallel, thread_count};

/// Text per job of a thread, in bytes or characters.
const JOB_LENGTH: usize = 1 << 16;
/// Pieces of at most this many bytes are merged by scanning; longer ones in the order of ranks.
const SCANNED: usize = 128;

/// An id as it is kept: in 16 bits where all of a vocabulary's fit, else in 32.
pub trait Id: Copy + Send + Sync {
    /// The lowest bits of `id`.
    fn new(id: u32) -> Self;
    /// Writes the ids' bytes, little-endian, into as many as they need.
    fn write(ids: &[Self], bytes: &mut [u8]);
}

impl Id for u16 {
    fn new(id: u32) -> Self {
        id as u16
    }

    fn write(ids: &[Self], bytes: &mut [u8]) {
        bytes.chunks_exact_mut(2).zip(ids).for_each(|(bytes, id)| bytes.copy_from_slice(&id.to_le_bytes()));
    }
}

impl Id for u32 {
    fn new(id: u32) -> Self {
        id
    }

    fn write(ids: &[Self], bytes: &mut [u8]) {
        bytes.chunks_exact_mut(4).zip(ids).for_each(|(bytes, id)| bytes.copy_from_slice(&id.to_le_bytes()));
    }
}

/// A vocabulary. The rank of a token, which decides what merges first, is its id.
pub struct Encoder {
    tokens: Vec<Box<[u8]>>,
    specials: BTreeMap<u32, String>,
    n_vocab: usize,
    splitter: Splitter,
    bytes: [u32; 256],
    /// The id of two bytes put together, by first << 8 | second; NONE where that is no token.
    byte_pairs: Vec<u32>,
    merges: Merges,
    characters: Characters,
    /// Caches that no thread is using; they stay warm from call to call.
    idle: Mutex<Vec<Cache>>,
}

/// Documents encoded behind each other.
#[derive(Default)]
pub struct Encoded<I> {
    pub ids: Vec<I>,
    /// Where in `ids` a document ends. What follows the last end belongs to a document that the next `Encoded` goes on with.
    pub ends: Vec<usize>,
    /// Of the text's UTF-8.
    pub bytes: usize,
}

impl Encoder {
    /// `tokens[i]` has id i; all 256 single bytes must be among them. `specials` name ids behind the tokens';
    /// text never encodes to them.
    ///
    /// Errors: `Invalid` for 2^21 tokens or more, an empty, repeated or missing one, a clashing special id, a bad pattern.
    pub fn new(tokens: Vec<Vec<u8>>, pattern: &str, specials: Vec<(String, u32)>) -> Result<Self> {
        let splitter = Splitter::new(pattern)?;
        if tokens.len() >= 1 << ID_BITS {
            return Err(Error::Invalid(format!("{} tokens are too many: at most {}", tokens.len(), (1 << ID_BITS) - 1)));
        }
        let mut ids: FxHashMap<&[u8], u32> = FxHashMap::default();
        for (id, token) in tokens.iter().enumerate() {
            if token.is_empty() {
                return Err(Error::Invalid(format!("token {id} is empty")));
            }
            if let Some(first) = ids.insert(token.as_slice(), id as u32) {
                return Err(Error::Invalid(format!("tokens {first} and {id} are the same bytes")));
            }
        }
        let mut bytes = [0; 256];
        for (byte, id) in bytes.iter_mut().enumerate() {
            *id = *ids.get(&[byte as u8][..]).ok_or_else(|| Error::Invalid(format!("byte {byte} is not among the tokens")))?;
        }
        let mut n_vocab = tokens.len();
        let mut names = BTreeMap::new();
        for (name, id) in specials {
            if (id as usize) < tokens.len() {
                return Err(Error::Invalid(format!("special token {name:?} has id {id}, which is a token's: there are {}", tokens.len())));
            }
            n_vocab = n_vocab.max(id as usize + 1);
            if let Some(other) = names.insert(id, name.clone()) {
                return Err(Error::Invalid(format!("special tokens {other:?} and {name:?} both have id {id}")));
            }
        }
        let mut byte_pairs = vec![NONE; 1 << 16];
        for (&token, &id) in &ids {
            if let &[first, second] = token {
                byte_pairs[usize::from(first) << 8 | usize::from(second)] = id;
            }
        }
        let merges = Merges::new(&tokens, &bytes, &ids);
        drop(ids);
        let characters = Characters::new(&tokens);
        let tokens = tokens.into_iter().map(Vec::into_boxed_slice).collect();
        Ok(Encoder { tokens, specials: names, n_vocab, splitter, bytes, byte_pairs, merges, characters, idle: Mutex::default() })
    }

    /// The highest id, specials included, plus one.
    pub fn n_vocab(&self) -> usize {
        self.n_vocab
    }

    /// Whether every id fits into 16 bits.
    pub fn fits_u16(&self) -> bool {
        self.n_vocab <= 1 << 16
    }

    pub fn encode(&self, text: &str) -> Vec<u32> {
        let mut ids = Vec::new();
        let mut caches = self.take_caches(1);
        for cache in &mut caches {
            self.encode_into(text, cache, &mut ids);
        }
        self.keep_caches(caches);
        ids
    }

    /// The documents in order, in one or several parts; a long one is spread over threads, and may be in several parts.
    /// `threads` 0 is every core. `I` must hold every id. Errors: `Surrogate`.
    pub fn encode_batch<I: Id>(&self, texts: &[Text], threads: usize, check: &mut Check) -> Result<Vec<Encoded<I>>> {
        let parts = self.splitter.parts(texts, JOB_LENGTH);
        let jobs = group_by_length(&parts, JOB_LENGTH);
        let mut caches = self.take_caches(thread_count(threads).min(jobs.len()));
        let result = parallel(&mut caches, jobs.len(), check, |cache, job| {
            let parts = &parts[jobs[job].clone()];
            let length: usize = parts.iter().map(|part| part.0.length()).sum();
            let mut encoded = Encoded { ids: Vec::with_capacity(length / 4), ends: Vec::with_capacity(parts.len()), bytes: 0 };
            let mut room = std::mem::take(&mut cache.utf8);
            for &(text, ends) in parts {
                let text = text.utf8(&mut room).ok_or_else(|| no_utf8(texts))?;
                encoded.bytes += text.len();
                self.encode_into(text, cache, &mut encoded.ids);
                if ends {
                    encoded.ends.push(encoded.ids.len());
                }
            }
            cache.utf8 = room;
            Ok(encoded)
        });
        self.keep_caches(caches);
        result
    }

    /// The bytes of `ids`; a special token gives its name.
    ///
    /// Errors: `Invalid` for an id that is not in the vocabulary.
    pub fn decode(&self, ids: impl IntoIterator<Item = i64>) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        for id in ids {
            let token = usize::try_from(id).ok().and_then(|id| self.tokens.get(id));
            let special = || u32::try_from(id).ok().and_then(|id| self.specials.get(&id));
            match token.map(|token| &**token).or_else(|| special().map(|name| name.as_bytes())) {
                Some(token) => bytes.extend_from_slice(token),
                None => return Err(Error::Invalid(format!("id {id} is not in the vocabulary of {}", self.n_vocab))),
            }
        }
        Ok(bytes)
    }

    fn take_caches(&self, n: usize) -> Vec<Cache> {
        let mut idle = self.idle.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        (0..n).map(|_| idle.pop().unwrap_or_default()).collect()
    }

    fn keep_caches(&self, caches: Vec<Cache>) {
        self.idle.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).extend(caches);
    }

    fn encode_into<I: Id>(&self, text: &str, cache: &mut Cache, out: &mut Vec<I>) {
        // In a script that a vocabulary was not made for each character is a piece, and found in the cache far more often than
        // whole words are.
        pieces::cut(&self.splitter, text, Some(&self.characters), |pieces| {
            pieces.iter().for_each(|piece| cache.short.fetch(piece.hash));
            for piece in pieces {
                let bytes = &text.as_bytes()[piece.start..piece.end];
                if piece.key != 0 {
                    self.encode_short(bytes, piece.key, piece.hash, cache, out);
                } else if !self.merge_run(bytes, out) {
                    self.encode_long(bytes, cache, out);
                }
            }
        });
    }

    #[inline(always)]
    fn encode_short<I: Id>(&self, piece: &[u8], key: u128, hash: u64, cache: &mut Cache, out: &mut Vec<I>) {
        match cache.short.get(key, hash) {
            Some((ids, n)) if n <= IDS => memory::append(out, ids.map(I::new), n),
            Some(_) => self.encode_long(piece, cache, out),
            None => {
                self.merge(piece, cache);
                out.extend(cache.merged.iter().map(|&id| I::new(id)));
                cache.short.remember(key, hash, &cache.merged);
            }
        }
    }

    /// A piece that is not short, or has more ids than are remembered of those.
    fn encode_long<I: Id>(&self, piece: &[u8], cache: &mut Cache, out: &mut Vec<I>) {
        let hash = (piece.len() <= LONGEST).then(|| pieces::hash_bytes(piece));
        if hash.is_some_and(|hash| cache.long.copy(piece, hash, out)) {
            return;
        }
        self.merge(piece, cache);
        out.extend(cache.merged.iter().map(|&id| I::new(id)));
        if let Some(hash) = hash {
            cache.long.remember(piece, hash, &cache.merged);
        }
    }

    /// Leaves the ids of a piece in `cache.merged`.
    fn merge(&self, piece: &[u8], cache: &mut Cache) {
        cache.merged.clear();
        if piece.len() <= pieces::SHORT {
            self.merge_short(piece, &mut cache.merged);
        } else if piece.len() <= SCANNED {
            self.merge_by_scan(piece, &mut cache.ranks, &mut cache.merged);
        } else if !self.merge_by_rank(piece, &mut cache.merged) {
            self.merge_by_heap(piece, &mut cache.merged);
        }
    }

    /// Merges the neighbours of lowest rank, of several the leftmost, until there are none. For a short piece: all that it may have
    /// of parts is looked at each time, so that there is no branch that the processor cannot foretell.
    fn merge_short(&self, piece: &[u8], out: &mut Vec<u32>) {
        const PLACES: usize = 16;
        const OUTSIDE: usize = PLACES; // before the first and after the last part
        let mut ids = [NO_ID; PLACES + 1];
        // Of the merge of each part with the next: its rank, and then its place.
        let mut keys = [u64::MAX; PLACES + 1];
        let key = |rank: u32, place: usize| u64::from(rank) << 8 | place as u64;
        for (place, &byte) in piece.iter().enumerate() {
            ids[place] = self.bytes[usize::from(byte)];
        }
        for (place, pair) in piece.windows(2).enumerate() {
            keys[place] = key(self.byte_pair(pair), place);
        }
        let lower = |one: u64, other: u64| if one < other { one } else { other };
        let mut parts = (1u32 << piece.len()) - 1;
        loop {
            let eight: [u64; 8] = std::array::from_fn(|i| lower(keys[i], keys[i + 8]));
            let four: [u64; 4] = std::array::from_fn(|i| lower(eight[i], eight[i + 4]));
            let lowest = lower(lower(four[0], four[1]), lower(four[2], four[3]));
            if lowest >= key(NONE, 0) {
                break;
            }
            let (rank, at) = ((lowest >> 8) as u32, lowest as usize & (PLACES - 1));
            let (left, right) = (parts & ((1 << at) - 1), parts & u32::MAX << (at + 1));
            let taken = right.trailing_zeros() as usize & (PLACES - 1);
            let after = (right & right.wrapping_sub(1) | 1 << OUTSIDE).trailing_zeros() as usize;
            let before = if left == 0 { OUTSIDE } else { 31 - left.leading_zeros() as usize };
            parts &= !(1 << taken);
            ids[at] = rank;
            keys[taken] = u64::MAX;
            keys[before] = key(self.merges.get(ids[before], rank), before);
            keys[at] = key(self.merges.get(rank, ids[after]), at);
        }
        out.extend(window::ones(parts.into()).map(|place| ids[place]));
    }

    /// The same, quadratic, and fastest for a piece that is not very long. `ranks` is working memory: of the merge of each part with the next.
    fn merge_by_scan(&self, piece: &[u8], ranks: &mut Vec<u32>, ids: &mut Vec<u32>) {
        ids.extend(piece.iter().map(|&byte| self.bytes[usize::from(byte)]));
        ranks.clear();
        ranks.extend(piece.windows(2).map(|pair| self.byte_pair(pair)));
        loop {
            let (mut lowest, mut at) = (NONE, 0);
            for (i, &rank) in ranks.iter().enumerate() {
                if rank < lowest {
                    (lowest, at) = (rank, i);
                }
            }
            if lowest == NONE {
                return;
            }
            ids[at] = lowest;
            ids.remove(at + 1);
            ranks.remove(at);
            if at > 0 {
                ranks[at - 1] = self.merges.get(ids[at - 1], lowest);
            }
            if let Some(&after) = ids.get(at + 1) {
                ranks[at] = self.merges.get(lowest, after);
            }
        }
    }

    /// The same for one byte many times, as runs of equal parts, of which there are never many. False, and no ids, for any other
    /// piece, for one of at most `SCANNED` bytes, and where a merge makes one of a lower rank possible.
    #[inline]
    fn merge_run<I: Id>(&self, piece: &[u8], out: &mut Vec<I>) -> bool {
        piece.len() > SCANNED && piece[1..] == piece[..piece.len() - 1] && self.merge_long_run(piece, out)
    }

    fn merge_long_run<I: Id>(&self, piece: &[u8], out: &mut Vec<I>) -> bool {
        let mut runs = vec![(self.bytes[usize::from(piece[0])], piece.len())];
        loop {
            let inside = runs.iter().filter(|run| run.1 > 1).map(|run| self.merges.get(run.0, run.0));
            let between = runs.windows(2).map(|pair| self.merges.get(pair[0].0, pair[1].0));
            let Some(lowest) = inside.chain(between).min().filter(|&rank| rank != NONE) else { break };
            let lower = |left, right| self.merges.get(left, right) < lowest;
            if lower(lowest, lowest) || runs.iter().any(|run| lower(run.0, lowest) || lower(lowest, run.0)) {
                return false;
            }
            let mut merged: Vec<(u32, usize)> = Vec::with_capacity(2 * runs.len() + 1);
            for (id, mut count) in runs {
                if let Some(last) = merged.last_mut().filter(|last| self.merges.get(last.0, id) == lowest) {
                    (last.1, count) = (last.1 - 1, count - 1);
                    append_run(&mut merged, lowest, 1);
                }
                let pairs = if self.merges.get(id, id) == lowest { count / 2 } else { 0 };
                append_run(&mut merged, lowest, pairs);
                append_run(&mut merged, id, count - 2 * pairs);
            }
            runs = merged;
        }
        runs.into_iter().for_each(|(id, count)| out.resize(out.len() + count, I::new(id)));
        true
    }

    /// The same, nearly linear: one rank after the other. That is right as long as no merge makes one of a lower rank
    /// possible, as is so where the tokens were learned; otherwise false, and no ids.
    fn merge_by_rank(&self, piece: &[u8], out: &mut Vec<u32>) -> bool {
        let mut parts = self.parts(piece);
        let mut places: FxHashMap<u32, Vec<u32>> = FxHashMap::default();
        for (i, part) in (0..).zip(&parts).filter(|(_, part)| part.rank != NONE) {
            places.entry(part.rank).or_default().push(i);
        }
        let mut ranks: BinaryHeap<Reverse<u32>> = places.keys().copied().map(Reverse).collect();
        let mut ascend = true;
        while let Some(Reverse(rank)) = ranks.pop() {
            let mut here = places.remove(&rank).unwrap_or_default();
            here.sort_unstable();
            for i in here {
                if parts[i as usize].rank == rank {
                    self.merge_part(&mut parts, i, |next, i| {
                        ascend &= next > rank;
                        places.entry(next).or_insert_with(|| (ranks.push(Reverse(next)), Vec::new()).1).push(i);
                    });
                }
            }
            if !ascend {
                return false;
            }
        }
        out.extend(parts.iter().map(|part| part.id).filter(|&id| id != NONE));
        true
    }

    /// The same for any ranks, n log n.
    fn merge_by_heap(&self, piece: &[u8], out: &mut Vec<u32>) {
        let mut parts = self.parts(piece);
        let mut heap: BinaryHeap<Reverse<(u32, u32)>> =
            (0..).zip(&parts).map(|(i, part)| Reverse((part.rank, i))).filter(|entry| entry.0.0 != NONE).collect();
        while let Some(Reverse((rank, i))) = heap.pop() {
            if parts[i as usize].rank == rank {
                self.merge_part(&mut parts, i, |rank, i| heap.push(Reverse((rank, i))));
            }
        }
        out.extend(parts.iter().map(|part| part.id).filter(|&id| id != NONE));
    }

    /// The bytes of a piece as parts.
    fn parts(&self, piece: &[u8]) -> Vec<Part> {
        let ranks = piece.windows(2).map(|pair| self.byte_pair(pair)).chain([NONE]);
        let part = |((&byte, rank), i): ((&u8, u32), u32)| Part {
            id: self.bytes[usize::from(byte)],
            rank,
            before: i.wrapping_sub(1),
            after: i + 1,
        };
        piece.iter().zip(ranks).zip(0..).map(part).collect()
    }

    /// The id of two bytes put together; NONE where that is no token.
    #[inline]
    fn byte_pair(&self, pair: &[u8]) -> u32 {
        self.byte_pairs[usize::from(pair[0]) << 8 | usize::from(pair[1])]
    }

    /// Merges part i with the next, and calls `found` with each merge that is possible since: its rank and its left part.
    fn merge_part(&self, parts: &mut [Part], i: u32, mut found: impl FnMut(u32, u32)) {
        let part = parts[i as usize];
        let taken = &mut parts[part.after as usize];
        let after = taken.after;
        (taken.id, taken.rank) = (NONE, NONE);
        parts[i as usize] = Part { id: part.rank, after, ..part };
        if let Some(after) = parts.get_mut(after as usize) {
            after.before = i;
        }
        for left in [part.before, i] {
            let Some(&Part { id, after, .. }) = parts.get(left as usize) else { continue };
            let rank = parts.get(after as usize).map_or(NONE, |after| self.merges.get(id, after.id));
            parts[left as usize].rank = rank;
            if rank != NONE {
                found(rank, left);
            }
        }
    }
}

/// Lets runs of equal ids end with `count` times `id` more.
fn append_run(runs: &mut Vec<(u32, usize)>, id: u32, count: usize) {
    if runs.last().is_some_and(|run| run.1 == 0) {
        runs.pop();
    }
    match runs.last_mut() {
        Some(last) if last.0 == id => last.1 += count,
        _ if count > 0 => runs.push((id, count)),
        _ => {}
    }
}

/// A part of a long piece, in a list of parts.
#[derive(Clone, Copy)]
struct Part {
    /// NONE for one that another has taken.
    id: u32,
    /// Of its merge with the part after it.
    rank: u32,
    before: u32,
    after: u32,
}

/// What one thread remembers, in bounded memory, and its working memory.
#[derive(Default)]
struct Cache {
    short: Short,
    long: Long,
    /// The ids of the piece at hand.
    merged: Vec<u32>,
    ranks: Vec<u32>,
    /// The UTF-8 of the text at hand.
    utf8: Vec<u8>,
}

/// The ids of short pieces, or, of those that have more than `IDS`, that they have so many. A piece is at one of the `WAYS` places from the one that its hash names;
/// where all of them are taken and the table has its full size, it takes the place of another.
#[derive(Default)]
struct Short {
    table: Vec<Known>,
    used: usize,
}

/// A short piece's ids. The key's four highest bits, which a key leaves free, are their number, or MANY. None lies across two
/// lines of the processor's caches.
#[derive(Clone, Copy, Default)]
#[repr(align(32))]
struct Known {
    key: u128,
    ids: [u32; IDS],
}

const NO_ID: u32 = (1 << ID_BITS) - 1;
const IDS: usize = 4;
const MANY: usize = 15;
const WAYS: usize = 8;
/// Places of a new and of a full table (16 MB).
const FEW: usize = 1 << 12;
const MOST: usize = 1 << 19;
const KEY: u128 = u128::MAX >> 4;

impl Short {
    /// Begins to fetch the first place where a piece may be.
    #[inline]
    fn fetch(&self, hash: u64) {
        if let Some(known) = self.table.get(hash as usize & self.table.len().wrapping_sub(1)) {
            memory::fetch(known);
        }
    }

    /// The ids of a piece, and how many they are, or MANY.
    #[inline]
    fn get(&self, key: u128, hash: u64) -> Option<(&[u32; IDS], usize)> {
        let mask = self.table.len().wrapping_sub(1);
        let first = self.table.get(hash as usize & mask)?;
        let known = if first.key & KEY == key { first } else { self.search(key, hash)? };
        Some((&known.ids, (known.key >> 124) as usize))
    }

    /// A piece that is not at the first of its places.
    fn search(&self, key: u128, hash: u64) -> Option<&Known> {
        let mask = self.table.len() - 1;
        (0..WAYS)
            .map(|way| &self.table[(hash as usize).wrapping_add(way) & mask])
            .take_while(|known| known.key != 0)
            .find(|known| known.key & KEY == key)
    }

    /// Remembers a piece.
    fn remember(&mut self, key: u128, hash: u64, ids: &[u32]) {
        if 2 * self.used >= self.table.len() && self.table.len() < MOST {
            let larger = memory::filled((2 * self.table.len()).max(FEW), Known::default());
            let smaller = std::mem::replace(&mut self.table, larger);
            self.used = 0;
            for known in smaller.into_iter().filter(|known| known.key != 0) {
                self.put(pieces::hash(known.key & KEY), known);
            }
        }
        let n = if ids.len() <= IDS { ids.len() } else { MANY };
        let mut known = Known { key: key | (n as u128) << 124, ids: [0; IDS] };
        known.ids.iter_mut().zip(ids).for_each(|(place, &id)| *place = id);
        self.put(hash, known);
    }

    fn put(&mut self, hash: u64, known: Known) {
        let place = |way| (hash as usize).wrapping_add(way) & (self.table.len() - 1);
        let free = (0..WAYS).map(place).find(|&place| self.table[place].key == 0);
        self.used += usize::from(free.is_some());
        let place = free.unwrap_or_else(|| place((hash >> 61) as usize % WAYS));
        self.table[place] = known;
    }
}

/// Pieces with their ids behind them, found by a hash and then compared. When there are too many, all are forgotten.
#[derive(Default)]
struct Long {
    /// Hash -> where in `memory` the bytes begin, where the ids do, and where they end.
    places: FxHashMap<u64, (u32, u32, u32)>,
    memory: Vec<u8>,
}

/// Bytes of all long pieces and their ids; of one piece that is remembered.
const MEMORY: usize = 32 << 20;
const LONGEST: usize = 1 << 10;

impl Long {
    /// Appends the ids of a piece to `out`; whether they were remembered.
    fn copy<I: Id>(&self, piece: &[u8], hash: u64, out: &mut Vec<I>) -> bool {
        let Some(&(start, ids, end)) = self.places.get(&hash) else { return false };
        let found = self.memory[start as usize..ids as usize] == *piece;
        if found {
            let ids = self.memory[ids as usize..end as usize].chunks_exact(4);
            out.extend(ids.map(|id| I::new(u32::from_le_bytes([id[0], id[1], id[2], id[3]]))));
        }
        found
    }

    fn remember(&mut self, piece: &[u8], hash: u64, ids: &[u32]) {
        if self.memory.len() > MEMORY {
            self.places.clear();
            self.memory.clear();
        }
        let start = self.memory.len() as u32;
        self.memory.extend_from_slice(piece);
        let middle = self.memory.len() as u32;
        self.memory.extend(ids.iter().flat_map(|id| id.to_le_bytes()));
        self.places.insert(hash, (start, middle, self.memory.len() as u32));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::merges::samples::{self, alphabet};
    use crate::core::split::GPT4_PATTERN;
    use crate::core::text::samples::Held;
    use crate::core::train::{Counter, learn};
    use proptest::prelude::*;

    fn train(text: &str, vocab_size: usize) -> Vec<Vec<u8>> {
        let mut counter = Counter::new(GPT4_PATTERN, 1).unwrap();
        counter.add(&[text.into()], &mut || Ok(())).unwrap();
        learn(counter.finish(), vocab_size, &mut || Ok(())).unwrap()
    }

    /// Looks for the best merge in the list of tokens, anew each time.
    fn slow(tokens: &[Vec<u8>], text: &str) -> Vec<u32> {
        slow_split(tokens, text, GPT4_PATTERN)
    }

    fn slow_split(tokens: &[Vec<u8>], text: &str, pattern: &str) -> Vec<u32> {
        let mut ids = Vec::new();
        let splitter = Splitter::new(pattern).unwrap();
        let find = |bytes: &[u8]| tokens.iter().position(|token| token == bytes);
        splitter.split(text, |start, end| {
            let mut parts: Vec<Vec<u8>> = text[start..end].bytes().map(|byte| vec![byte]).collect();
            while let Some((_, i)) =
                (1..parts.len()).filter_map(|i| find(&[&*parts[i - 1], &*parts[i]].concat()).map(|rank| (rank, i))).min()
            {
                let right = parts.remove(i);
                parts[i - 1].extend(right);
            }
            ids.extend(parts.iter().map(|part| find(part).unwrap() as u32));
        });
        ids
    }

    #[test]
    fn round_trip_and_specials() {
        let tokens = train("hello hello world", 262);
        let n = tokens.len() as u32;
        let encoder = Encoder::new(tokens, GPT4_PATTERN, vec![("<|bos|>".into(), n)]).unwrap();
        let text = "hello <|bos|> wörld 🙂\0";
        let ids = encoder.encode(text);
        assert!(ids.iter().all(|&id| id < n));
        assert_eq!(encoder.decode(ids.iter().map(|&id| id.into())).unwrap(), text.as_bytes());
        assert_eq!(encoder.decode([n.into()]).unwrap(), b"<|bos|>");
        assert_eq!(encoder.n_vocab(), n as usize + 1);
        assert!(encoder.decode([-1]).is_err());
        assert!(encoder.decode([i64::from(n) + 1]).is_err());
        assert!(encoder.decode([1 << 32]).is_err());
    }

    #[test]
    fn bad_vocabularies() {
        let with = |token: &[u8]| [alphabet(), vec![token.to_vec()]].concat();
        let error = |tokens, specials| Encoder::new(tokens, GPT4_PATTERN, specials).err().unwrap().to_string();
        assert_eq!(error(with(b""), vec![]), "token 256 is empty");
        assert_eq!(error(with(b"a"), vec![]), "tokens 97 and 256 are the same bytes");
        assert_eq!(error(vec![], vec![]), "byte 0 is not among the tokens");
        assert_eq!(error(vec![vec![]; 1 << 21], vec![]), "2097152 tokens are too many: at most 2097151");
        assert!(error(alphabet(), vec![("x".into(), 255)]).contains("which is a token's"));
        assert!(error(alphabet(), vec![("x".into(), 256), ("y".into(), 256)]).contains("both have id 256"));
    }

    #[test]
    fn long_pieces_are_not_quadratic() {
        let text = " ".repeat(1 << 16) + &"acgt".repeat(1 << 14) + &"字".repeat(1 << 14);
        let encoder = Encoder::new(train(&text, 300), GPT4_PATTERN, vec![]).unwrap();
        let ids = encoder.encode(&text);
        assert!(ids.len() < 2_000);
        assert_eq!(encoder.decode(ids.into_iter().map(i64::from)).unwrap(), text.as_bytes());
    }

    #[test]
    fn a_full_cache_goes_on() {
        let mut short = Short::default();
        for i in 0..MOST as u64 {
            let bytes = [&i.to_le_bytes()[..], &[7]].concat();
            let key = pieces::key(&bytes, 0, 9);
            short.remember(key, pieces::hash(key), &[i as u32, 1]);
            let (ids, n) = short.get(key, pieces::hash(key)).unwrap();
            assert_eq!(ids[..n], [i as u32, 1]);
        }
        assert!(short.table.len() == MOST && short.used < MOST);
        let mut long = Long::default();
        for i in 0..MEMORY as u32 / LONGEST as u32 + 10 {
            let piece = i.to_le_bytes().repeat(LONGEST / 4);
            long.remember(&piece, 1, &[i]); // all of one hash: the last is found, the one before is another
            let mut ids: Vec<u32> = Vec::new();
            assert!(long.copy(&piece, 1, &mut ids) && ids == [i]);
            assert!(!long.copy(&piece[1..], 1, &mut ids));
        }
        assert!(long.memory.len() < MEMORY);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(100))]

        #[test]
        fn equals_the_slow_reference(corpus in "[abc ]{0,60}", text in "[abcd ]{0,200}|[ab]{0,300}", extra in 0usize..60) {
            let tokens = train(&corpus, 256 + extra);
            let encoder = Encoder::new(tokens.clone(), GPT4_PATTERN, vec![]).unwrap();
            let ids = encoder.encode(&text);
            prop_assert_eq!(&ids, &slow(&tokens, &text));
            prop_assert_eq!(&ids, &encoder.encode(&text));
            // What was learned is encoded to itself.
            for (id, token) in (0..).zip(&tokens) {
                let mut ids = Vec::new();
                encoder.merge_by_scan(token, &mut Vec::new(), &mut ids);
                prop_assert_eq!(ids, [id]);
            }
        }

        #[test]
        fn any_list_of_tokens(more in prop::collection::btree_set("[ab]{2,5}", 0..20), text in "[ab]{0,40}|[ab]{120,160}") {
            let mut tokens = alphabet();
            tokens.extend(more.into_iter().map(String::into_bytes));
            let encoder = Encoder::new(tokens.clone(), GPT4_PATTERN, vec![]).unwrap();
            prop_assert_eq!(encoder.encode(&text), slow(&tokens, &text));
        }

        /// Tokens of any bytes that stand in such text, characters cut or not, in any order.
        #[test]
        fn any_list_of_parts_of_characters(
            corpus in "[aé字孖 ]{1,40}",
            more in prop::collection::vec((0usize..120, 2usize..8), 0..40),
            text in "[aé字孖学🙂 ]{0,60}|[字é]{40,60}",
        ) {
            let tokens = samples::with_parts(&corpus, more);
            let encoder = Encoder::new(tokens.clone(), GPT4_PATTERN, vec![]).unwrap();
            let ids = slow(&tokens, &text);
            prop_assert_eq!(&encoder.encode(&text), &ids);
            prop_assert_eq!(&encoder.encode(&text), &ids);
            let words = r"\S+|\s+"; // cut by the engine
            prop_assert_eq!(Encoder::new(tokens.clone(), words, vec![]).unwrap().encode(&text), slow_split(&tokens, &text, words));
        }

        #[test]
        fn one_byte_many_times(lengths in prop::collection::vec(2usize..20, 0..8), length in 129usize..400) {
            let mut tokens = alphabet();
            for length in lengths {
                let token = vec![b'a'; length];
                if !tokens.contains(&token) {
                    tokens.push(token);
                }
            }
            let encoder = Encoder::new(tokens.clone(), GPT4_PATTERN, vec![]).unwrap();
            let text = "a".repeat(length);
            prop_assert_eq!(encoder.encode(&text), slow(&tokens, &text));
            prop_assert!(!encoder.merge_run(&[b"ab", text.as_bytes()].concat(), &mut Vec::<u32>::new()));
        }

        #[test]
        fn all_ways_to_merge_are_equal(text in "[abc]{0,100}") {
            let encoder = Encoder::new(train(&text, 280), GPT4_PATTERN, vec![]).unwrap();
            let (mut short, mut by_scan, mut by_rank, mut by_heap) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
            let start = &text.as_bytes()[..text.len().min(pieces::SHORT)];
            encoder.merge_short(start, &mut short);
            encoder.merge_by_scan(start, &mut Vec::new(), &mut by_scan);
            prop_assert_eq!(&short, &by_scan);
            by_scan.clear();
            encoder.merge_by_scan(text.as_bytes(), &mut Vec::new(), &mut by_scan);
            prop_assert!(encoder.merge_by_rank(text.as_bytes(), &mut by_rank));
            encoder.merge_by_heap(text.as_bytes(), &mut by_heap);
            prop_assert_eq!(&by_scan, &by_rank);
            prop_assert_eq!(&by_scan, &by_heap);
        }

    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(30))]

        #[test]
        fn batches_equal_single_texts(texts in prop::collection::vec(any::<String>(), 0..20), long in "[ab é\n]{0,40}", threads in 0usize..4) {
            let mut texts = texts;
            texts.insert(texts.len() / 2, long.repeat(1 << 13));
            let encoder = Encoder::new(train(&texts.concat(), 300), GPT4_PATTERN, vec![]).unwrap();
            let held: Vec<Held> = texts.iter().map(|text| Held::new(text)).collect();
            // Each text in another of the ways that can hold it.
            let some: Vec<Text> = held.iter().enumerate().filter_map(|(i, held)| held.all().cycle().nth(i)).collect();
            let parts: Vec<Encoded<u16>> = encoder.encode_batch(&some, threads, &mut || Ok(())).unwrap();
            prop_assert_eq!(parts.iter().map(|part| part.bytes).sum::<usize>(), texts.iter().map(String::len).sum::<usize>());
            let (mut documents, mut document) = (Vec::new(), Vec::new());
            for part in parts {
                let mut start = 0;
                for end in part.ends {
                    document.extend(part.ids[start..end].iter().map(|&id| u32::from(id)));
                    documents.push(std::mem::take(&mut document));
                    start = end;
                }
                document.extend(part.ids[start..].iter().map(|&id| u32::from(id)));
            }
            prop_assert!(document.is_empty());
            prop_assert_eq!(&documents, &texts.iter().map(|text| encoder.encode(text)).collect::<Vec<_>>());
            for (text, ids) in texts.iter().zip(documents) {
                prop_assert_eq!(encoder.decode(ids.into_iter().map(i64::from)).unwrap(), text.as_bytes());
            }
        }
    }
}
