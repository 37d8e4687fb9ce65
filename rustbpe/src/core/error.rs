//! What can go wrong.

use std::fmt;

/// What can go wrong. Nothing in this crate panics on bad input.
#[derive(Debug)]
pub enum Error {
    /// The caller's input cannot be used; the text says why.
    Invalid(String),
    /// Text number `text` has no UTF-8: code point `at` of it is half of a surrogate pair.
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
    /// The same error, counted from the start of a stream in which `texts` texts came before.
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
