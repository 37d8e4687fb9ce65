//! Which two neighbouring tokens merge, and into which.

use std::collections::BTreeSet;

use rustc_hash::FxHashMap;

use super::{memory, pieces};

/// No merge.
pub const NONE: u32 = u32::MAX;
/// Of tokens of more bytes, every way to put them together is kept.
const LONGEST: usize = 128;

/// The id of two neighbouring tokens' bytes put together, where merging does so: open addressing, at most half full.
pub struct Merges {
    /// Left id, right id and theirs together, 21 bits each: eight to a line of the processor's caches. FREE where there is none.
    slots: Vec<u64>,
    /// Eight bits for each slot, one of them set for each pair: what most pairs that are no token are told by, from far less memory.
    bits: Vec<u64>,
}

/// Bits of an id.
pub const ID_BITS: u32 = 21;
const FREE: u64 = u64::MAX;

impl Merges {
    /// The pair of tokens that each token comes from when it is merged alone: from another it never comes, since nothing has
    /// reached over its ends where it does come, so that all until then went as it goes alone.
    pub fn new(tokens: &[Vec<u8>], bytes: &[u32; 256], ids: &FxHashMap<&[u8], u32>) -> Self {
        let all = Self::all(tokens, ids);
        let table = Self::table(&all);
        let alone = |ways: &[(u64, u64)]| {
            let token = &tokens[ways[0].1 as usize];
            if ways.len() == 1 || token.len() > LONGEST {
                return ways.to_vec(); // one too many does no harm
            }
            let mut ids: Vec<u32> = token.iter().map(|&byte| bytes[usize::from(byte)]).collect();
            while ids.len() > 2 && table.merge_lowest(&mut ids).is_some() {}
            let pair = (ids.len() == 2).then(|| Self::pair(ids[0], ids[1]));
            ways.iter().copied().filter(|way| Some(way.0) == pair).collect()
        };
        Self::table(&all.chunk_by(|one, next| one.1 == next.1).flat_map(alone).collect::<Vec<_>>())
    }

    /// Every way to put a token together from two others, by id. Only lengths that occur are tried, so that a token of
    /// a million bytes is no trouble.
    fn all(tokens: &[Vec<u8>], ids: &FxHashMap<&[u8], u32>) -> Vec<(u64, u64)> {
        let lengths: BTreeSet<usize> = tokens.iter().map(Vec::len).collect();
        let mut found = Vec::new();
        for (id, token) in tokens.iter().enumerate() {
            for &length in lengths.range(..token.len()) {
                if lengths.contains(&(token.len() - length)) {
                    let (left, right) = token.split_at(length);
                    if let (Some(&left), Some(&right)) = (ids.get(left), ids.get(right)) {
                        found.push((Self::pair(left, right), id as u64));
                    }
                }
            }
        }
        found
    }

    fn table(found: &[(u64, u64)]) -> Self {
        let size = (2 * found.len()).next_power_of_two().max(2);
        let mut merges = Merges { slots: memory::filled(size, FREE), bits: vec![0; size.div_ceil(8)] };
        for &(pair, id) in found {
            let hash = pieces::hash(pair.into());
            let (word, bit) = merges.bit(hash);
            merges.bits[word] |= bit;
            let at = merges.place(pair, hash);
            merges.slots[at] = pair << ID_BITS | id;
        }
        merges
    }

    /// Merges the two neighbours of lowest rank, of several the leftmost, and returns that rank; None where nothing merges.
    pub fn merge_lowest(&self, ids: &mut Vec<u32>) -> Option<u32> {
        let ranks = ids.windows(2).zip(0..).map(|(pair, at)| (self.get(pair[0], pair[1]), at));
        let (rank, at) = ranks.min().filter(|&(rank, _)| rank != NONE)?;
        ids.splice(at..at + 2, [rank]);
        Some(rank)
    }

    #[inline]
    fn pair(left: u32, right: u32) -> u64 {
        u64::from(left) << ID_BITS | u64::from(right)
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

    /// NONE where they do not merge.
    #[inline]
    pub fn get(&self, left: u32, right: u32) -> u32 {
        let pair = Self::pair(left, right);
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

/// Vocabularies for tests.
#[cfg(test)]
pub mod samples {
    use super::*;

    pub fn alphabet() -> Vec<Vec<u8>> {
        (0..=255).map(|byte| vec![byte]).collect()
    }

    /// The alphabet and parts of a text, characters cut or not, by where each starts and its length.
    pub fn with_parts(corpus: &str, parts: Vec<(usize, usize)>) -> Vec<Vec<u8>> {
        let mut tokens = alphabet();
        for (start, length) in parts {
            let part = &corpus.as_bytes()[start % corpus.len()..];
            let part = part[..length.min(part.len())].to_vec();
            if !tokens.contains(&part) {
                tokens.push(part);
            }
        }
        tokens
    }

    /// What tokens that begin with the alphabet merge by, and the ids of its bytes.
    pub fn merges(tokens: &[Vec<u8>]) -> (Merges, [u32; 256]) {
        let bytes = std::array::from_fn(|byte| byte as u32);
        let ids = tokens.iter().map(Vec::as_slice).zip(0..).collect();
        (Merges::new(tokens, &bytes, &ids), bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_token_comes_from_the_pair_that_merging_it_alone_ends_with(more in prop::collection::hash_set("[abc]{2,6}", 0..30)) {
            let mut tokens = samples::alphabet();
            tokens.extend(more.into_iter().map(String::into_bytes)); // in any order
            let ids: FxHashMap<&[u8], u32> = tokens.iter().map(Vec::as_slice).zip(0..).collect();
            let (merges, _) = samples::merges(&tokens);
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
