//! Cutting text into the pieces that BPE never merges across.

use std::sync::OnceLock;

use super::{Error, Result};

/// GPT-4's split with digit groups of one or two. `Splitter` knows it by heart.
pub const GPT4_PATTERN: &str =
    concat!(r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,2}|", r" ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+");

/// Cuts text by a pattern: by hand in linear time for `GPT4_PATTERN`, by the regex engine for any other.
pub enum Splitter {
    Gpt4(&'static Classes),
    Regex(Box<fancy_regex::Regex>),
}

impl Splitter {
    /// Errors: `Invalid` where the pattern is not a valid regular expression.
    pub fn new(pattern: &str) -> Result<Self> {
        if pattern == GPT4_PATTERN { Ok(Splitter::Gpt4(Classes::get())) } else { Self::by_regex(pattern) }
    }

    /// The general engine, whatever the pattern.
    fn by_regex(pattern: &str) -> Result<Self> {
        let regex = fancy_regex::RegexBuilder::new(pattern).backtrack_limit(BACKTRACK_LIMIT).build();
        match regex {
            Ok(regex) => Ok(Splitter::Regex(Box::new(regex))),
            Err(error) => Err(Error::Invalid(format!("the split pattern is not valid: {error}"))),
        }
    }

    /// Calls `piece` for each piece of `text` in order. The pieces put together are the text: what a pattern
    /// leaves unmatched becomes a piece too, so that nothing is lost.
    pub fn split<'t>(&self, text: &'t str, mut piece: impl FnMut(&'t str)) {
        match self {
            Splitter::Gpt4(classes) => {
                let mut at = 0;
                while at < text.len() {
                    let end = classes.piece_end(text, at);
                    piece(&text[at..end]);
                    at = end;
                }
            }
            Splitter::Regex(regex) => {
                let mut rest = split_by(regex, text, &mut piece);
                while !rest.is_empty() {
                    // The engine gives up on a match of a million characters: let it see less of them at once.
                    let end = (WINDOW..rest.len()).find(|&end| rest.is_char_boundary(end)).unwrap_or(rest.len());
                    let (window, after) = rest.split_at(end);
                    let left = split_by(regex, window, &mut piece);
                    if !left.is_empty() {
                        piece(left);
                    }
                    rest = split_by(regex, after, &mut piece);
                }
            }
        }
    }
}

/// Steps after which the regex engine gives up on one match.
const BACKTRACK_LIMIT: usize = 10_000_000;
/// Bytes of a text that are tried at once where it has given up.
const WINDOW: usize = 1 << 18;

/// Splits by the regex engine; what is left where it gives up, else an empty text.
fn split_by<'t>(regex: &fancy_regex::Regex, text: &'t str, piece: &mut impl FnMut(&'t str)) -> &'t str {
    let mut at = 0;
    for found in regex.find_iter(text) {
        let Ok(found) = found else { return &text[at..] };
        for part in [&text[at..found.start()], found.as_str()] {
            if !part.is_empty() {
                piece(part);
            }
        }
        at = found.end();
    }
    if at < text.len() {
        piece(&text[at..]);
    }
    ""
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Class {
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
    fn get() -> &'static Classes {
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

    /// The class and width in bytes of the character that starts at byte `at`; None at the end of the text.
    #[inline]
    fn look(&self, text: &str, at: usize) -> Option<(Class, usize)> {
        let first = *text.as_bytes().get(at)?;
        if first < 128 {
            return Some((self.0[first as usize], 1));
        }
        let character = text[at..].chars().next()?;
        Some((self.0.get(character as usize).copied().unwrap_or(Other), character.len_utf8()))
    }

    /// The end of the run of `class` characters that starts at `at`.
    #[inline]
    fn run(&self, text: &str, mut at: usize, class: Class) -> usize {
        while let Some((found, width)) = self.look(text, at) {
            if found != class {
                break;
            }
            at += width;
        }
        at
    }

    /// The end of the piece that starts at `at` < `text.len()`: the alternatives of the pattern, in its order.
    #[inline]
    fn piece_end(&self, text: &str, at: usize) -> usize {
        let bytes = text.as_bytes();
        let Some((class, width)) = self.look(text, at) else { return text.len() };
        // '(?i:[sdmt]|ll|ve|re)
        if bytes[at] == b'\'' {
            if let Some(length) = contraction(&bytes[at + 1..]) {
                return at + 1 + length;
            }
        }
        let after = at + width;
        let next = self.look(text, after);
        match (class, next) {
            // [^\r\n\p{L}\p{N}]?+\p{L}+
            (Letter, _) | (Other | Space, Some((Letter, _))) => return self.run(text, after, Letter),
            // \p{N}{1,2}
            (Number, Some((Number, second))) => return after + second,
            (Number, _) => return after,
            //  ?[^\s\p{L}\p{N}]++[\r\n]*
            (Other, _) => return self.run(text, self.run(text, after, Other), Newline),
            (Space, Some((Other, _))) if bytes[at] == b' ' => return self.run(text, self.run(text, after, Other), Newline),
            _ => {}
        }
        // White space: where it starts, where its last character starts, and the end of its last line break.
        let (mut end, mut last, mut line_end) = (at, at, None);
        while let Some((class @ (Space | Newline), width)) = self.look(text, end) {
            last = end;
            end += width;
            if class == Newline {
                line_end = Some(end);
            }
        }
        match line_end {
            // \s*[\r\n]
            Some(line_end) => line_end,
            // \s+(?!\S): all but the last before other text, which the next piece may take as its prefix.
            None if end < text.len() && last > at => last,
            // \s+
            None => end,
        }
    }
}

/// The length of a contraction's letters at the start of `rest`. U+017F (ſ) is an s to a regex that ignores case.
fn contraction(rest: &[u8]) -> Option<usize> {
    match *rest {
        [b's' | b'S' | b'd' | b'D' | b'm' | b'M' | b't' | b'T', ..] => Some(1),
        [0xC5, 0xBF, ..] => Some(2),
        [b'l' | b'L', b'l' | b'L', ..] => Some(2),
        [b'v' | b'V' | b'r' | b'R', b'e' | b'E', ..] => Some(2),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::sync::LazyLock;

    static KNOWN: LazyLock<Splitter> = LazyLock::new(|| Splitter::new(GPT4_PATTERN).unwrap());
    static GENERAL: LazyLock<Splitter> = LazyLock::new(|| Splitter::by_regex(GPT4_PATTERN).unwrap());

    fn pieces(splitter: &Splitter, text: &str) -> Vec<String> {
        let mut pieces = Vec::new();
        splitter.split(text, |piece| pieces.push(piece.to_string()));
        pieces
    }

    #[test]
    fn examples() {
        assert!(matches!(*KNOWN, Splitter::Gpt4(_)));
        for (text, expected) in [
            ("", vec![]),
            ("Hello, world! 12345", vec!["Hello", ",", " world", "!", " ", "12", "34", "5"]),
            ("it's I'LL 'tis", vec!["it", "'s", " I", "'LL", " '", "tis"]),
            ("a  \n\n  b\t\tc", vec!["a", "  \n\n", " ", " b", "\t", "\tc"]),
            ("x = [1];\r\n  y", vec!["x", " =", " [", "1", "];\r\n", " ", " y"]),
            ("你好，世界", vec!["你好", "，世界"]),
            ("end   ", vec!["end", "   "]),
        ] {
            assert_eq!(pieces(&KNOWN, text), expected, "{text:?}");
        }
    }

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
            let (class, width) = Classes::get().look(&all, at).unwrap();
            assert!(class == classes[character as usize], "{character:?}");
            assert_eq!(width, character.len_utf8());
        }
    }

    #[test]
    fn a_million_spaces_and_other_long_runs() {
        for unit in [" ", "a", "!", "\n", "1", " \n", "\u{3000}", "字"] {
            for tail in ["", "x", "\n"] {
                let text = unit.repeat(10_000) + tail;
                assert_eq!(pieces(&KNOWN, &text), pieces(&GENERAL, &text), "{unit:?} {tail:?}");
                let text = unit.repeat(1_000_000) + tail;
                assert_eq!(pieces(&KNOWN, &text).concat(), text);
            }
        }
        // Where the engine gives up, the text is cut into more pieces, and none of it is lost.
        let text = "a".to_string() + &" ".repeat(1_100_000) + "b";
        assert_eq!(pieces(&KNOWN, &text).len(), 3);
        assert_eq!(pieces(&GENERAL, &text).concat(), text);
    }

    #[test]
    fn other_patterns() {
        let words = Splitter::new(r"[a-z]+").unwrap();
        assert_eq!(pieces(&words, "12 ab, cd"), vec!["12 ", "ab", ", ", "cd"]);
        let empty = Splitter::new(r"x*").unwrap();
        assert_eq!(pieces(&empty, "axxb").concat(), "axxb");
        assert!(matches!(Splitter::new("(unclosed"), Err(Error::Invalid(_))));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(100))]

        #[test]
        fn by_hand_equals_the_engine(text in "[ \\t\\r\\n\\x0b\u{85}\u{a0}\u{3000}'aZsSdmMtTlLvVeErRſKé字ñ\u{301}09²Ⅷ٣.,!_🙂\u{200d}\\x00]{0,40}") {
            let by_hand = pieces(&KNOWN, &text);
            prop_assert_eq!(by_hand.concat(), text.clone());
            prop_assert_eq!(by_hand, pieces(&GENERAL, &text));
        }

        #[test]
        fn by_hand_equals_the_engine_on_any_text(text in any::<String>()) {
            prop_assert_eq!(pieces(&KNOWN, &text), pieces(&GENERAL, &text));
        }
    }
}
