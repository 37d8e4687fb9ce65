//! The tokens and special tokens of a vocabulary by id: checked when it is made, and joined to bytes when ids are decoded.

use std::collections::BTreeMap;

use rustc_hash::FxHashMap;

use crate::core::error::{Error, Result};
use crate::core::merges::ID_BITS;

pub struct Vocabulary {
    tokens: Vec<Box<[u8]>>,
    specials: BTreeMap<u32, String>,
    size: usize,
}

impl Vocabulary {
    /// `specials` come from `special_tokens`.
    pub fn new(tokens: Vec<Vec<u8>>, specials: BTreeMap<u32, String>) -> Self {
        let size = specials.last_key_value().map_or(0, |(&id, _)| id as usize + 1).max(tokens.len());
        Vocabulary { tokens: tokens.into_iter().map(Vec::into_boxed_slice).collect(), specials, size }
    }

    /// The highest id, specials included, plus one.
    pub fn size(&self) -> usize {
        self.size
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
                None => return Err(Error::Invalid(format!("id {id} is not in the vocabulary of {}", self.size))),
            }
        }
        Ok(bytes)
    }
}

/// The id of each token, which is its place among `tokens`.
///
/// Errors: `Invalid` for 2^21 tokens or more, an empty or a repeated one.
pub fn token_ids(tokens: &[Vec<u8>]) -> Result<FxHashMap<&[u8], u32>> {
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
    Ok(ids)
}

/// The id of each single byte. Errors: `Invalid` where one is no token.
pub fn byte_ids(ids: &FxHashMap<&[u8], u32>) -> Result<[u32; 256]> {
    let mut bytes = [0; 256];
    for (byte, id) in bytes.iter_mut().enumerate() {
        *id = *ids.get(&[byte as u8][..]).ok_or_else(|| Error::Invalid(format!("byte {byte} is not among the tokens")))?;
    }
    Ok(bytes)
}

/// The name of each special token's id. Errors: `Invalid` for an id that is one of the `tokens`, or another special's.
pub fn special_tokens(specials: Vec<(String, u32)>, tokens: usize) -> Result<BTreeMap<u32, String>> {
    let mut names = BTreeMap::new();
    for (name, id) in specials {
        if (id as usize) < tokens {
            return Err(Error::Invalid(format!("special token {name:?} has id {id}, which is a token's: there are {tokens}")));
        }
        if let Some(other) = names.insert(id, name.clone()) {
            return Err(Error::Invalid(format!("special tokens {other:?} and {name:?} both have id {id}")));
        }
    }
    Ok(names)
}
