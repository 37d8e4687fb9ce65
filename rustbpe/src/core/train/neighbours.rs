//! What stands before and after the places of a merge.

use super::sequence::NONE;

/// A merge's neighbours on one side: how often each token stood there, and where pairs with it go.
pub struct Neighbours {
    /// By token.
    counts: Vec<i64>,
    /// The tokens whose counts are not 0.
    seen: Vec<u32>,
    /// By token, which of the merge's new pairs has it; NONE for no frequent one.
    pairs: Vec<u32>,
}

impl Neighbours {
    /// For so many `tokens`.
    pub fn new(tokens: usize) -> Self {
        Neighbours { counts: vec![0; tokens], seen: Vec::new(), pairs: vec![NONE; tokens] }
    }

    /// A token stood there `count` times more. NONE, where a piece ends, is not counted.
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

    /// How often a token stood there.
    #[inline]
    pub fn count(&self, token: u32) -> i64 {
        self.counts[token as usize]
    }

    /// Calls `visit` with each token that stood there and how often; what it returns is the token's new pair.
    #[inline]
    pub fn visit(&mut self, mut visit: impl FnMut(u32, i64) -> Option<usize>) {
        for &token in &self.seen {
            if let Some(pair) = visit(token, self.counts[token as usize]) {
                self.pairs[token as usize] = pair as u32;
            }
        }
    }

    /// The new pair to write down for a token, if there is one.
    #[inline]
    pub fn pair(&self, token: u32) -> Option<usize> {
        self.pairs.get(token as usize).copied().filter(|&pair| pair != NONE).map(|pair| pair as usize)
    }

    /// Forgets all, for the next merge.
    pub fn clear(&mut self) {
        for token in self.seen.drain(..) {
            self.counts[token as usize] = 0;
            self.pairs[token as usize] = NONE;
        }
    }
}
