//! Errors of the core.

use std::fmt;

/// The core's errors. Nothing in this crate panics on bad input.
#[derive(Debug)]
pub enum Error {
    /// The caller's input is invalid, with the reason.
    Invalid(String),
    /// Text number `text` cannot be encoded as UTF-8, because its code point `at` is half of a surrogate pair.
    Surrogate {
        text: usize,
        at: usize,
        value: u32,
    },
    Io(std::io::Error),
    /// The `Check` callback asked to stop.
    Stopped,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Invalid(message) => f.write_str(message),
            Error::Surrogate { text, at, value } => {
                write!(f, "text {text} has no UTF-8: it holds a lone surrogate, '\\u{value:04x}' at character {at}")
            }
            Error::Io(error) => error.fmt(f),
            Error::Stopped => f.write_str("stopped"),
        }
    }
}

impl std::error::Error for Error {}

impl Error {
    /// The same error with its index in a stream, after `texts` earlier texts.
    pub fn behind(self, texts: usize) -> Self {
        match self {
            Error::Surrogate { text, at, value } => Error::Surrogate { text: texts + text, at, value },
            error => error,
        }
    }
}

impl From<std::io::Error> for Error {
    fn from(error: std::io::Error) -> Self {
        Error::Io(error)
    }
}

pub type Result<T> = std::result::Result<T, Error>;
