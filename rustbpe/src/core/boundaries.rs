//! Boundaries between characters that a vocabulary never merges across; the text between two of them is encoded separately.

use super::unicode::decode;

/// The boundaries between characters that some token crosses. No merge crosses the others.
/// All boundaries between two ASCII characters count as crossed: in words they are, and words are looked up whole.
pub struct Boundaries {
    /// A bit for two neighbouring bytes between which some token has a boundary that is one byte from its start or end.
    near_ends: Vec<u64>,
    /// A bit for the hash of four neighbouring bytes in whose middle some token has a boundary.
    inside: Vec<u64>,
}

impl Boundaries {
    pub fn new(tokens: &[Vec<u8>]) -> Self {
        let mut near_ends = vec![0; (1 << 16) / 64];
        let mut inside = Vec::new();
        for token in tokens {
            for at in (1..token.len()).filter(|&at| !matches!(token[at], 0x80..0xC0) && !(token[at - 1] | token[at]).is_ascii()) {
                match token.get(at.wrapping_sub(2)..at + 2) {
                    Some(four) => inside.push(Self::hash(four)),
                    None => {
                        let (word, bit) = Self::near(token[at - 1], token[at]);
                        near_ends[word] |= bit;
                    }
                }
            }
        }
        inside.sort_unstable();
        inside.dedup();
        // One in 16 at most, so that few other places look like one of these.
        let mut boundaries = Boundaries { near_ends, inside: vec![0; inside.len().next_power_of_two().div_ceil(4)] };
        for hash in inside {
            let (word, bit) = boundaries.bit(hash);
            boundaries.inside[word] |= bit;
        }
        boundaries
    }

    /// Whether a merge may cross the boundary before the character at `at` > 0.
    #[inline]
    pub fn crossed(&self, text: &[u8], at: usize) -> bool {
        if (text[at - 1] | text[at]).is_ascii() {
            return true;
        }
        let (word, bit) = Self::near(text[at - 1], text[at]);
        if self.near_ends[word] & bit != 0 {
            return true;
        }
        let Some(four) = text.get(at.wrapping_sub(2)..at + 2) else { return false };
        let (word, bit) = self.bit(Self::hash(four));
        self.inside[word] & bit != 0
    }

    /// The word and the bit of `near_ends` for a byte and the next.
    #[inline]
    fn near(left: u8, right: u8) -> (usize, u64) {
        (usize::from(left) << 2 | usize::from(right >> 6), 1 << (right & 63))
    }

    /// Different for different bytes.
    #[inline]
    fn hash(four: &[u8]) -> u32 {
        u32::from_le_bytes([four[0], four[1], four[2], four[3]]).wrapping_mul(0x9E37_79B1)
    }

    /// The word and the bit of `inside` for a hash.
    #[inline]
    fn bit(&self, hash: u32) -> (usize, u64) {
        ((hash >> 6) as usize & (self.inside.len() - 1), 1 << (hash >> 26))
    }
}

/// Calls `piece` with the piece from `start` to `end`, or with its parts between `boundaries` that no merge crosses.
pub fn cut(text: &str, start: usize, end: usize, boundaries: Option<&Boundaries>, piece: &mut impl FnMut(usize, usize)) {
    let text = text.as_bytes();
    let mut at = start;
    if let Some(boundaries) = boundaries.filter(|_| !text[start..end].is_ascii()) {
        let mut next = start + decode(text, start).1;
        while next < end {
            if !boundaries.crossed(text, next) {
                piece(at, next);
                at = next;
            }
            next += decode(text, next).1;
        }
    }
    piece(at, end);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::samples;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(300))]

        /// Tokens are any parts of a text, characters cut or not.
        #[test]
        fn no_token_crosses_what_is_not_crossed(
            corpus in "[aé字孖🙂 ]{1,40}",
            parts in prop::collection::vec((0usize..120, 2usize..8), 0..40),
            text in "[aé字孖学🙂 ]{1,40}",
        ) {
            let tokens = samples::with_parts(&corpus, parts);
            let boundaries = Boundaries::new(&tokens);
            let (utf8, mut not_crossed) = (text.as_bytes(), 0);
            for (at, _) in text.char_indices().skip(1) {
                let over = |token: &Vec<u8>| (1..token.len()).any(|left| at >= left && utf8[at - left..].starts_with(token));
                let crossed = boundaries.crossed(utf8, at);
                prop_assert!(crossed || !tokens.iter().any(over), "at {}", at);
                not_crossed += usize::from(!crossed);
            }
            if tokens.len() == 256 {
                let ascii = utf8.windows(2).filter(|pair| pair.is_ascii()).count();
                prop_assert_eq!(not_crossed + ascii + 1, text.chars().count());
            }
        }
    }
}
