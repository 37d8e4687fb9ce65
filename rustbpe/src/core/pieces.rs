//! Pieces ready to be looked up: short ones as numbers, found by one comparison and kept without an allocation each.

use super::boundaries::Boundaries;
use super::split::Splitter;

/// Pieces of at most this many bytes have a key.
pub const SHORT: usize = 15;

/// So many lowest bytes, all bits of them set.
const LOWEST: [u128; SHORT + 1] = {
    let mut masks = [0; SHORT + 1];
    let mut length = 1;
    while length <= SHORT {
        masks[length] = masks[length - 1] << 8 | 0xFF;
        length += 1;
    }
    masks
};

/// The bytes of `text[start..end]`, lowest first, and their number in the highest byte; never 0. At most `SHORT` bytes.
#[inline]
pub fn key(text: &[u8], start: usize, end: usize) -> u128 {
    let length = end - start;
    let bytes = match text.get(start..start + 16).and_then(|bytes| bytes.try_into().ok()) {
        Some(bytes) => u128::from_le_bytes(bytes) & LOWEST[length & SHORT],
        None => {
            let mut bytes = [0; 16];
            bytes[..length].copy_from_slice(&text[start..end]);
            u128::from_le_bytes(bytes)
        }
    };
    bytes | (length as u128) << 120
}

/// The bytes of a key, and how many of them count.
pub fn unpack(key: u128) -> ([u8; 16], usize) {
    (key.to_le_bytes(), (key >> 120) as usize)
}

/// Both halves of the product of the key's halves. The constants hold bytes that no UTF-8 has, so that no text makes a factor 0.
#[inline]
pub fn hash(key: u128) -> u64 {
    let low = key as u64 ^ 0xFF51_AFD7_ED55_8CCD;
    let high = (key >> 64) as u64 ^ 0xFFCE_B9FE_1A85_EC53;
    let product = u128::from(low) * u128::from(high);
    product as u64 ^ (product >> 64) as u64
}

/// The hash of any bytes, 16 at a time.
pub fn hash_bytes(bytes: &[u8]) -> u64 {
    let mut state = bytes.len() as u64;
    for start in (0..bytes.len()).step_by(SHORT) {
        state = hash(key(bytes, start, bytes.len().min(start + SHORT))) ^ state.rotate_left(23).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    }
    state
}

/// One piece of a text, ready to be looked up.
#[derive(Clone, Copy)]
pub struct Piece {
    pub start: usize,
    pub end: usize,
    /// 0 for a piece that is not short.
    pub key: u128,
    /// Of the key.
    pub hash: u64,
}

/// Pieces that are split off before any of them is looked up: the processor then waits for many places of a table at once.
const AHEAD: usize = 128;

/// Splits a text, further at the `boundaries` that no merge crosses, and calls `work` with its pieces, several at a time, in order.
#[inline]
pub fn split(splitter: &Splitter, text: &str, boundaries: Option<&Boundaries>, mut work: impl FnMut(&[Piece])) {
    let mut pieces = Vec::with_capacity(AHEAD);
    splitter.split_further(text, boundaries, |start, end| {
        let key = if end - start <= SHORT { key(text.as_bytes(), start, end) } else { 0 };
        pieces.push(Piece { start, end, key, hash: hash(key) });
        if pieces.len() == AHEAD {
            work(&pieces);
            pieces.clear();
        }
    });
    work(&pieces);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn keys_stand_for_exactly_their_bytes(text in prop::collection::vec(any::<u8>(), 1..60), start in 0usize..60, length in 1usize..=SHORT) {
            let start = start % text.len();
            let end = text.len().min(start + length);
            let (bytes, length) = unpack(key(&text, start, end));
            prop_assert_eq!(&bytes[..length], &text[start..end]);
            prop_assert_eq!(key(&text, start, end), key(&text[start..end], 0, end - start));
        }
    }
}
