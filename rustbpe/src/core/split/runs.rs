//! Where runs of characters and contractions end, one character after the other.

use crate::core::unicode::Class::{self, Letter};
use crate::core::unicode::Classes;

/// The end of the run of `class` characters that starts at `at`.
#[inline]
pub fn class_end(classes: &Classes, text: &[u8], mut at: usize, class: Class) -> usize {
    while let Some((found, width)) = classes.look(text, at) {
        if found != class {
            break;
        }
        at += width;
    }
    at
}

/// The end of the run of letters that starts at `at`.
#[inline]
pub fn letters_end(classes: &Classes, text: &[u8], mut at: usize) -> usize {
    loop {
        while let Some(sixteen) = text.get(at..at + 16).and_then(|bytes| bytes.try_into().ok()) {
            let length = not_letters(u128::from_le_bytes(sixteen)).trailing_zeros() as usize / 8;
            at += length;
            if length < 16 {
                break;
            }
        }
        loop {
            match classes.look(text, at) {
                Some((Letter, 1)) => {
                    at += 1;
                    break;
                }
                Some((Letter, width)) => at += width,
                _ => return at,
            }
        }
    }
}

/// The highest bit of each of 16 bytes that is no ASCII letter.
#[inline]
fn not_letters(sixteen: u128) -> u128 {
    const fn each(byte: u8) -> u128 {
        u128::from_ne_bytes([byte; 16])
    }
    let low = (sixteen | each(0x20)) & each(0x7F);
    // A byte's highest bit: below a, above z, not ASCII.
    (!(low + each(0x1F)) | (low + each(0x05)) | sixteen) & each(0x80)
}

/// The end of the run of units equal to the one at `at`, or a place up to 31 units before it. Of UTF-8 only ASCII is ever skipped.
#[inline]
pub fn skip_equal<U: Copy + PartialEq>(text: &[U], mut at: usize) -> usize {
    const TOGETHER: usize = 32;
    let Some(&first) = text.get(at) else { return at };
    let are_equal = |some: &[U]| some.iter().fold(true, |all, &unit| all & (unit == first));
    while text.get(at..at + TOGETHER).is_some_and(are_equal) {
        at += TOGETHER;
    }
    at
}

/// The length of a contraction's letters at the start of `rest`. U+017F (ſ) is an s to a regex that ignores case.
#[inline]
pub fn contraction(rest: &[u8]) -> Option<usize> {
    match *rest {
        [b's' | b'S' | b'd' | b'D' | b'm' | b'M' | b't' | b'T', ..] => Some(1),
        [0xC5, 0xBF, ..] => Some(2),
        [b'l' | b'L', b'l' | b'L', ..] => Some(2),
        [b'v' | b'V' | b'r' | b'R', b'e' | b'E', ..] => Some(2),
        _ => None,
    }
}
