//! Documents of ids into rows of one length.

use std::io::Write;

use super::best_fit::{Waiting, check_buffer};
use crate::core::error::{Error, Result};
use crate::core::id::Id;

/// A row of more ids is a mistake, and would be filled up in memory.
const LONGEST_ROW: usize = 1 << 30;

/// A document of which `ids[start..]` is still to be placed. It takes one id more: the BOS in front.
struct Document<I> {
    ids: Vec<I>,
    start: usize,
}

/// Packs documents into rows of `row` ids and writes them, little-endian, without a header.
///
/// Every document is BOS and its ids. Of up to `buffer` waiting documents, the longest that fits into the
/// rest of the row is placed; where none fits, the shortest is cropped to fill the row exactly, and its
/// remainder, with BOS in front, waits as the newest. Ties go to the document that has waited longest.
pub struct Packer<W: Write, I> {
    row: usize,
    bos: I,
    buffer: usize,
    out: W,
    waiting: Waiting<Document<I>>,
    current: Vec<I>,
    /// The first `row` ids of all documents in the order of their arrival, to complete the last row with.
    head: Vec<I>,
    bytes: Vec<u8>,
    summary: Summary,
}

/// Counts of packed rows, ids and bytes.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Summary {
    pub rows: u64,
    /// Ids placed, every BOS included, the completion of the last row not.
    pub tokens: u64,
}

impl<W: Write, I: Id> Packer<W, I> {
    /// Errors: `Invalid` where `row` is below 2 (a BOS alone would fill it) or `buffer` is 0.
    pub fn new(out: W, row: usize, bos: u32, buffer: usize) -> Result<Self> {
        check_pack(row, buffer)?;
        let (waiting, current, head, bytes) = (Waiting::new(), Vec::new(), Vec::new(), Vec::new());
        Ok(Packer { row, bos: I::new(bos), buffer, out, waiting, current, head, bytes, summary: Summary::default() })
    }

    /// Takes the next document's ids (without BOS) and writes the rows that are full.
    pub fn add(&mut self, ids: Vec<I>) -> Result<()> {
        for id in std::iter::once(&self.bos).chain(&ids).take(self.row - self.head.len()) {
            self.head.push(*id);
        }
        self.waiting.add(ids.len() + 1, Document { ids, start: 0 });
        while self.waiting.len() >= self.buffer {
            self.place()?;
        }
        Ok(())
    }

    /// Places all that still waits, completes the last row, and flushes.
    pub fn finish(mut self) -> Result<Summary> {
        while self.waiting.len() > 0 {
            self.place()?;
        }
        if !self.current.is_empty() {
            let missing = self.row - self.current.len();
            self.current.extend(self.head.iter().copied().cycle().take(missing));
            self.write()?;
        }
        self.out.flush()?;
        Ok(self.summary)
    }

    fn place(&mut self) -> Result<()> {
        let space = self.row - self.current.len();
        if let Some((_, document)) = self.waiting.take_longest(space) {
            self.append(&document, document.ids.len());
        } else if let Some((length, mut document)) = self.waiting.take_shortest() {
            let end = document.start + space - 1;
            self.append(&document, end);
            document.start = end;
            self.waiting.add(length + 1 - space, document);
        }
        if self.current.len() == self.row { self.write() } else { Ok(()) }
    }

    fn append(&mut self, document: &Document<I>, end: usize) {
        self.current.push(self.bos);
        self.current.extend_from_slice(&document.ids[document.start..end]);
        self.summary.tokens += (1 + end - document.start) as u64;
    }

    fn write(&mut self) -> Result<()> {
        self.bytes.resize(self.row * size_of::<I>(), 0);
        I::write(&self.current, &mut self.bytes);
        self.out.write_all(&self.bytes)?;
        self.current.clear();
        self.summary.rows += 1;
        Ok(())
    }
}

/// Whether a `Packer` can be made with these.
pub fn check_pack(row: usize, buffer: usize) -> Result<()> {
    if row < 2 {
        return Err(Error::Invalid(format!("row is {row}, but a BOS and one id need 2")));
    }
    if row > LONGEST_ROW {
        return Err(Error::Invalid(format!("row is {row}; it must be at most {LONGEST_ROW}")));
    }
    check_buffer(buffer)
}
