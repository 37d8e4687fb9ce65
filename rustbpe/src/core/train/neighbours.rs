//! Neighbouring tokens of a merge's occurrences.

use super::sequence::NONE;

/// A merge's neighbours on one side: count of each token, and the list for pairs with it.
pub struct Neighbours {
    /// By token.
    counts: Vec<i64>,
    /// The tokens whose counts are not 0.
    seen: Vec<u32>,
    /// By token, the merge's new pair with it; NONE if it is not frequent.
    pairs: Vec<u32>,
}

impl Neighbours {
    /// Tables for this number of `tokens`.
    pub fn new(tokens: usize) -> Self {
        Neighbours { counts: vec![0; tokens], seen: Vec::new(), pairs: vec![NONE; tokens] }
    }

    /// Adds `count` to a token's count. NONE, at the end of a piece, is not counted.
    #[inline]
    pub fn add(&mut self, token: u32, count: i64) {
        if token == NONE {
            return;
        }
        let total = &mut self.counts[token as usize];
        if *total == 0 {
            self.seen.push(token);
        }
        *total += count;
    }

    /// The count of a token.
    #[inline]
    pub fn count(&self, token: u32) -> i64 {
        self.counts[token as usize]
    }

    /// Calls `visit` with each token and its count; the result is the token's new pair.
    #[inline]
    pub fn visit(&mut self, mut visit: impl FnMut(u32, i64) -> Option<usize>) {
        for &token in &self.seen {
            if let Some(pair) = visit(token, self.counts[token as usize]) {
                self.pairs[token as usize] = pair as u32;
            }
        }
    }

    /// The new pair of a token, if there is one.
    #[inline]
    pub fn pair(&self, token: u32) -> Option<usize> {
        self.pairs.get(token as usize).copied().filter(|&pair| pair != NONE).map(|pair| pair as usize)
    }

    /// Clears all, for the next merge.
    pub fn clear(&mut self) {
        for token in self.seen.drain(..) {
            self.counts[token as usize] = 0;
            self.pairs[token as usize] = NONE;
        }
    }
}
