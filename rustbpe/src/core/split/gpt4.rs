//! GPT-4's split by hand, in linear time.

use super::runs::{class_end, contraction, letters_end, skip_equal};
use super::window::Window;
use crate::core::bits::ones;
use crate::core::boundaries::{self, Boundaries};
use crate::core::unicode::Class::{Letter, Newline, Number, Other, Space};
use crate::core::unicode::Classes;

/// GPT-4's pattern, with its variants.
pub struct Gpt4 {
    pub classes: &'static Classes,
    /// Largest number of digits in a piece.
    pub digits: usize,
    /// Whether white space at the end of a text is one piece, line breaks or not.
    pub whole_end: bool,
}

impl Gpt4 {
    /// Calls `piece` with each piece of `text`; see `Splitter::split_further`. A window of the text gives the starts of many pieces
    /// together; the end of a piece that is longer than a window is found character by character.
    #[inline]
    pub fn split(&self, text: &str, boundaries: Option<&Boundaries>, mut piece: impl FnMut(usize, usize)) {
        let mut at = 0;
        while at < text.len() {
            let start = at;
            let window = Window::new(self.classes, text.as_bytes(), start);
            let starts = window.piece_starts(self.digits);
            if starts == 1 {
                at = self.piece_end(text.as_bytes(), start);
                boundaries::cut(text, start, at, boundaries, &mut piece);
                continue;
            }
            let uncrossed = boundaries.map_or(0, |boundaries| window.uncrossed(boundaries));
            let certain = u64::MAX >> starts.leading_zeros();
            for place in ones((starts | uncrossed) & certain & !1) {
                piece(at, start + place);
                at = start + place;
            }
        }
    }

    /// The end of the piece that starts at `at` < `text.len()`: the alternatives of the pattern, in its order.
    #[inline]
    fn piece_end(&self, text: &[u8], at: usize) -> usize {
        let classes = self.classes;
        let Some((class, width)) = classes.look(text, at) else { return text.len() };
        let after = at + width;
        if class == Letter {
            return letters_end(classes, text, after);
        }
        // '(?i:[sdmt]|ll|ve|re)
        if text[at] == b'\'' {
            if let Some(length) = contraction(&text[after..]) {
                return after + length;
            }
        }
        let others_end = || class_end(classes, text, class_end(classes, text, after, Other), Newline);
        match (class, classes.look(text, after)) {
            // [^\r\n\p{L}\p{N}]?+\p{L}+
            (Other | Space, Some((Letter, width))) => letters_end(classes, text, after + width),
            // \p{N}{1,digits}
            (Number, _) => {
                let mut end = after;
                for _ in 1..self.digits {
                    let Some((Number, width)) = classes.look(text, end) else { break };
                    end += width;
                }
                end
            }
            //  ?[^\s\p{L}\p{N}]++[\r\n]*
            (Other, _) => others_end(),
            (Space, Some((Other, _))) if text[at] == b' ' => others_end(),
            _ => self.white_space_end(text, at),
        }
    }

    /// The end of the piece of white space that starts at `at`.
    #[inline]
    fn white_space_end(&self, text: &[u8], at: usize) -> usize {
        // Where the white space ends, where its last character starts, and the end of its last line break.
        let (mut end, mut last, mut line_end) = (at, at, None);
        while let Some((class @ (Space | Newline), width)) = self.classes.look(text, end) {
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
