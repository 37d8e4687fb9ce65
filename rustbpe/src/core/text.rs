//! Texts where they lie in memory, and their UTF-8 where it is needed.

use super::Error;
use super::memory;

/// A text as UTF-8, or as one number for each code point, of one, two or four bytes: so Python keeps them (PEP 393).
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
    /// Numbers: bytes of UTF-8, or code points.
    pub fn length(self) -> usize {
        match self {
            Text::Utf8(text) => text.len(),
            Text::Latin1(text) => text.len(),
            Text::Ucs2(text) => text.len(),
            Text::Ucs4(text) => text.len(),
        }
    }

    /// What is before number `at`, where a character starts, and what is not.
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

    /// Its UTF-8, in `room` where it is not that already; None where it has none, because of a lone surrogate.
    #[inline]
    pub fn utf8<'r>(self, room: &'r mut Vec<u8>) -> Option<&'r str>
    where
        't: 'r,
    {
        match self {
            Text::Utf8(text) => Some(text),
            Text::Latin1(text) => memory::ascii(text).or_else(|| memory::utf8(text, room)),
            Text::Ucs2(text) => memory::utf8(text, room),
            Text::Ucs4(text) => memory::utf8(text, room),
        }
    }

    /// The place and the value of the first number that is no character.
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

#[cfg(test)]
pub mod samples {
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

        pub fn all(&self) -> impl Iterator<Item = super::Text<'_>> + Clone {
            let latin1 = self.latin1.as_deref().map(super::Text::Latin1);
            let ucs2 = self.ucs2.as_deref().map(super::Text::Ucs2);
            [Some(super::Text::Utf8(&self.utf8)), latin1, ucs2, Some(super::Text::Ucs4(&self.ucs4))].into_iter().flatten()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn every_way_to_hold_a_text_gives_its_utf8(text in any::<String>(), more in "[a-c ]{0,40}|[aé]{0,60}|[a字é]{0,60}|[a🙂]{0,40}", at in 0usize..50) {
            let text = text + &more;
            let mut room = vec![7; 3];
            let cut = text.char_indices().nth(at).map_or(text.len(), |(place, _)| place);
            for held in samples::Held::new(&text).all() {
                prop_assert_eq!(held.utf8(&mut room), Some(&*text));
                prop_assert!(held.surrogate().is_none());
                let place = if matches!(held, Text::Utf8(_)) { cut } else { text[..cut].chars().count() };
                let (before, after) = held.split_at(place);
                prop_assert_eq!(before.length() + after.length(), held.length());
                prop_assert_eq!(before.utf8(&mut room), Some(&text[..cut]));
                prop_assert_eq!(after.utf8(&mut room), Some(&text[cut..]));
            }
        }

        #[test]
        fn what_is_no_character_has_no_utf8(before in "[aé字]{0,40}", bad in 0xD800u16..0xE000, after in "[aé字]{0,40}") {
            let mut units: Vec<u16> = before.encode_utf16().collect();
            units.push(bad);
            units.extend(after.encode_utf16());
            let wide: Vec<u32> = units.iter().map(|&unit| unit.into()).collect();
            for text in [Text::Ucs2(&units), Text::Ucs4(&wide)] {
                prop_assert!(text.utf8(&mut Vec::new()).is_none());
                let error = no_utf8(&["fine".into(), text, text]).to_string();
                let place = before.chars().count();
                prop_assert_eq!(error, format!("text 1 has no UTF-8: it holds a lone surrogate, '\\u{bad:04x}' at character {place}"));
            }
        }
    }

    #[test]
    fn every_character_is_written() {
        let mut room = Vec::new();
        let all: Vec<u32> = (0..=char::MAX as u32).filter(|&unit| char::from_u32(unit).is_some()).collect();
        let expected: String = all.iter().filter_map(|&unit| char::from_u32(unit)).collect();
        assert_eq!(Text::Ucs4(&all).utf8(&mut room), Some(&*expected));
        assert!(Text::Ucs4(&[0x11_0000]).utf8(&mut room).is_none());
    }
}
