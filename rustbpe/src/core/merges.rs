//! The merge table of a vocabulary: pairs of neighbouring tokens and the tokens that they merge into.
//!
//! The rank of a merge, which decides what merges first, is the id of the token that it makes.

use std::collections::BTreeSet;

use rustc_hash::FxHashMap;

use super::{memory, pieces};

/// No merge.
pub const NONE: u32 = u32::MAX;
/// Bits of an id.
pub const ID_BITS: u32 = 21;
/// For longer tokens, all pairs that form them are kept.
const LONGEST: usize = 128;

/// Token ids of single bytes and of merged pairs.
pub struct Merges {
    bytes: [u32; 256],
    /// The id of two bytes, by first << 8 | second; NONE if they are not a token.
    byte_pairs: Vec<u32>,
    pairs: PairTable,
}

impl Merges {
    /// `bytes` and `ids` have the ids of single bytes and of all tokens.
    ///
    /// Keeps for each token the pair that it is merged from when encoded alone. It never comes from another pair: where it appears, no
    /// merge has crossed its ends before, so that its merges were the same as alone.
    pub fn new(tokens: &[Vec<u8>], bytes: [u32; 256], ids: &FxHashMap<&[u8], u32>) -> Self {
        let all = all_pairs(tokens, ids);
        let table = PairTable::new(&all);
        let alone = |ways: &[(u64, u64)]| {
            let token = &tokens[ways[0].1 as usize];
            if ways.len() == 1 || token.len() > LONGEST {
                return ways.to_vec(); // one too many does no harm
            }
            let mut ids: Vec<u32> = token.iter().map(|&byte| bytes[usize::from(byte)]).collect();
            while ids.len() > 2 && table.merge_lowest(&mut ids).is_some() {}
            let pair = (ids.len() == 2).then(|| pair_of(ids[0], ids[1]));
            ways.iter().copied().filter(|way| Some(way.0) == pair).collect()
        };
        let pairs = PairTable::new(&all.chunk_by(|one, next| one.1 == next.1).flat_map(alone).collect::<Vec<_>>());
        let mut byte_pairs = vec![NONE; 1 << 16];
        for (&token, &id) in ids {
            if let &[first, second] = token {
                byte_pairs[usize::from(first) << 8 | usize::from(second)] = id;
            }
        }
        Merges { bytes, byte_pairs, pairs }
    }

    /// The id of a single byte.
    #[inline]
    pub fn byte(&self, byte: u8) -> u32 {
        self.bytes[usize::from(byte)]
    }

    /// The id of two bytes put together; NONE where that is no token.
    #[inline]
    pub fn byte_pair(&self, pair: &[u8]) -> u32 {
        self.byte_pairs[usize::from(pair[0]) << 8 | usize::from(pair[1])]
    }

    /// The id that two tokens merge into; NONE where they do not merge.
    #[inline]
    pub fn get(&self, left: u32, right: u32) -> u32 {
        self.pairs.get(left, right)
    }
}

/// All pairs of tokens that form a token, by id. Only existing lengths are tried, so that a token of a million
/// bytes is cheap.
fn all_pairs(tokens: &[Vec<u8>], ids: &FxHashMap<&[u8], u32>) -> Vec<(u64, u64)> {
    let lengths: BTreeSet<usize> = tokens.iter().map(Vec::len).collect();
    let mut found = Vec::new();
    for (id, token) in tokens.iter().enumerate() {
        for &length in lengths.range(..token.len()) {
            if lengths.contains(&(token.len() - length)) {
                let (left, right) = token.split_at(length);
                if let (Some(&left), Some(&right)) = (ids.get(left), ids.get(right)) {
                    found.push((pair_of(left, right), id as u64));
                }
            }
        }
    }
    found
}

/// Two ids as one number.
#[inline]
fn pair_of(left: u32, right: u32) -> u64 {
    u64::from(left) << ID_BITS | u64::from(right)
}

/// Pairs of ids, each with the id that it merges into: open addressing, at most half full.
struct PairTable {
    /// Left id, right id and theirs together, 21 bits each: eight to a line of the processor's caches. FREE where there is none.
    slots: Vec<u64>,
    /// Eight bits for each slot, one of them set for each pair: what most pairs that are no token are told by, from far less memory.
    bits: Vec<u64>,
}

const FREE: u64 = u64::MAX;

impl PairTable {
    fn new(found: &[(u64, u64)]) -> Self {
        let size = (2 * found.len()).next_power_of_two().max(2);
        let mut table = PairTable { slots: memory::filled(size, FREE), bits: vec![0; size.div_ceil(8)] };
        for &(pair, id) in found {
            let hash = pieces::hash(pair.into());
            let (word, bit) = table.bit(hash);
            table.bits[word] |= bit;
            let at = table.place(pair, hash);
            table.slots[at] = pair << ID_BITS | id;
        }
        table
    }

    /// Merges the two neighbours of lowest rank, of several the leftmost, and returns that rank; None where nothing merges.
    fn merge_lowest(&self, ids: &mut Vec<u32>) -> Option<u32> {
        let ranks = ids.windows(2).zip(0..).map(|(pair, at)| (self.get(pair[0], pair[1]), at));
        let (rank, at) = ranks.min().filter(|&(rank, _)| rank != NONE)?;
        ids.splice(at..at + 2, [rank]);
        Some(rank)
    }

    /// The word and the bit of `bits` that stand for a hash.
    #[inline]
    fn bit(&self, hash: u64) -> (usize, u64) {
        ((hash >> 24) as usize & (self.bits.len() - 1), 1 << (hash >> 58))
    }

    /// Where a pair is, or would be.
    #[inline]
    fn place(&self, pair: u64, hash: u64) -> usize {
        let mut at = hash as usize & (self.slots.len() - 1);
        while self.slots[at] >> ID_BITS != pair && self.slots[at] != FREE {
            at = (at + 1) & (self.slots.len() - 1);
        }
        at
    }

    /// The id that two tokens merge into; NONE where they do not merge.
    #[inline]
    fn get(&self, left: u32, right: u32) -> u32 {
        let pair = pair_of(left, right);
        let hash = pieces::hash(pair.into());
        let (word, bit) = self.bit(hash);
        if self.bits[word] & bit == 0 {
            return NONE;
        }
        match self.slots[self.place(pair, hash)] {
            FREE => NONE,
            slot => (slot & ((1 << ID_BITS) - 1)) as u32,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::samples::alphabet;
    use proptest::prelude::*;

    /// The merges of tokens that begin with the alphabet.
    fn merges(tokens: &[Vec<u8>]) -> Merges {
        let bytes = std::array::from_fn(|byte| byte as u32);
        let ids = tokens.iter().map(Vec::as_slice).zip(0..).collect();
        Merges::new(tokens, bytes, &ids)
    }

    proptest! {
        #[test]
        fn a_token_comes_from_the_pair_that_merging_it_alone_ends_with(more in prop::collection::hash_set("[abc]{2,6}", 0..30)) {
            let mut tokens = alphabet();
            tokens.extend(more.into_iter().map(String::into_bytes)); // in any order
            let ids: FxHashMap<&[u8], u32> = tokens.iter().map(Vec::as_slice).zip(0..).collect();
            let merges = merges(&tokens);
            for (token, id) in tokens.iter().zip(0..).skip(256) {
                let mut parts: Vec<&[u8]> = token.chunks(1).collect();
                let mut last = None;
                while let Some((_, at)) = (1..parts.len()).filter_map(|at| Some((ids.get(&*parts[at - 1..=at].concat())?, at))).min() {
                    last = Some((ids[parts[at - 1]], ids[parts[at]]));
                    let start = parts[..at - 1].iter().map(|part| part.len()).sum::<usize>();
                    let length = parts[at - 1].len() + parts.remove(at).len();
                    parts[at - 1] = &token[start..start + length];
                }
                let whole = last.filter(|_| parts.len() == 1);
                for (&left, &right) in (1..token.len()).filter_map(|at| Some((ids.get(&token[..at])?, ids.get(&token[at..])?))) {
                    let found = merges.get(left, right);
                    // The only way there is may stay although it never comes up.
                    prop_assert!(found == id || found == NONE);
                    prop_assert!(Some((left, right)) != whole || found == id);
                }
                if whole.is_some() {
                    let ways = (1..token.len()).filter_map(|at| Some((*ids.get(&token[..at])?, *ids.get(&token[at..])?)));
                    prop_assert_eq!(ways.filter(|&(left, right)| merges.get(left, right) == id).count(), 1);
                }
            }
        }
    }
}
