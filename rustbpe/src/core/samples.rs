//! Vocabularies and texts for tests.

use super::text::Text;

/// The 256 bytes as tokens.
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

/// A text in all the ways that can hold it.
pub struct Held {
    utf8: String,
    latin1: Option<Vec<u8>>,
    ucs2: Option<Vec<u16>>,
    ucs4: Vec<u32>,
}

impl Held {
    pub fn new(text: &str) -> Self {
        Held {
            utf8: text.into(),
            latin1: text.chars().map(|c| u8::try_from(u32::from(c)).ok()).collect(),
            ucs2: text.chars().map(|c| u16::try_from(u32::from(c)).ok()).collect(),
            ucs4: text.chars().map(u32::from).collect(),
        }
    }

    /// One after the other.
    pub fn all(&self) -> impl Iterator<Item = Text<'_>> + Clone {
        let latin1 = self.latin1.as_deref().map(Text::Latin1);
        let ucs2 = self.ucs2.as_deref().map(Text::Ucs2);
        [Some(Text::Utf8(&self.utf8)), latin1, ucs2, Some(Text::Ucs4(&self.ucs4))].into_iter().flatten()
    }
}
