//! Long texts cut into parts, and parts put together into jobs, for several threads.

use std::ops::Range;

use super::runs::skip_equal;
use crate::core::text::Text;
use crate::core::unicode::{Class, Classes};

/// A part of a text, which ends where a piece ends.
pub struct Part<'t> {
    pub text: Text<'t>,
    /// Whether it is the last part of its text.
    pub last: bool,
}

/// Where to split a text that is much longer than `length`: at the end of the first run of letters from there on, where a piece of
/// GPT-4's split always ends.
pub fn part_end(classes: &Classes, text: Text, length: usize) -> Option<usize> {
    fn units<U: Copy + PartialEq + Into<u32>>(classes: &Classes, text: &[U], at: usize) -> Option<usize> {
        let look = |at| text.get(at).map(|&unit| (classes.class(Into::<u32>::into(unit) as usize), 1));
        after_letters(at, look, |at| skip_equal(text, at))
    }
    if text.length() < 2 * length {
        return None;
    }
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

/// The end of the first run of letters from `at` on, if there is text behind it. `look` gives a character's class and width,
/// `skip` the end of equal ones.
fn after_letters(mut at: usize, look: impl Fn(usize) -> Option<(Class, usize)>, skip: impl Fn(usize) -> usize) -> Option<usize> {
    let mut letters = false;
    loop {
        let (class, width) = look(at)?;
        if letters && class != Class::Letter {
            return Some(at);
        }
        letters = class == Class::Letter;
        at = skip(at).max(at + width);
    }
}

/// Ranges of neighbouring parts of about `length` each: large enough to be worth handing to a thread.
pub fn group_by_length(parts: &[Part], length: usize) -> Vec<Range<usize>> {
    let mut groups = Vec::new();
    let (mut start, mut size) = (0, 0);
    for (i, part) in parts.iter().enumerate() {
        size += part.text.length() + 1;
        if size >= length {
            groups.push(start..i + 1);
            (start, size) = (i + 1, 0);
        }
    }
    if start < parts.len() {
        groups.push(start..parts.len());
    }
    groups
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_cover_every_text_once() {
        let texts = ["", "abc", "", "defgh", "i"].map(|text| Part { text: text.into(), last: true });
        for length in [1, 4, 1000] {
            let groups = group_by_length(&texts, length);
            assert_eq!(groups.into_iter().flatten().collect::<Vec<_>>(), vec![0, 1, 2, 3, 4]);
        }
        assert!(group_by_length(&[], 10).is_empty());
    }
}
