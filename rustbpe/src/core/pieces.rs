//! Short pieces as numbers: found by one comparison, kept without an allocation each.

use rustc_hash::FxHashMap;

use super::characters::Characters;
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
fn unpack(key: u128) -> ([u8; 16], usize) {
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

/// Pieces that are cut before any of them is looked up: the processor then waits for many places of a table at once.
const AHEAD: usize = 128;

/// Cuts a text, further between `characters` that no merge joins, and calls `work` with its pieces, several at a time, in order.
#[inline]
pub fn cut(splitter: &Splitter, text: &str, characters: Option<&Characters>, mut work: impl FnMut(&[Piece])) {
    let mut pieces = Vec::with_capacity(AHEAD);
    splitter.split_apart(text, characters, |start, end| {
        let key = if end - start <= SHORT { key(text.as_bytes(), start, end) } else { 0 };
        pieces.push(Piece { start, end, key, hash: hash(key) });
        if pieces.len() == AHEAD {
            work(&pieces);
            pieces.clear();
        }
    });
    work(&pieces);
}

#[derive(Clone, Copy, Default)]
struct Entry {
    key: [u64; 2],
    count: i64,
}

/// How often each piece was seen.
#[derive(Default)]
pub struct Counts {
    /// Open addressing; a power of two, at most two thirds full.
    short: Vec<Entry>,
    used: usize,
    long: FxHashMap<Box<[u8]>, i64>,
}

impl Counts {
    /// Counts every piece of `text` once more.
    pub fn add(&mut self, splitter: &Splitter, text: &str) {
        cut(splitter, text, None, |pieces| {
            for piece in pieces {
                if piece.key != 0 {
                    self.add_short(piece.key, piece.hash, 1);
                } else {
                    let piece = &text.as_bytes()[piece.start..piece.end];
                    match self.long.get_mut(piece) {
                        Some(count) => *count += 1,
                        None => drop(self.long.insert(piece.into(), 1)),
                    }
                }
            }
        });
    }

    #[inline]
    fn add_short(&mut self, key: u128, hash: u64, count: i64) {
        if 3 * self.used >= 2 * self.short.len() {
            self.grow();
        }
        let halves = [key as u64, (key >> 64) as u64];
        let mask = self.short.len() - 1;
        let mut at = hash as usize & mask;
        loop {
            let entry = &mut self.short[at];
            if entry.key == halves {
                entry.count += count;
                return;
            }
            if entry.count == 0 {
                *entry = Entry { key: halves, count };
                self.used += 1;
                return;
            }
            at = (at + 1) & mask;
        }
    }

    fn grow(&mut self) {
        let larger = vec![Entry::default(); (2 * self.short.len()).max(1 << 12)];
        let smaller = std::mem::replace(&mut self.short, larger);
        self.used = 0;
        for entry in smaller.into_iter().filter(|entry| entry.count > 0) {
            self.add_short(entry.wide(), hash(entry.wide()), entry.count);
        }
    }

    /// Adds all of another's counts.
    pub fn merge(&mut self, other: Counts) {
        for entry in other.short.into_iter().filter(|entry| entry.count > 0) {
            self.add_short(entry.wide(), hash(entry.wide()), entry.count);
        }
        for (piece, count) in other.long {
            *self.long.entry(piece).or_insert(0) += count;
        }
    }

    /// Bytes of all different pieces together, and their number.
    pub fn size(&self) -> (usize, usize) {
        let short: usize = self.short.iter().filter(|entry| entry.count > 0).map(|entry| unpack(entry.wide()).1).sum();
        (short + self.long.keys().map(|piece| piece.len()).sum::<usize>(), self.used + self.long.len())
    }

    /// Calls `visit` with each piece and its count: within the short ones and within the long ones, the highest count first.
    pub fn visit(self, mut visit: impl FnMut(&[u8], i64)) {
        let mut short = self.short;
        short.retain(|entry| entry.count > 0);
        short.sort_unstable_by_key(|entry| std::cmp::Reverse(entry.count));
        for entry in short {
            let (bytes, length) = unpack(entry.wide());
            visit(&bytes[..length], entry.count);
        }
        let mut long: Vec<_> = self.long.into_iter().collect();
        long.sort_unstable_by_key(|piece| std::cmp::Reverse(piece.1));
        for (piece, count) in long {
            visit(&piece, count);
        }
    }
}

impl Entry {
    fn wide(&self) -> u128 {
        u128::from(self.key[0]) | u128::from(self.key[1]) << 64
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::split::GPT4_PATTERN;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    proptest! {
        #[test]
        fn keys_stand_for_exactly_their_bytes(text in prop::collection::vec(any::<u8>(), 1..60), start in 0usize..60, length in 1usize..=SHORT) {
            let start = start % text.len();
            let end = text.len().min(start + length);
            let (bytes, length) = unpack(key(&text, start, end));
            prop_assert_eq!(&bytes[..length], &text[start..end]);
            prop_assert_eq!(key(&text, start, end), key(&text[start..end], 0, end - start));
        }

        #[test]
        fn counts_equal_a_plain_map(text in "[ab \\x00é]{0,300}|[ab]{1,4}|a{1,40}", other in "[ab ]{0,300}") {
            let splitter = Splitter::new(GPT4_PATTERN).unwrap();
            let (mut counts, mut more, mut expected) = (Counts::default(), Counts::default(), BTreeMap::new());
            for (text, counts) in [(&text, &mut counts), (&other, &mut more)] {
                counts.add(&splitter, text);
                splitter.split(text, |start, end| *expected.entry(text.as_bytes()[start..end].to_vec()).or_insert(0) += 1);
            }
            counts.merge(more);
            prop_assert_eq!(counts.size(), (expected.keys().map(Vec::len).sum(), expected.len()));
            let mut found = BTreeMap::new();
            counts.visit(|piece, count| assert!(found.insert(piece.to_vec(), count).is_none()));
            prop_assert_eq!(found, expected);
        }
    }

    #[test]
    fn it_grows() {
        let splitter = Splitter::new(r"\w+").unwrap();
        let mut counts = Counts::default();
        let text: String = (0..20_000).map(|i| format!("{:05}{:05}", i, i / 2)).collect::<Vec<_>>().join(" ");
        counts.add(&splitter, &text);
        counts.add(&splitter, &text);
        assert_eq!(counts.size(), (200_001, 20_001));
        let mut total = 0;
        counts.visit(|_, count| total += count);
        assert_eq!(total, 2 * (20_000 + 19_999));
    }
}
