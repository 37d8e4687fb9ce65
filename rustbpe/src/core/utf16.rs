//! From UTF-16, which Python gives out quickly, to UTF-8, which it makes slowly.

/// Units that are looked at together: where all of them are ASCII they are only made narrower.
const TOGETHER: usize = 16;

/// Appends UTF-16 in this machine's byte order to `utf8`. False where a surrogate stands alone, with some of the text appended.
pub fn append(utf16: &[u8], utf8: &mut String) -> bool {
    let mut some = [0; 3 * TOGETHER + 4];
    let mut high = 0;
    for units in utf16.chunks(2 * TOGETHER) {
        let mut values = [0; TOGETHER];
        values.iter_mut().zip(units.chunks_exact(2)).for_each(|(value, unit)| *value = u16::from_ne_bytes([unit[0], unit[1]]));
        let mut length = 0;
        if values.iter().fold(high, |all, value| all | value) < 0x80 {
            some.iter_mut().zip(&values).for_each(|(byte, &value)| *byte = value as u8);
            length = units.len() / 2;
        } else {
            for &value in &values[..units.len() / 2] {
                let mut code = u32::from(value);
                match value {
                    0xD800..0xDC00 if high == 0 => {
                        high = value;
                        continue;
                    }
                    0xDC00..0xE000 if high != 0 => code = 0x1_0000 + ((u32::from(high) & 0x3FF) << 10 | code & 0x3FF),
                    0xD800..0xE000 => return false,
                    _ if high != 0 => return false,
                    _ => {}
                }
                high = 0;
                length += put(code, &mut some[length..]);
            }
        }
        // SAFETY: these are whole characters, each as `put` writes it, or ASCII.
        utf8.push_str(unsafe { std::str::from_utf8_unchecked(&some[..length]) });
    }
    high == 0
}

/// Writes a code point as UTF-8, and what the next is written over behind it; its length. Without branches: text has all lengths.
fn put(code: u32, bytes: &mut [u8]) -> usize {
    let next = |shift: u32| 0x80 | code >> shift & 0x3F;
    let (length, packed) = match code {
        ..0x80 => (1, code),
        0x80..0x800 => (2, 0xC0 | code >> 6 | next(0) << 8),
        0x800..0x1_0000 => (3, 0xE0 | code >> 12 | next(6) << 8 | next(0) << 16),
        _ => (4, 0xF0 | code >> 18 | next(12) << 8 | next(6) << 16 | next(0) << 24),
    };
    bytes[..4].copy_from_slice(&packed.to_le_bytes());
    length
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn bytes(units: &[u16]) -> Vec<u8> {
        units.iter().flat_map(|unit| unit.to_ne_bytes()).collect()
    }

    #[test]
    fn every_code_point() {
        let text: String = (0..=0x10_FFFF).filter_map(char::from_u32).collect();
        let mut utf8 = String::from("before");
        assert!(append(&bytes(&text.encode_utf16().collect::<Vec<_>>()), &mut utf8));
        assert_eq!(utf8, "before".to_string() + &text);
    }

    proptest! {
        #[test]
        fn equals_the_standard_library(text in ".{0,60}|[ -~]{0,100}|[ -~]{30}[é字🙂]{0,30}", at in 0usize..60, unit in 0xD7F0u16..0xE010) {
            let mut units: Vec<u16> = text.encode_utf16().collect();
            let mut utf8 = String::new();
            prop_assert!(append(&bytes(&units), &mut utf8));
            prop_assert_eq!(&utf8, &text);
            units.insert(at.min(units.len()), unit); // most often a surrogate that stands alone, or that ends a pair too soon
            let (expected, mut utf8) = (String::from_utf16(&units).ok(), String::new());
            prop_assert_eq!(append(&bytes(&units), &mut utf8).then_some(utf8), expected);
        }
    }
}
