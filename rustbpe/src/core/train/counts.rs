//! Counts of pieces, in a table of one thread.

use rustc_hash::FxHashMap;

use crate::core::pieces;
use crate::core::split::Splitter;

#[derive(Clone, Copy, Default)]
struct Entry {
    key: [u64; 2],
    count: i64,
}

/// Counts of pieces.
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
        pieces::split(splitter, text, None, |pieces| {
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
            self.add_short(entry.wide(), pieces::hash(entry.wide()), entry.count);
        }
    }

    /// Adds all of another's counts.
    pub fn merge(&mut self, other: Counts) {
        for entry in other.short.into_iter().filter(|entry| entry.count > 0) {
            self.add_short(entry.wide(), pieces::hash(entry.wide()), entry.count);
        }
        for (piece, count) in other.long {
            *self.long.entry(piece).or_insert(0) += count;
        }
    }

    /// Bytes of all different pieces together, and their number.
    pub fn size(&self) -> (usize, usize) {
        let short: usize = self.short.iter().filter(|entry| entry.count > 0).map(|entry| pieces::unpack(entry.wide()).1).sum();
        (short + self.long.keys().map(|piece| piece.len()).sum::<usize>(), self.used + self.long.len())
    }

    /// Calls `visit` with each piece and its count: within the short ones and within the long ones, the highest count first.
    pub fn visit(self, mut visit: impl FnMut(&[u8], i64)) {
        let mut short = self.short;
        short.retain(|entry| entry.count > 0);
        short.sort_unstable_by_key(|entry| std::cmp::Reverse(entry.count));
        for entry in short {
            let (bytes, length) = pieces::unpack(entry.wide());
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
