//! Cutting text into the pieces that BPE never merges across.

use std::sync::OnceLock;

use super::characters::Characters;
use super::text::Text;
use super::window::{self, Window};
use super::{Error, Result};

/// GPT-4's split with digit groups of one or two.
pub const GPT4_PATTERN: &str =
    concat!(r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,2}|", r" ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+");
/// GPT-4's own, as tiktoken writes it for cl100k_base.
pub const CL100K_PATTERN: &str =
    concat!(r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+|", r" ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|\s*[\r\n]|\s+(?!\S)|\s");
/// The same as others write it, Llama 3 among them.
pub const LLAMA3_PATTERN: &str =
    concat!(r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|", r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+");

/// Cuts text by a pattern: by hand in linear time for the patterns above, by the regex engine for any other.
pub enum Splitter {
    Gpt4(Gpt4),
    Regex(Box<fancy_regex::Regex>),
}

impl Splitter {
    /// Errors: `Invalid` where the pattern is not a valid regular expression.
    pub fn new(pattern: &str) -> Result<Self> {
        let (digits, whole_end) = match pattern {
            GPT4_PATTERN => (2, false),
            LLAMA3_PATTERN => (3, false),
            CL100K_PATTERN => (3, true),
            _ => return Self::by_regex(pattern),
        };
        Ok(Splitter::Gpt4(Gpt4 { classes: Classes::get(), digits, whole_end }))
    }

    /// The general engine, whatever the pattern.
    fn by_regex(pattern: &str) -> Result<Self> {
        let regex = fancy_regex::RegexBuilder::new(pattern).backtrack_limit(BACKTRACK_LIMIT).build();
        match regex {
            Ok(regex) => Ok(Splitter::Regex(Box::new(regex))),
            Err(error) => Err(Error::Invalid(format!("the split pattern is not valid: {error}"))),
        }
    }

    /// Calls `piece` with the start and the end of each piece of `text` in order. The pieces put together are the
    /// text: what a pattern leaves unmatched becomes a piece too, so that nothing is lost.
    #[inline]
    pub fn split(&self, text: &str, piece: impl FnMut(usize, usize)) {
        self.split_apart(text, None, piece);
    }

    /// The same, with pieces cut further where no merge joins what stands before to what stands after.
    #[inline]
    pub fn split_apart(&self, text: &str, characters: Option<&Characters>, mut piece: impl FnMut(usize, usize)) {
        match self {
            Splitter::Gpt4(gpt4) => {
                let mut at = 0;
                while at < text.len() {
                    let start = at;
                    let window = Window::new(gpt4.classes, text.as_bytes(), start);
                    let starts = window.piece_starts(gpt4.digits);
                    if starts == 1 {
                        at = gpt4.piece_end(text.as_bytes(), start);
                        cut(text, start, at, characters, &mut piece);
                        continue;
                    }
                    let apart = characters.map_or(0, |characters| window.apart(characters));
                    let certain = u64::MAX >> starts.leading_zeros();
                    for place in window::ones((starts | apart) & certain & !1) {
                        piece(at, start + place);
                        at = start + place;
                    }
                }
            }
            Splitter::Regex(regex) => {
                let mut cut = |start, end| cut(text, start, end, characters, &mut piece);
                let mut at = split_by(regex, text, 0, text.len(), &mut cut);
                while at < text.len() {
                    // The engine gives up on a match of a million characters: let it see less of them at once.
                    let end = (at + WINDOW..text.len()).find(|&end| text.is_char_boundary(end)).unwrap_or(text.len());
                    let left = split_by(regex, text, at, end, &mut cut);
                    if left < end {
                        cut(left, end);
                    }
                    at = split_by(regex, text, end, text.len(), &mut cut);
                }
            }
        }
    }

    /// Cuts long texts into parts of about `length` each, where a piece ends whatever stands before and after: between a
    /// letter and what is none. All parts in order, and for each whether it ends its text. Other patterns know no such place.
    pub fn parts<'t>(&self, texts: &[Text<'t>], length: usize) -> Vec<(Text<'t>, bool)> {
        let mut parts = Vec::with_capacity(texts.len());
        for &text in texts {
            let mut rest = text;
            if let Splitter::Gpt4(gpt4) = self {
                while let Some(end) = gpt4.cut(rest, length) {
                    let (part, after) = rest.split_at(end);
                    parts.push((part, false));
                    rest = after;
                }
            }
            parts.push((rest, true));
        }
        parts
    }
}

/// Calls `piece` with the piece from `start` to `end`, or with its parts where there are `characters` that no merge joins.
fn cut(text: &str, start: usize, end: usize, characters: Option<&Characters>, piece: &mut impl FnMut(usize, usize)) {
    let text = text.as_bytes();
    let mut at = start;
    if let Some(characters) = characters.filter(|_| !text[start..end].is_ascii()) {
        let mut next = start + decode(text, start).1;
        while next < end {
            if !characters.joined(text, next) {
                piece(at, next);
                at = next;
            }
            next += decode(text, next).1;
        }
    }
    piece(at, end);
}

/// Steps after which the regex engine gives up on one match.
const BACKTRACK_LIMIT: usize = 10_000_000;
/// Bytes of a text that are tried at once where it has given up.
const WINDOW: usize = 1 << 18;

/// Splits `text[start..end]` by the regex engine; where it gives up, else `end`.
fn split_by(regex: &fancy_regex::Regex, text: &str, start: usize, end: usize, piece: &mut impl FnMut(usize, usize)) -> usize {
    let mut at = start;
    for found in regex.find_iter(&text[start..end]) {
        let Ok(found) = found else { return at };
        for (from, to) in [(at, start + found.start()), (start + found.start(), start + found.end())] {
            if from < to {
                piece(from, to);
            }
        }
        at = start + found.end();
    }
    if at < end {
        piece(at, end);
    }
    end
}

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

    /// The class of a code point.
    #[inline]
    pub fn class(&self, character: usize) -> Class {
        self.0.get(character).copied().unwrap_or(Other)
    }

    /// The class and width in bytes of the character that starts at byte `at`; None at the end of the text.
    #[inline]
    fn look(&self, text: &[u8], at: usize) -> Option<(Class, usize)> {
        let first = *text.get(at)?;
        if first < 128 {
            return Some((self.0[first as usize], 1));
        }
        let (character, width) = decode(text, at);
        Some((self.class(character), width))
    }

    /// The end of the run of `class` characters that starts at `at`.
    #[inline]
    fn run(&self, text: &[u8], mut at: usize, class: Class) -> usize {
        while let Some((found, width)) = self.look(text, at) {
            if found != class {
                break;
            }
            at += width;
        }
        at
    }

    /// The end of the run of letters that starts at `at`.
    #[inline]
    fn letters(&self, text: &[u8], mut at: usize) -> usize {
        loop {
            while let Some(sixteen) = text.get(at..at + 16).and_then(|bytes| bytes.try_into().ok()) {
                let length = not_letters(u128::from_le_bytes(sixteen)).trailing_zeros() as usize / 8;
                at += length;
                if length < 16 {
                    break;
                }
            }
            loop {
                match self.look(text, at) {
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

/// The end of the run of what stands at `at`, or a place up to 31 numbers before it. Of UTF-8 only ASCII is ever skipped.
#[inline]
fn skip_equal<U: Copy + PartialEq>(text: &[U], mut at: usize) -> usize {
    const TOGETHER: usize = 32;
    let Some(&first) = text.get(at) else { return at };
    let are_equal = |some: &[U]| some.iter().fold(true, |all, &unit| all & (unit == first));
    while text.get(at..at + TOGETHER).is_some_and(are_equal) {
        at += TOGETHER;
    }
    at
}

/// The end of the first run of letters from `at` on, if there is text behind it. `look` gives a character's class and width,
/// `skip` the end of equal ones.
fn after_letters(mut at: usize, look: impl Fn(usize) -> Option<(Class, usize)>, skip: impl Fn(usize) -> usize) -> Option<usize> {
    let mut letters = false;
    loop {
        let (class, width) = look(at)?;
        if letters && class != Letter {
            return Some(at);
        }
        letters = class == Letter;
        at = skip(at).max(at + width);
    }
}

/// GPT-4's split by hand; `digits` is how many numbers a piece may hold, `whole_end` that white space at the end of a
/// text is one piece, line breaks or not.
pub struct Gpt4 {
    classes: &'static Classes,
    digits: usize,
    whole_end: bool,
}

impl Gpt4 {
    /// Where to cut a text that is much longer than `length`: the end of the first run of letters from there on.
    fn cut(&self, text: Text, length: usize) -> Option<usize> {
        fn units<U: Copy + PartialEq + Into<u32>>(classes: &Classes, text: &[U], at: usize) -> Option<usize> {
            let look = |at| text.get(at).map(|&unit| (classes.class(Into::<u32>::into(unit) as usize), 1));
            after_letters(at, look, |at| skip_equal(text, at))
        }
        if text.length() < 2 * length {
            return None;
        }
        let classes = self.classes;
        match text {
            Text::Utf8(text) => {
                let at = (length..text.len()).find(|&at| text.is_char_boundary(at))?;
                let text = text.as_bytes();
                after_letters(at, |at| classes.look(text, at), |at| skip_equal(text, at))
            }
            Text::Latin1(text) => units(classes, text, length),
            Text::Ucs2(text) => units(classes, text, length),
            Text::Ucs4(text) => units(classes, text, length),
        }
    }

    /// The end of the piece that starts at `at` < `text.len()`: the alternatives of the pattern, in its order.
    #[inline]
    fn piece_end(&self, text: &[u8], at: usize) -> usize {
        let classes = self.classes;
        let Some((class, width)) = classes.look(text, at) else { return text.len() };
        let after = at + width;
        if class == Letter {
            return classes.letters(text, after);
        }
        // '(?i:[sdmt]|ll|ve|re)
        if text[at] == b'\'' {
            if let Some(length) = contraction(&text[after..]) {
                return after + length;
            }
        }
        let next = classes.look(text, after);
        match (class, next) {
            // [^\r\n\p{L}\p{N}]?+\p{L}+
            (Other | Space, Some((Letter, width))) => return classes.letters(text, after + width),
            // \p{N}{1,digits}
            (Number, _) => {
                let mut end = after;
                for _ in 1..self.digits {
                    let Some((Number, width)) = classes.look(text, end) else { break };
                    end += width;
                }
                return end;
            }
            //  ?[^\s\p{L}\p{N}]++[\r\n]*
            (Other, _) => return classes.run(text, classes.run(text, after, Other), Newline),
            (Space, Some((Other, _))) if text[at] == b' ' => return classes.run(text, classes.run(text, after, Other), Newline),
            _ => {}
        }
        // White space: where it starts, where its last character starts, and the end of its last line break.
        let (mut end, mut last, mut line_end) = (at, at, None);
        while let Some((class @ (Space | Newline), width)) = classes.look(text, end) {
            last = end;
            end += width;
            if class == Newline {
                line_end = Some(end);
            }
            if class == Space {
                let spaces = skip_equal(text, last);
                if spaces > end {
                    (last, end) = (spaces - 1, spaces);
                }
            }
        }
        match line_end {
            // \s++$
            _ if self.whole_end && end == text.len() => end,
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
pub fn contraction(rest: &[u8]) -> Option<usize> {
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
    use crate::core::text::samples::Held;
    use proptest::prelude::*;
    use std::sync::LazyLock;

    static KNOWN: LazyLock<Splitter> = LazyLock::new(|| Splitter::new(GPT4_PATTERN).unwrap());
    static GENERAL: LazyLock<Splitter> = LazyLock::new(|| Splitter::by_regex(GPT4_PATTERN).unwrap());
    static BOTH: LazyLock<Vec<(Splitter, Splitter)>> = LazyLock::new(|| {
        let both = |pattern| (Splitter::new(pattern).unwrap(), Splitter::by_regex(pattern).unwrap());
        [GPT4_PATTERN, CL100K_PATTERN, LLAMA3_PATTERN].map(both).into()
    });

    fn pieces(splitter: &Splitter, text: &str) -> Vec<String> {
        let mut pieces = Vec::new();
        splitter.split(text, |start, end| pieces.push(text[start..end].to_string()));
        pieces
    }

    /// Whether each pattern's splitter by hand agrees with the engine, on the whole text and on its parts together, of the text
    /// in one of the ways that can hold it.
    fn agrees(text: &str) -> std::result::Result<(), TestCaseError> {
        let held = Held::new(text);
        let ways: Vec<Text> = held.all().collect();
        let text_held = ways[text.len() % ways.len()];
        for (by_hand, general) in &*BOTH {
            let expected = pieces(general, text);
            prop_assert_eq!(&pieces(by_hand, text), &expected);
            for length in [1, 7] {
                let parts = by_hand.parts(&[text_held], length);
                let (mut found, mut room) = (Vec::new(), Vec::new());
                for (part, _) in &parts {
                    found.extend(pieces(by_hand, part.utf8(&mut room).unwrap()));
                }
                prop_assert_eq!(&found, &expected);
                prop_assert_eq!(parts.iter().filter(|part| part.1).count(), 1);
            }
        }
        Ok(())
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
            let (class, width) = Classes::get().look(all.as_bytes(), at).unwrap();
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
            agrees(&text)?;
        }

        #[test]
        fn by_hand_equals_the_engine_on_any_text(text in any::<String>()) {
            agrees(&text)?;
        }
    }

    /// Every code point between every pair of neighbours that could treat it differently.
    #[test]
    #[ignore = "minutes; make test-slow"]
    fn every_code_point_in_every_context() {
        let contexts = [("", ""), ("a", "b"), (" ", "a"), ("'", ""), ("1", "2"), ("\n", " "), (" ", "\n"), ("!", "\r"), ("字", "é")];
        for (before, after) in contexts {
            for block in (0..=char::MAX as u32).collect::<Vec<_>>().chunks(4096) {
                let text: String = block.iter().filter_map(|&code| char::from_u32(code)).map(|c| format!("{before}{c}{after}")).collect();
                agrees(&text).unwrap();
            }
        }
    }

    /// As long as RUSTBPE_FUZZ_SECONDS says (60).
    #[test]
    #[ignore = "minutes; make test-slow"]
    fn fuzzing_against_the_engine() {
        let seconds = std::env::var("RUSTBPE_FUZZ_SECONDS").ok().and_then(|value| value.parse().ok()).unwrap_or(60);
        let end = std::time::Instant::now() + std::time::Duration::from_secs(seconds);
        let units: Vec<String> =
            ["'s", "'LL", "'re", "'ſ", "'", " ", "  ", "\t", "\n", "\r\n", "\u{85}", "\u{a0}", "\u{3000}", "a", "Zz", "é", "字"]
                .into_iter()
                .chain([
                    "ñ",
                    "\u{301}",
                    "1",
                    "23",
                    "²",
                    "Ⅷ",
                    "٣",
                    ".",
                    "!?",
                    "_",
                    "🙂",
                    "\u{200d}",
                    "\0",
                    "ſ",
                    "K",
                    "abcdefgh",
                    "abcdefghi",
                ])
                .map(String::from)
                .collect();
        let (mut state, mut texts) = (std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().as_nanos() as u64 | 1, 0u64);
        println!("seed {state}");
        let mut random = |n: u64| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 11) % n
        };
        while std::time::Instant::now() < end {
            let mut text = String::new();
            for _ in 0..random(60) {
                match random(8) {
                    0 => text.extend(char::from_u32(random(0x11_0000) as u32)),
                    1 => text.extend(char::from_u32(random(0x3000) as u32)),
                    2 => {
                        let most = if random(8) == 0 { 150 } else { 12 }; // longer than what is looked at together, now and then
                        text.push_str(&units[random(units.len() as u64) as usize].repeat(random(most) as usize));
                    }
                    _ => text.push_str(&units[random(units.len() as u64) as usize]),
                }
            }
            agrees(&text).unwrap();
            texts += 1;
        }
        println!("{texts} texts in {seconds} s, all equal");
    }
}
