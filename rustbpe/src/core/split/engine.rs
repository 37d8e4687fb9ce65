//! The split by the regex engine, for any pattern.

use crate::core::boundaries::{self, Boundaries};
use crate::core::error::{Error, Result};

/// Steps after which the regex engine gives up on one match.
const BACKTRACK_LIMIT: usize = 10_000_000;
/// Bytes of a text that are tried at once where it has given up.
const WINDOW: usize = 1 << 18;

/// A pattern that the regex engine has compiled.
pub struct Engine(Box<fancy_regex::Regex>);

impl Engine {
    /// Errors: `Invalid` where the pattern is not a valid regular expression.
    pub fn new(pattern: &str) -> Result<Self> {
        let regex = fancy_regex::RegexBuilder::new(pattern).backtrack_limit(BACKTRACK_LIMIT).build();
        match regex {
            Ok(regex) => Ok(Engine(Box::new(regex))),
            Err(error) => Err(Error::Invalid(format!("the split pattern is not valid: {error}"))),
        }
    }

    /// Calls `piece` with each piece of `text`; see `Splitter::split_further`.
    pub fn split(&self, text: &str, boundaries: Option<&Boundaries>, mut piece: impl FnMut(usize, usize)) {
        let mut cut = |start, end| boundaries::cut(text, start, end, boundaries, &mut piece);
        let mut at = self.split_part(text, 0, text.len(), &mut cut);
        while at < text.len() {
            // The engine gives up on a match of a million characters: let it see less of them at once.
            let end = (at + WINDOW..text.len()).find(|&end| text.is_char_boundary(end)).unwrap_or(text.len());
            let left = self.split_part(text, at, end, &mut cut);
            if left < end {
                cut(left, end);
            }
            at = self.split_part(text, end, text.len(), &mut cut);
        }
    }

    /// Splits `text[start..end]`, and returns where the engine gives up, else `end`.
    fn split_part(&self, text: &str, start: usize, end: usize, piece: &mut impl FnMut(usize, usize)) -> usize {
        let mut at = start;
        for found in self.0.find_iter(&text[start..end]) {
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
}
