//! Texts in every way that Python stores them.

use proptest::prelude::*;

use super::{Text, no_utf8};
use crate::core::samples::Held;

proptest! {
    #[test]
    fn every_way_to_hold_a_text_gives_its_utf8(text in any::<String>(), more in "[a-c ]{0,40}|[aé]{0,60}|[a字é]{0,60}|[a🙂]{0,40}", at in 0usize..50) {
        let text = text + &more;
        let mut scratch = vec![7; 3];
        let cut = text.char_indices().nth(at).map_or(text.len(), |(place, _)| place);
        for held in Held::new(&text).all() {
            prop_assert_eq!(held.utf8(&mut scratch), Some(&*text));
            prop_assert!(held.surrogate().is_none());
            let place = if matches!(held, Text::Utf8(_)) { cut } else { text[..cut].chars().count() };
            let (before, after) = held.split_at(place);
            prop_assert_eq!(before.length() + after.length(), held.length());
            prop_assert_eq!(before.utf8(&mut scratch), Some(&text[..cut]));
            prop_assert_eq!(after.utf8(&mut scratch), Some(&text[cut..]));
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
    let mut scratch = Vec::new();
    let all: Vec<u32> = (0..=char::MAX as u32).filter(|&unit| char::from_u32(unit).is_some()).collect();
    let expected: String = all.iter().filter_map(|&unit| char::from_u32(unit)).collect();
    assert_eq!(Text::Ucs4(&all).utf8(&mut scratch), Some(&*expected));
    assert!(Text::Ucs4(&[0x11_0000]).utf8(&mut scratch).is_none());
}
