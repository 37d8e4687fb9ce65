//! Texts as Python stores them, and their UTF-8 where it is needed.

#[cfg(test)]
mod tests;

use super::error::Error;
use super::memory;

/// A text as UTF-8, or as one number for each code point, of one, two or four bytes: so Python stores them (PEP 393).
#[derive(Clone, Copy, Debug)]
pub enum Text<'t> {
    Utf8(&'t str),
    Latin1(&'t [u8]),
    Ucs2(&'t [u16]),
    Ucs4(&'t [u32]),
}

impl<'t> From<&'t str> for Text<'t> {
    fn from(text: &'t str) -> Self {
        Text::Utf8(text)
    }
}

impl<'t> Text<'t> {
    /// The number of its units: bytes of UTF-8, or code points.
    pub fn length(self) -> usize {
        match self {
            Text::Utf8(text) => text.len(),
            Text::Latin1(text) => text.len(),
            Text::Ucs2(text) => text.len(),
            Text::Ucs4(text) => text.len(),
        }
    }

    /// The text before unit `at`, where a character starts, and the text from there on.
    pub fn split_at(self, at: usize) -> (Self, Self) {
        fn both<'t, T: ?Sized>((before, after): (&'t T, &'t T), text: impl Fn(&'t T) -> Text<'t>) -> (Text<'t>, Text<'t>) {
            (text(before), text(after))
        }
        match self {
            Text::Utf8(text) => both(text.split_at(at), Text::Utf8),
            Text::Latin1(text) => both(text.split_at(at), Text::Latin1),
            Text::Ucs2(text) => both(text.split_at(at), Text::Ucs2),
            Text::Ucs4(text) => both(text.split_at(at), Text::Ucs4),
        }
    }

    /// Its UTF-8, in `scratch` where it is not that already; None where it has none, because of a lone surrogate.
    #[inline]
    pub fn utf8<'s>(self, scratch: &'s mut Vec<u8>) -> Option<&'s str>
    where
        't: 's,
    {
        match self {
            Text::Utf8(text) => Some(text),
            Text::Latin1(text) => memory::ascii(text).or_else(|| memory::utf8(text, scratch)),
            Text::Ucs2(text) => memory::utf8(text, scratch),
            Text::Ucs4(text) => memory::utf8(text, scratch),
        }
    }

    /// The index and the value of the first unit that is no character.
    fn surrogate(self) -> Option<(usize, u32)> {
        fn first<U: Copy + Into<u32>>(text: &[U]) -> Option<(usize, u32)> {
            text.iter().map(|&unit| unit.into()).enumerate().find(|&(_, unit)| char::from_u32(unit).is_none())
        }
        match self {
            Text::Utf8(_) | Text::Latin1(_) => None,
            Text::Ucs2(text) => first(text),
            Text::Ucs4(text) => first(text),
        }
    }
}

/// The error to report where one of `texts` has no UTF-8.
pub fn no_utf8(texts: &[Text]) -> Error {
    let first = texts.iter().enumerate().find_map(|(text, units)| units.surrogate().map(|(at, value)| (text, at, value)));
    let (text, at, value) = first.unwrap_or_default();
    Error::Surrogate { text, at, value }
}
