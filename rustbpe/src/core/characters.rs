//! Between which characters a vocabulary never merges, so that what stands between two such places is encoded alone.

/// The places between characters that no token reaches over, and therefore no merge.
/// Between two ASCII characters every place counts as one that tokens reach over: in words that is so, and words are found whole.
pub struct Characters {
    /// A bit for two neighbouring bytes between which some token has a place that is one byte from its start or end.
    near_ends: Vec<u64>,
    /// A bit for the hash of four neighbouring bytes in whose middle some token has a place.
    inside: Vec<u64>,
}

impl Characters {
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
        let mut characters = Characters { near_ends, inside: vec![0; inside.len().next_power_of_two().div_ceil(4)] };
        for hash in inside {
            let (word, bit) = characters.bit(hash);
            characters.inside[word] |= bit;
        }
        characters
    }

    /// Whether a merge may reach over the place before the character at `at` > 0.
    #[inline]
    pub fn joined(&self, text: &[u8], at: usize) -> bool {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::merges::samples;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(300))]

        /// Tokens are any parts of a text, characters cut or not.
        #[test]
        fn no_token_reaches_over_what_is_not_joined(
            corpus in "[aé字孖🙂 ]{1,40}",
            parts in prop::collection::vec((0usize..120, 2usize..8), 0..40),
            text in "[aé字孖学🙂 ]{1,40}",
        ) {
            let tokens = samples::with_parts(&corpus, parts);
            let characters = Characters::new(&tokens);
            let (utf8, mut not_joined) = (text.as_bytes(), 0);
            for (at, _) in text.char_indices().skip(1) {
                let over = |token: &Vec<u8>| (1..token.len()).any(|left| at >= left && utf8[at - left..].starts_with(token));
                let joined = characters.joined(utf8, at);
                prop_assert!(joined || !tokens.iter().any(over), "at {}", at);
                not_joined += usize::from(!joined);
            }
            if tokens.len() == 256 {
                let ascii = utf8.windows(2).filter(|pair| pair.is_ascii()).count();
                prop_assert_eq!(not_joined + ascii + 1, text.chars().count());
            }
        }
    }
}
