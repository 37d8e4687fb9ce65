//! From text to ids and back.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::sync::Mutex;

use rustc_hash::FxHashMap;

use super::split::Splitter;
use super::{Check, Error, Result, group_by_bytes, parallel, thread_count};

/// Texts per job of a thread, in bytes.
const JOB_BYTES: usize = 1 << 16;
/// Pieces of at most this many bytes are remembered, and merged by scanning; longer ones use a heap.
const SHORT: usize = 128;
/// A thread forgets its pieces when it knows this many.
const CACHED_PIECES: usize = 1 << 17;
/// No merge; no neighbour.
const NONE: u32 = u32::MAX;

/// A vocabulary. The rank of a token, which decides what merges first, is its id.
pub struct Encoder {
    tokens: Vec<Box<[u8]>>,
    specials: BTreeMap<u32, String>,
    n_vocab: usize,
    splitter: Splitter,
    bytes: [u32; 256],
    /// The id of two neighbouring tokens' bytes put together, where that is a token.
    merges: FxHashMap<(u32, u32), u32>,
    /// The short tokens that their own bytes encode to (all of them, if they were learned): no need to merge.
    whole: FxHashMap<Box<[u8]>, u32>,
    /// Caches that no thread is using; they stay warm from call to call.
    idle: Mutex<Vec<Cache>>,
}

/// What one thread remembers: the ids of pieces it has seen, and its working memory.
#[derive(Default)]
struct Cache {
    places: FxHashMap<Box<[u8]>, (u32, u32)>,
    ids: Vec<u32>,
    parts: Vec<(u32, u32)>,
}

/// Documents encoded behind each other.
#[derive(Default)]
pub struct Encoded {
    pub ids: Vec<u32>,
    /// The number of ids of each document.
    pub lengths: Vec<usize>,
}

impl Encoder {
    /// `tokens[i]` has id i; all 256 single bytes must be among them. `specials` name ids behind the tokens';
    /// text never encodes to them.
    ///
    /// Errors: `Invalid` for an empty, repeated or missing token, a clashing special id, a bad pattern.
    pub fn new(tokens: Vec<Vec<u8>>, pattern: &str, specials: Vec<(String, u32)>) -> Result<Self> {
        let splitter = Splitter::new(pattern)?;
        let mut ids: FxHashMap<Box<[u8]>, u32> = FxHashMap::default();
        for (id, token) in tokens.iter().enumerate() {
            if token.is_empty() {
                return Err(Error::Invalid(format!("token {id} is empty")));
            }
            if let Some(first) = ids.insert(token.as_slice().into(), id as u32) {
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
        let mut encoder = Encoder {
            merges: merges(&tokens, &ids),
            tokens: tokens.into_iter().map(Vec::into_boxed_slice).collect(),
            specials: names,
            n_vocab,
            splitter,
            bytes,
            whole: FxHashMap::default(),
            idle: Mutex::default(),
        };
        let mut cache = Cache::default();
        let mut out = Vec::new();
        ids.retain(|token, id| {
            out.clear();
            token.len() <= SHORT && {
                encoder.merge_by_scan(token, &mut cache.parts, &mut out);
                out == [*id]
            }
        });
        encoder.whole = ids;
        Ok(encoder)
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

    /// The documents in order, in one or several parts. `threads` 0 is every core.
    pub fn encode_batch(&self, texts: &[&str], threads: usize, check: &mut Check) -> Result<Vec<Encoded>> {
        let jobs = group_by_bytes(texts, JOB_BYTES);
        let mut caches = self.take_caches(thread_count(threads).min(jobs.len()));
        let result = parallel(&mut caches, jobs.len(), check, |cache, job| {
            let mut part = Encoded::default();
            for text in &texts[jobs[job].clone()] {
                let start = part.ids.len();
                self.encode_into(text, cache, &mut part.ids);
                part.lengths.push(part.ids.len() - start);
            }
            Ok(part)
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

    fn encode_into(&self, text: &str, cache: &mut Cache, out: &mut Vec<u32>) {
        self.splitter.split(text, |piece| {
            let piece = piece.as_bytes();
            if let Some(&id) = self.whole.get(piece) {
                out.push(id);
            } else if let Some(&(start, end)) = cache.places.get(piece) {
                out.extend_from_slice(&cache.ids[start as usize..end as usize]);
            } else {
                let start = out.len();
                self.merge(piece, &mut cache.parts, out);
                cache.remember(piece, &out[start..]);
            }
        });
    }

    /// Merges the bytes of a piece, always the neighbours whose merge has the lowest rank, of several the
    /// leftmost, until none are left to merge.
    fn merge(&self, piece: &[u8], parts: &mut Vec<(u32, u32)>, out: &mut Vec<u32>) {
        if piece.len() <= SHORT {
            self.merge_by_scan(piece, parts, out);
        } else {
            self.merge_by_heap(piece, out);
        }
    }

    fn rank(&self, left: u32, right: u32) -> u32 {
        self.merges.get(&(left, right)).copied().unwrap_or(NONE)
    }

    /// Quadratic, and fastest for a short piece. `parts` is working memory: (id, rank of its merge with the next).
    fn merge_by_scan(&self, piece: &[u8], parts: &mut Vec<(u32, u32)>, out: &mut Vec<u32>) {
        parts.clear();
        parts.extend(piece.iter().map(|&byte| (self.bytes[byte as usize], NONE)));
        for i in 1..parts.len() {
            parts[i - 1].1 = self.rank(parts[i - 1].0, parts[i].0);
        }
        while let Some((i, rank)) = parts.iter().map(|part| part.1).enumerate().min_by_key(|&(_, rank)| rank) {
            if rank == NONE {
                break;
            }
            parts.remove(i + 1);
            let next = parts.get(i + 1).map_or(NONE, |next| self.rank(rank, next.0));
            parts[i] = (rank, next);
            if i > 0 {
                parts[i - 1].1 = self.rank(parts[i - 1].0, rank);
            }
        }
        out.extend(parts.iter().map(|part| part.0));
    }

    /// n log n in the piece's length: a linked list of parts, and a heap of merges that may have become stale.
    fn merge_by_heap(&self, piece: &[u8], out: &mut Vec<u32>) {
        struct Part {
            id: u32,
            before: usize,
            after: usize,
        }
        let n = piece.len();
        let mut parts: Vec<Part> =
            (0..n).map(|i| Part { id: self.bytes[piece[i] as usize], before: i.wrapping_sub(1), after: i + 1 }).collect();
        // The rank of merging part i with the next; NONE also where part i has been taken by another.
        let rank = |parts: &[Part], i: usize| match parts.get(i).and_then(|part| parts.get(part.after)) {
            Some(after) if parts[i].id != NONE => self.rank(parts[i].id, after.id),
            _ => NONE,
        };
        let mut heap: BinaryHeap<Reverse<(u32, usize)>> =
            (0..n).map(|i| Reverse((rank(&parts, i), i))).filter(|entry| entry.0.0 != NONE).collect();
        while let Some(Reverse((lowest, i))) = heap.pop() {
            if rank(&parts, i) != lowest {
                continue;
            }
            let taken = parts[i].after;
            let after = parts[taken].after;
            parts[taken].id = NONE;
            parts[i].id = lowest;
            parts[i].after = after;
            if let Some(after) = parts.get_mut(after) {
                after.before = i;
            }
            for changed in [parts[i].before, i] {
                let rank = rank(&parts, changed);
                if rank != NONE {
                    heap.push(Reverse((rank, changed)));
                }
            }
        }
        out.extend(parts.iter().map(|part| part.id).filter(|&id| id != NONE));
    }
}

impl Cache {
    fn remember(&mut self, piece: &[u8], ids: &[u32]) {
        if piece.len() > SHORT {
            return;
        }
        if self.places.len() >= CACHED_PIECES {
            self.places.clear();
            self.ids.clear();
        }
        let start = self.ids.len() as u32;
        self.ids.extend_from_slice(ids);
        self.places.insert(piece.into(), (start, self.ids.len() as u32));
    }
}

/// Every way to put a token together from two others. Only lengths that occur are tried, so that a token of
/// a million bytes is no trouble.
fn merges(tokens: &[Vec<u8>], ids: &FxHashMap<Box<[u8]>, u32>) -> FxHashMap<(u32, u32), u32> {
    let lengths: BTreeSet<usize> = tokens.iter().map(Vec::len).collect();
    let mut merges = FxHashMap::default();
    for (id, token) in tokens.iter().enumerate() {
        for &length in lengths.range(..token.len()) {
            if lengths.contains(&(token.len() - length)) {
                let (left, right) = token.split_at(length);
                if let (Some(&left), Some(&right)) = (ids.get(left), ids.get(right)) {
                    merges.insert((left, right), id as u32);
                }
            }
        }
    }
    merges
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::split::GPT4_PATTERN;
    use crate::core::train::{Counter, learn};
    use proptest::prelude::*;

    fn train(text: &str, vocab_size: usize) -> Vec<Vec<u8>> {
        let mut counter = Counter::new(GPT4_PATTERN, 1).unwrap();
        counter.add(&[text], &mut || Ok(())).unwrap();
        learn(counter.finish(), vocab_size, &mut || Ok(())).unwrap()
    }

    fn alphabet() -> Vec<Vec<u8>> {
        (0..=255).map(|byte| vec![byte]).collect()
    }

    /// Looks for the best merge in the list of tokens, anew each time.
    fn slow(tokens: &[Vec<u8>], text: &str) -> Vec<u32> {
        let mut ids = Vec::new();
        let splitter = Splitter::new(GPT4_PATTERN).unwrap();
        let find = |bytes: &[u8]| tokens.iter().position(|token| token == bytes);
        splitter.split(text, |piece| {
            let mut parts: Vec<Vec<u8>> = piece.bytes().map(|byte| vec![byte]).collect();
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
    fn a_full_cache_starts_again() {
        let encoder = Encoder::new(alphabet(), GPT4_PATTERN, vec![]).unwrap();
        let text: String = (0..CACHED_PIECES + 1000).map(|i| format!(" {}", i.to_string().replace(char::is_numeric, "x") + "!?")).collect();
        assert_eq!(encoder.encode(&text).len(), text.len());
        let mut cache = Cache::default();
        for i in 0..CACHED_PIECES as u32 + 1 {
            cache.remember(&i.to_le_bytes(), &[i]);
        }
        assert_eq!(cache.places.len(), 1);
        assert_eq!(cache.ids, [CACHED_PIECES as u32]);
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
            prop_assert_eq!(encoder.whole.len(), tokens.len());
        }

        #[test]
        fn any_list_of_tokens(more in prop::collection::btree_set("[ab]{2,5}", 0..20), text in "[ab]{0,40}|[ab]{120,160}") {
            let mut tokens = alphabet();
            tokens.extend(more.into_iter().map(String::into_bytes));
            let encoder = Encoder::new(tokens.clone(), GPT4_PATTERN, vec![]).unwrap();
            prop_assert_eq!(encoder.encode(&text), slow(&tokens, &text));
        }

        #[test]
        fn scan_equals_heap(text in "[abc]{0,100}") {
            let encoder = Encoder::new(train(&text, 280), GPT4_PATTERN, vec![]).unwrap();
            let (mut by_scan, mut by_heap) = (Vec::new(), Vec::new());
            encoder.merge_by_scan(text.as_bytes(), &mut Vec::new(), &mut by_scan);
            encoder.merge_by_heap(text.as_bytes(), &mut by_heap);
            prop_assert_eq!(by_scan, by_heap);
        }

        #[test]
        fn batches_equal_single_texts(texts in prop::collection::vec(any::<String>(), 0..20), threads in 0usize..4) {
            let encoder = Encoder::new(train(&texts.concat(), 300), GPT4_PATTERN, vec![]).unwrap();
            let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
            let parts = encoder.encode_batch(&texts, threads, &mut || Ok(())).unwrap();
            let single: Vec<Vec<u32>> = texts.iter().map(|text| encoder.encode(text)).collect();
            prop_assert_eq!(parts.iter().flat_map(|part| part.ids.clone()).collect::<Vec<_>>(), single.concat());
            prop_assert_eq!(parts.iter().flat_map(|part| part.lengths.clone()).collect::<Vec<_>>(), single.iter().map(Vec::len).collect::<Vec<_>>());
            for (text, ids) in texts.iter().zip(single) {
                prop_assert_eq!(encoder.decode(ids.into_iter().map(i64::from)).unwrap(), text.as_bytes());
            }
        }
    }
}
