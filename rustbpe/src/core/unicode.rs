//! Code points: decoding them from UTF-8, and the classes that split patterns distinguish.

use std::sync::OnceLock;

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Class {
    Other,
    Letter,
    Number,
    /// White space but \r and \n.
    Space,
    /// \r and \n.
    Newline,
}
use Class::{Letter, Newline, Number, Other, Space};

/// The class of every code point, from the regex engine's own Unicode tables, so that the splitter written
/// by hand and the engine always agree.
pub struct Classes(Vec<Class>);

impl Classes {
    /// The table, made when it is first asked for.
    pub fn get() -> &'static Classes {
        static CLASSES: OnceLock<Classes> = OnceLock::new();
        CLASSES.get_or_init(|| {
            let mut table = Vec::new();
            for (pattern, class) in [(r"\p{L}", Letter), (r"\p{N}", Number), (r"\s", Space), (r"[\r\n]", Newline)] {
                // A literal pattern that always parses; were it not so, every test would fail.
                let hir = regex_syntax::parse(pattern).expect("a valid class");
                let regex_syntax::hir::HirKind::Class(regex_syntax::hir::Class::Unicode(set)) = hir.kind() else {
                    unreachable!("{pattern} is a class of code points")
                };
                for range in set.ranges() {
                    let (start, end) = (range.start() as usize, range.end() as usize);
                    if table.len() <= end {
                        table.resize(end + 1, Other);
                    }
                    table[start..=end].fill(class);
                }
            }
            Classes(table)
        })
    }

    /// The class of a code point.
    #[inline]
    pub fn class(&self, character: usize) -> Class {
        self.0.get(character).copied().unwrap_or(Other)
    }

    /// The class and width in bytes of the character that starts at byte `at`; None at the end of the text.
    #[inline]
    pub fn look(&self, text: &[u8], at: usize) -> Option<(Class, usize)> {
        let first = *text.get(at)?;
        if first < 128 {
            return Some((self.0[first as usize], 1));
        }
        let (character, width) = decode(text, at);
        Some((self.class(character), width))
    }
}

/// The code point of the character that begins at byte `at`, and its width in bytes by the first of them.
#[inline]
pub fn decode(text: &[u8], at: usize) -> (usize, usize) {
    let next = |i| usize::from(text.get(at + i).copied().unwrap_or_default()) & 0x3F;
    let first = usize::from(text[at]);
    match first {
        ..0x80 => (first, 1),
        0xC0..=0xDF => ((first & 0x1F) << 6 | next(1), 2),
        0xE0..=0xEF => ((first & 0x0F) << 12 | next(1) << 6 | next(2), 3),
        _ => ((first & 0x07) << 18 | next(1) << 12 | next(2) << 6 | next(3), 4),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_point_has_the_engine_s_class() {
        let all: String = ('\0'..=char::MAX).collect();
        let mut classes = vec![Other; char::MAX as usize + 1];
        for (pattern, class) in [(r"\p{L}+", Letter), (r"\p{N}+", Number), (r"[^\S\r\n]+", Space), (r"[\r\n]+", Newline)] {
            for run in fancy_regex::Regex::new(pattern).unwrap().find_iter(&all) {
                run.unwrap().as_str().chars().for_each(|character| classes[character as usize] = class);
            }
        }
        for (at, character) in all.char_indices() {
            let (class, width) = Classes::get().look(all.as_bytes(), at).unwrap();
            assert!(class == classes[character as usize], "{character:?}");
            assert_eq!(width, character.len_utf8());
        }
    }
}
