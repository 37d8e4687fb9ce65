//! Byte-level BPE without Python.
//!
//! A text passes through these modules in this order, which is also the order to read them in:
//!
//! 1. [`text`]: texts as Python stores them, and their UTF-8.
//! 2. [`split`]: a text into pieces (pre-tokens), which no merge crosses.
//! 3. [`pieces`]: short pieces as 128-bit numbers, hashed.
//! 4. [`train`]: counts of pieces into the tokens of a vocabulary.
//! 5. `merges`: the table of a vocabulary's merges.
//! 6. [`encode`]: pieces into token ids, and ids into bytes.
//! 7. [`pack`]: documents of ids into rows of one length.
//!
//! They use [`error`], [`parallel`] (threads), [`id`], `unicode` (classes of code points), `boundaries` (between which characters a
//! vocabulary never merges), `bits`, and [`memory`], which has all of the core's `unsafe`; and of the list only modules above themselves.

mod bits;
mod boundaries;
pub mod encode;
pub mod error;
pub mod id;
pub mod memory;
mod merges;
pub mod pack;
pub mod parallel;
pub mod pieces;
#[cfg(test)]
mod samples;
pub mod split;
pub mod text;
pub mod train;
mod unicode;
