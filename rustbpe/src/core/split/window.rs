//! GPT-4's split of 64 bytes of a text at a time.
//!
//! Each class of characters is a set of 64 bits; the pattern's rules about neighbours are shifts and additions of these sets.

use super::runs::contraction;
use crate::core::bits::ones;
use crate::core::boundaries::Boundaries;
use crate::core::memory;
use crate::core::unicode::{Class, Classes, decode};

/// Bytes of a window.
const WIDTH: usize = 64;

/// The characters of `text[at..]` by class, bit 0 for the one at `at`; the bit of each is that of its first byte.
pub struct Window<'t> {
    text: &'t [u8],
    at: usize,
    bytes: [u8; WIDTH],
    letter: u64,
    number: u64,
    space: u64,
    newline: u64,
    other: u64,
    /// First bytes of characters beyond ASCII.
    wide: u64,
    /// All bytes of characters but their first.
    continuation: u64,
}

impl<'t> Window<'t> {
    /// A character starts at `at` < `text.len()`.
    #[inline]
    pub fn new(classes: &Classes, text: &'t [u8], at: usize) -> Self {
        let there = text.len().min(at + WIDTH) - at;
        let bytes = match text.get(at..at + WIDTH).and_then(|bytes| bytes.try_into().ok()) {
            Some(bytes) => bytes,
            None => {
                let mut bytes = [0; WIDTH];
                bytes[..there].copy_from_slice(&text[at..]);
                bytes
            }
        };
        let high = memory::mask(&bytes, |byte| byte >= 0x80);
        let letter = memory::mask(&bytes, |byte| (byte | 0x20).wrapping_sub(b'a') < 26);
        let number = memory::mask(&bytes, |byte| byte.wrapping_sub(b'0') < 10);
        let space = memory::mask(&bytes, |byte| byte == b' ' || byte == b'\t' || byte == 0x0B || byte == 0x0C);
        let newline = memory::mask(&bytes, |byte| byte == b'\n' || byte == b'\r');
        let other = u64::MAX >> (WIDTH - there) & !(letter | number | space | newline | high);
        let mut window = Window { text, at, bytes, letter, number, space, newline, other, wide: 0, continuation: 0 };
        if high != 0 {
            window.continuation = memory::mask(&bytes, |byte| byte & 0xC0 == 0x80);
            window.wide = high & !window.continuation;
            for place in ones(window.wide) {
                let class = classes.class(decode(text, at + place).0);
                let bit = |of| u64::from(class == of) << place;
                window.letter |= bit(Class::Letter);
                window.number |= bit(Class::Number);
                window.space |= bit(Class::Space);
                window.other |= bit(Class::Other);
            }
        }
        window
    }

    /// Where pieces of GPT-4's split start, as far as the window tells. Bit 0, where one must start, is always among them;
    /// where it is alone, the window does not tell where that piece ends. `digits` is how many numbers a piece may hold.
    #[inline]
    pub fn piece_starts(&self, digits: usize) -> u64 {
        let &Window { letter, number, space, newline, other, .. } = self;
        let after = |some| self.after(some);
        let (after_letter, after_number, after_space, after_other) = (after(letter), after(number), after(space), after(other));

        //  ?[^\s\p{L}\p{N}]++[\r\n]*
        let other_start = other & !(after_other | memory::mask(&self.bytes, |byte| byte == b' ') << 1);
        let newline = newline & newline.wrapping_add(newline & after_other);
        // [^\r\n\p{L}\p{N}]?+\p{L}+
        let letter_start = letter & !(after_letter | after_space | after(other_start));
        // \p{N}{1,digits}
        let mut number_start = number & !after_number;
        let mut group = number_start;
        while group != 0 {
            for _ in 0..digits {
                group = after(group) & number;
            }
            number_start |= group;
        }
        // White space: where it starts, its last character before other text, and what follows its last line break.
        let white_start = (space | newline) & !(after_space | after(newline));
        let last_space = self.before(after_space & (letter | number | other));
        let mut starts = 1 | other_start | letter_start | number_start | white_start | last_space;
        for place in ones(space & newline << 1) {
            let end = place + (self.whole(space) >> place).trailing_ones() as usize;
            starts |= u64::from(end >= WIDTH || self.newline >> end & 1 == 0) << place;
        }
        // '(?i:[sdmt]|ll|ve|re)
        for place in ones(other_start & memory::mask(&self.bytes, |byte| byte == b'\'')) {
            if let Some(length) = contraction(self.text.get(self.at + place + 1..).unwrap_or_default()) {
                starts |= 1u64.checked_shl((place + 1 + length) as u32).unwrap_or(0);
            }
        }
        // All of this is certain up to the last character that follows one that is not white space, and is not in one run with it.
        let text = letter | number | other;
        let certain = after(text) & self.all() & !(letter & after_letter) & !(other & after_other);
        starts & u64::MAX.checked_shr(certain.leading_zeros()).unwrap_or(1)
    }

    /// The characters before which no merge crosses the boundary. Of those at bit 0 and at the window's end nothing is said.
    #[inline]
    pub fn uncrossed(&self, boundaries: &Boundaries) -> u64 {
        let mut uncrossed = 0;
        for place in ones((self.wide | self.after(self.wide) & self.all()) & !1) {
            uncrossed |= u64::from(!boundaries.crossed(self.text, self.at + place)) << place;
        }
        uncrossed
    }

    #[inline(always)]
    fn all(&self) -> u64 {
        self.letter | self.number | self.space | self.newline | self.other
    }

    /// The characters after `some`: what is added behind a first byte ripples through those that continue it.
    #[inline(always)]
    fn after(&self, some: u64) -> u64 {
        (some << 1).wrapping_add(self.continuation) & !self.continuation
    }

    /// The characters before `some`.
    #[inline(always)]
    fn before(&self, some: u64) -> u64 {
        let back = |some: u64| some & !self.continuation | (some & self.continuation) >> 1;
        if self.continuation == 0 { some >> 1 } else { back(back(back(some >> 1))) }
    }

    /// All bytes of `some` characters.
    #[inline(always)]
    fn whole(&self, some: u64) -> u64 {
        let more = |some: u64| some | some << 1 & self.continuation;
        if self.continuation == 0 { some } else { more(more(more(some))) }
    }
}
