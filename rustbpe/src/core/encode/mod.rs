//! Text into token ids, and ids into bytes.
//!
//! `Encoder` takes a text piece by piece: it looks each up in a thread's `cache`, and merges those that are new (`merge`, and
//! `merge_long` for pieces of more than 128 bytes). `vocabulary` checks the tokens, and decodes.

mod cache;
mod merge;
mod merge_long;
#[cfg(test)]
mod tests;
mod vocabulary;

use std::sync::Mutex;

use super::boundaries::Boundaries;
use super::error::Result;
use super::id::Id;
use super::memory;
use super::merges::Merges;
use super::parallel::{Check, parallel, thread_count};
use super::pieces;
use super::split::Splitter;
use super::split::parts::{Part, group_by_length};
use super::text::{Text, no_utf8};
use cache::{IDS, LONGEST, LongCache, ShortCache};
use merge::merge;
use merge_long::merge_run;
use vocabulary::{Vocabulary, byte_ids, special_tokens, token_ids};

/// Text per job of a thread, in bytes or characters.
const JOB_LENGTH: usize = 1 << 16;

/// A vocabulary that encodes and decodes. The rank of a token, which decides what merges first, is its id.
pub struct Encoder {
    vocabulary: Vocabulary,
    splitter: Splitter,
    merges: Merges,
    boundaries: Boundaries,
    /// Workers that no thread is using; their caches stay warm from call to call.
    idle: Mutex<Vec<Worker>>,
}

/// One thread's caches, in bounded memory, and its working memory.
#[derive(Default)]
struct Worker {
    short: ShortCache,
    long: LongCache,
    /// The ids of the current piece.
    merged: Vec<u32>,
    ranks: Vec<u32>,
    /// The UTF-8 of the current text.
    utf8: Vec<u8>,
}

/// Encoded documents in sequence.
#[derive(Default)]
pub struct Encoded<I> {
    pub ids: Vec<I>,
    /// The end of each document in `ids`. Ids after the last end belong to a document that the next `Encoded` continues.
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
        let ids = token_ids(&tokens)?;
        let bytes = byte_ids(&ids)?;
        let specials = special_tokens(specials, tokens.len())?;
        let merges = Merges::new(&tokens, bytes, &ids);
        drop(ids);
        let boundaries = Boundaries::new(&tokens);
        Ok(Encoder { vocabulary: Vocabulary::new(tokens, specials), splitter, merges, boundaries, idle: Mutex::default() })
    }

    /// The highest id, specials included, plus one.
    pub fn n_vocab(&self) -> usize {
        self.vocabulary.size()
    }

    /// Whether every id fits into 16 bits.
    pub fn fits_u16(&self) -> bool {
        self.n_vocab() <= 1 << 16
    }

    pub fn encode(&self, text: &str) -> Vec<u32> {
        let mut ids = Vec::new();
        let mut workers = self.take_workers(1);
        for worker in &mut workers {
            self.encode_into(text, worker, &mut ids);
        }
        self.keep_workers(workers);
        ids
    }

    /// The documents in order, in one or several `Encoded`; a long one is spread over threads, and may be in several of them.
    /// `threads` 0 is every core. `I` must hold every id. Errors: `Surrogate`.
    pub fn encode_batch<I: Id>(&self, texts: &[Text], threads: usize, check: &mut Check) -> Result<Vec<Encoded<I>>> {
        let parts = self.splitter.parts(texts, JOB_LENGTH);
        let jobs = group_by_length(&parts, JOB_LENGTH);
        let mut workers = self.take_workers(thread_count(threads).min(jobs.len()));
        let result = parallel(&mut workers, jobs.len(), check, |worker, job| {
            let parts = &parts[jobs[job].clone()];
            let length: usize = parts.iter().map(|part| part.text.length()).sum();
            let mut encoded = Encoded { ids: Vec::with_capacity(length / 4), ends: Vec::with_capacity(parts.len()), bytes: 0 };
            let mut scratch = std::mem::take(&mut worker.utf8);
            for &Part { text, last } in parts {
                let text = text.utf8(&mut scratch).ok_or_else(|| no_utf8(texts))?;
                encoded.bytes += text.len();
                self.encode_into(text, worker, &mut encoded.ids);
                if last {
                    encoded.ends.push(encoded.ids.len());
                }
            }
            worker.utf8 = scratch;
            Ok(encoded)
        });
        self.keep_workers(workers);
        result
    }

    /// The bytes of `ids`; a special token gives its name.
    ///
    /// Errors: `Invalid` for an id that is not in the vocabulary.
    pub fn decode(&self, ids: impl IntoIterator<Item = i64>) -> Result<Vec<u8>> {
        self.vocabulary.decode(ids)
    }

    fn take_workers(&self, n: usize) -> Vec<Worker> {
        let mut idle = self.idle.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        (0..n).map(|_| idle.pop().unwrap_or_default()).collect()
    }

    fn keep_workers(&self, workers: Vec<Worker>) {
        self.idle.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).extend(workers);
    }

    fn encode_into<I: Id>(&self, text: &str, worker: &mut Worker, out: &mut Vec<I>) {
        // In a script that is rare in the vocabulary's training text each character is a piece, for which the cache is hit much more
        // often than for whole words.
        pieces::split(&self.splitter, text, Some(&self.boundaries), |pieces| {
            pieces.iter().for_each(|piece| worker.short.fetch(piece.hash));
            for piece in pieces {
                let bytes = &text.as_bytes()[piece.start..piece.end];
                if piece.key != 0 {
                    self.encode_short(bytes, piece.key, piece.hash, worker, out);
                } else if !merge_run(&self.merges, bytes, out) {
                    self.encode_long(bytes, worker, out);
                }
            }
        });
    }

    #[inline(always)]
    fn encode_short<I: Id>(&self, piece: &[u8], key: u128, hash: u64, worker: &mut Worker, out: &mut Vec<I>) {
        match worker.short.get(key, hash) {
            Some((ids, n)) if n <= IDS => memory::append(out, ids.map(I::new), n),
            Some(_) => self.encode_long(piece, worker, out),
            None => {
                self.merge(piece, worker);
                out.extend(worker.merged.iter().map(|&id| I::new(id)));
                worker.short.remember(key, hash, &worker.merged);
            }
        }
    }

    /// A piece that is not short, or has more ids than are remembered of those.
    fn encode_long<I: Id>(&self, piece: &[u8], worker: &mut Worker, out: &mut Vec<I>) {
        let hash = (piece.len() <= LONGEST).then(|| pieces::hash_bytes(piece));
        if hash.is_some_and(|hash| worker.long.copy(piece, hash, out)) {
            return;
        }
        self.merge(piece, worker);
        out.extend(worker.merged.iter().map(|&id| I::new(id)));
        if let Some(hash) = hash {
            worker.long.remember(piece, hash, &worker.merged);
        }
    }

    /// Leaves the ids of a piece in `worker.merged`.
    fn merge(&self, piece: &[u8], worker: &mut Worker) {
        worker.merged.clear();
        merge(&self.merges, piece, &mut worker.ranks, &mut worker.merged);
    }
}
