//! Byte-level BPE without Python. A text passes through these modules in this order, which is also the order to read them in:
//!
//! 1. [`text`]: texts as Python stores them, and their UTF-8.
//! 2. [`split`]: a text into pieces (pre-tokens), which no merge crosses.
//! 3. [`pieces`]: short pieces as 128-bit numbers, hashed.
//! 4. [`train`]: counts of pieces into the tokens of a vocabulary.
//! 5. `merges`: the table of a vocabulary's merges, and `boundaries`: between which characters it never merges.
//! 6. [`encode`]: pieces into token ids, and ids into bytes.
//! 7. [`pack`]: documents of ids into rows of one length.
//!
//! Below them: [`error`], [`parallel`], [`id`], `unicode`, `bits`, and [`memory`], which has all of the core's `unsafe`.
//! A module uses only those above it in this list and these, except that `split` cuts at `boundaries`.

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
