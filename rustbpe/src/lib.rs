//! Byte-level BPE: training, encoding, and packing of documents into training rows.
//!
//! `core` is independent of Python; its documentation has the order to read it in. `py` (feature `python`) is the binding: it holds the
//! interpreter lock only to fetch texts and to return results, and turns errors into exceptions.

pub mod core;

#[cfg(feature = "python")]
mod py;
