//! Splitting by hand beside the regex engine.

use std::sync::LazyLock;
use std::time::{Duration, Instant, SystemTime};

use proptest::prelude::*;

use super::{CL100K_PATTERN, GPT4_PATTERN, LLAMA3_PATTERN, Splitter};
use crate::core::error::Error;
use crate::core::samples::Held;
use crate::core::text::Text;

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
            let (mut found, mut scratch) = (Vec::new(), Vec::new());
            for part in &parts {
                found.extend(pieces(by_hand, part.text.utf8(&mut scratch).unwrap()));
            }
            prop_assert_eq!(&found, &expected);
            prop_assert_eq!(parts.iter().filter(|part| part.last).count(), 1);
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

/// What random texts are made of.
#[rustfmt::skip]
const UNITS: [&str; 34] = [
    "'s", "'LL", "'re", "'ſ", "'", " ", "  ", "\t", "\n", "\r\n", "\u{85}", "\u{a0}", "\u{3000}", "a", "Zz", "é", "字", "ñ", "\u{301}",
    "1", "23", "²", "Ⅷ", "٣", ".", "!?", "_", "🙂", "\u{200d}", "\0", "ſ", "K", "abcdefgh", "abcdefghi",
];

/// A text of up to 60 units and runs of units, and of any characters.
fn random_text(random: &mut impl FnMut(u64) -> u64) -> String {
    let mut text = String::new();
    for _ in 0..random(60) {
        match random(8) {
            0 => text.extend(char::from_u32(random(0x11_0000) as u32)),
            1 => text.extend(char::from_u32(random(0x3000) as u32)),
            2 => {
                let most = if random(8) == 0 { 150 } else { 12 }; // longer than what is looked at together, now and then
                text.push_str(&UNITS[random(UNITS.len() as u64) as usize].repeat(random(most) as usize));
            }
            _ => text.push_str(UNITS[random(UNITS.len() as u64) as usize]),
        }
    }
    text
}

/// As long as RUSTBPE_FUZZ_SECONDS says (60).
#[test]
#[ignore = "minutes; make test-slow"]
fn fuzzing_against_the_engine() {
    let seconds = std::env::var("RUSTBPE_FUZZ_SECONDS").ok().and_then(|value| value.parse().ok()).unwrap_or(60);
    let end = Instant::now() + Duration::from_secs(seconds);
    let (mut state, mut texts) = (SystemTime::UNIX_EPOCH.elapsed().unwrap().as_nanos() as u64 | 1, 0u64);
    println!("seed {state}");
    let mut random = |n: u64| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 11) % n
    };
    while Instant::now() < end {
        agrees(&random_text(&mut random)).unwrap();
        texts += 1;
    }
    println!("{texts} texts in {seconds} s, all equal");
}
