//! Byte-level BPE: training, encoding, and packing of documents into training rows.
//!
//! `core` knows nothing of Python; its documentation says in which order to read it. `py` (feature `python`) is the glue: it holds
//! the interpreter only to fetch texts and to hand back results, and turns every error into an exception.

pub mod core;

#[cfg(feature = "python")]
mod py;
