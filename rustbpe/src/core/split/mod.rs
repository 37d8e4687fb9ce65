//! A text cut into the pieces (pre-tokens) that BPE never merges across.
//!
//! Known patterns are cut by hand (`gpt4`): 64 bytes at a time (`window`), or one character after the other (`runs`) where a piece
//! is longer. Any other pattern goes to the regex `engine`. `parts` cuts long texts for several threads.

mod engine;
mod gpt4;
pub mod parts;
mod runs;
#[cfg(test)]
mod tests;
mod window;

use super::boundaries::Boundaries;
use super::error::Result;
use super::text::Text;
use super::unicode::Classes;
use engine::Engine;
use gpt4::Gpt4;
use parts::{Part, part_end};

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
    Regex(Engine),
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

    /// The general engine, for any pattern.
    fn by_regex(pattern: &str) -> Result<Self> {
        Engine::new(pattern).map(Splitter::Regex)
    }

    /// Calls `piece` with the start and the end of each piece of `text` in order. The pieces put together are the
    /// text: what a pattern leaves unmatched becomes a piece too, so that nothing is lost.
    #[inline]
    pub fn split(&self, text: &str, piece: impl FnMut(usize, usize)) {
        self.split_further(text, None, piece);
    }

    /// The same, with pieces cut further at those of the `boundaries` between characters that no merge crosses.
    #[inline]
    pub fn split_further(&self, text: &str, boundaries: Option<&Boundaries>, piece: impl FnMut(usize, usize)) {
        match self {
            Splitter::Gpt4(gpt4) => gpt4.split(text, boundaries, piece),
            Splitter::Regex(engine) => engine.split(text, boundaries, piece),
        }
    }

    /// Splits long texts into parts of about `length` each, between a letter and another character, where a piece always ends. Returns all
    /// parts in order. Other patterns have no such boundary, so texts stay whole.
    pub fn parts<'t>(&self, texts: &[Text<'t>], length: usize) -> Vec<Part<'t>> {
        let mut parts = Vec::with_capacity(texts.len());
        for &text in texts {
            let mut rest = text;
            if let Splitter::Gpt4(gpt4) = self {
                while let Some(end) = part_end(gpt4.classes, rest, length) {
                    let (text, after) = rest.split_at(end);
                    parts.push(Part { text, last: false });
                    rest = after;
                }
            }
            parts.push(Part { text: rest, last: true });
        }
        parts
    }
}
