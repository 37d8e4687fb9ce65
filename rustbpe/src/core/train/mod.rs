//! Learning the merges of byte-level BPE.
//!
//! First the texts become unique pieces with counts (`counter`, with a table of `counts` for each thread); then the most frequent pair
//! of neighbouring tokens becomes a token, again and again (`learn`). The pieces are one `sequence` of tokens, their pairs are in a
//! priority queue (`pairs`). Counts are kept up to date where a merge changes them (`neighbours`), so the cost of a merge is the
//! number of places it touches, however long a piece is.

pub mod counter;
pub mod counts;
pub mod learn;
mod neighbours;
mod pairs;
mod sequence;
#[cfg(test)]
mod tests;
