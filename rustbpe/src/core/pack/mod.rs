//! Best-fit packing of documents into rows of equal length.
//!
//! `packer` writes rows of ids, for example to a `file`. `plan` packs lengths only. Both use `best_fit`.

mod best_fit;
pub mod file;
pub mod packer;
pub mod plan;
#[cfg(test)]
mod tests;
