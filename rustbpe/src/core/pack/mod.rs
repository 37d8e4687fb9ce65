//! Best-fit packing of documents into rows of equal length.
//!
//! `packer` writes rows of ids, for example to a `file`; `plan` has the rows of lengths alone; `best_fit` is what both choose by.

mod best_fit;
pub mod file;
pub mod packer;
pub mod plan;
#[cfg(test)]
mod tests;
