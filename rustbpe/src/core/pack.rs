//! Best-fit packing of documents into rows of equal length.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Write};
use std::path::Path;

use super::encode::Id;
use super::memory;
use super::{Error, Result};

/// A row of more ids is a mistake, and would be filled up in memory.
const LONGEST_ROW: usize = 1 << 30;

/// A file that goes to disk while more is to come, so that little is left for the fsync at the end.
pub struct EagerFile {
    file: File,
    written: u64,
    begun: u64,
}

/// Bytes that are sent to disk together.
const TOGETHER: u64 = 8 << 20;

impl EagerFile {
    pub fn create(path: &Path) -> io::Result<Self> {
        Ok(EagerFile { file: File::create(path)?, written: 0, begun: 0 })
    }
}

impl Write for EagerFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = self.file.write(bytes)?;
        self.written += n as u64;
        if self.written - self.begun >= TOGETHER {
            memory::write_back(&self.file, self.begun, self.written - self.begun);
            self.begun = self.written;
        }
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// Documents that wait for a place, found by length; of equal lengths the one that came first.
struct Waiting<T> {
    by_length: BTreeMap<(usize, Reverse<u64>), T>,
    arrivals: u64,
}

impl<T> Waiting<T> {
    fn new() -> Self {
        Waiting { by_length: BTreeMap::new(), arrivals: 0 }
    }

    fn len(&self) -> usize {
        self.by_length.len()
    }

    fn add(&mut self, length: usize, item: T) {
        self.by_length.insert((length, Reverse(self.arrivals)), item);
        self.arrivals += 1;
    }

    /// Takes the longest of at most `space`, with its length.
    fn take_longest(&mut self, space: usize) -> Option<(usize, T)> {
        let key = *self.by_length.range(..=(space, Reverse(0))).next_back()?.0;
        self.by_length.remove(&key).map(|item| (key.0, item))
    }

    fn take_shortest(&mut self) -> Option<(usize, T)> {
        let shortest = self.by_length.first_key_value()?.0.0;
        self.take_longest(shortest)
    }
}

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

/// What was packed.
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

/// Where one part of an item goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Placement {
    pub row: usize,
    pub item: usize,
    /// The part is item[start..start + length].
    pub start: usize,
    pub length: usize,
}

/// The same best fit over lengths alone, in the order of placing. A length counts all of an item's ids; no
/// BOS is added to it or to a remainder. With `crop` every row but the last is full; without it nothing is
/// cropped, and a row into which none of the waiting items fits stays short.
///
/// Errors: `Invalid` where `row` or `buffer` is 0, a length is below 1, or, without `crop`, above `row`.
pub fn plan_rows(lengths: &[i64], row: usize, buffer: usize, crop: bool) -> Result<Vec<Placement>> {
    if row == 0 {
        return Err(Error::Invalid("row is 0; it must be at least 1".into()));
    }
    check_buffer(buffer)?;
    let mut waiting = Waiting::new();
    let mut plan = Vec::with_capacity(lengths.len());
    let (mut index, mut used) = (0, 0);
    let mut arrivals = lengths.iter().enumerate();
    loop {
        while waiting.len() < buffer {
            let Some((item, &length)) = arrivals.next() else { break };
            match usize::try_from(length) {
                Ok(length) if length > 0 && (crop || length <= row) => waiting.add(length, (item, 0)),
                Ok(length) if length > 0 => {
                    return Err(Error::Invalid(format!("item {item} has length {length}, longer than a row of {row}: truncate it first")));
                }
                _ => return Err(Error::Invalid(format!("item {item} has length {length}; it must be at least 1"))),
            }
        }
        if let Some((length, (item, start))) = waiting.take_longest(row - used) {
            plan.push(Placement { row: index, item, start, length });
            used += length;
        } else if waiting.len() == 0 {
            return Ok(plan);
        } else if !crop {
            used = row;
        } else if let Some((length, (item, start))) = waiting.take_shortest() {
            let space = row - used;
            plan.push(Placement { row: index, item, start, length: space });
            waiting.add(length - space, (item, start + space));
            used = row;
        }
        if used == row {
            (index, used) = (index + 1, 0);
        }
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

fn check_buffer(buffer: usize) -> Result<()> {
    if buffer == 0 { Err(Error::Invalid("buffer is 0; it must be at least 1".into())) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const BOS: u32 = 9;

    fn pack(documents: &[Vec<u32>], row: usize, buffer: usize) -> (Vec<Vec<u32>>, Summary) {
        let mut bytes = Vec::new();
        let mut packer = Packer::<_, u16>::new(&mut bytes, row, BOS, buffer).unwrap();
        for document in documents {
            packer.add(document.iter().map(|&id| id as u16).collect()).unwrap();
        }
        let summary = packer.finish().unwrap();
        let ids: Vec<u32> = bytes.chunks(2).map(|pair| u16::from_le_bytes([pair[0], pair[1]]).into()).collect();
        (ids.chunks(row).map(<[u32]>::to_vec).collect(), summary)
    }

    /// The rule, word for word, over a plain list.
    fn slow(documents: &[Vec<u32>], row: usize, buffer: usize) -> (Vec<Vec<u32>>, Summary) {
        let documents: Vec<Vec<u32>> = documents.iter().map(|document| [&[BOS], &**document].concat()).collect();
        let mut incoming = documents.iter().cloned();
        let (mut waiting, mut rows, mut current): (Vec<Vec<u32>>, Vec<Vec<u32>>, Vec<u32>) = Default::default();
        let mut tokens = 0;
        loop {
            while waiting.len() < buffer {
                let Some(document) = incoming.next() else { break };
                waiting.push(document);
            }
            let space = row - current.len();
            let fits = |i: &usize| waiting[*i].len() <= space;
            if let Some(i) = (0..waiting.len()).rev().filter(fits).max_by_key(|&i| waiting[i].len()) {
                current.extend(waiting.remove(i));
            } else if let Some(i) = (0..waiting.len()).min_by_key(|&i| waiting[i].len()) {
                let document = waiting.remove(i);
                current.extend(&document[..space]);
                waiting.push([&[BOS], &document[space..]].concat());
            } else {
                break;
            }
            if current.len() == row {
                tokens += row;
                rows.push(std::mem::take(&mut current));
            }
        }
        if !current.is_empty() {
            tokens += current.len();
            for id in documents.concat().into_iter().cycle().take(row - current.len()) {
                current.push(id);
            }
            rows.push(current);
        }
        let summary = Summary { rows: rows.len() as u64, tokens: tokens as u64 };
        (rows, summary)
    }

    #[test]
    fn examples() {
        assert_eq!(pack(&[], 4, 10), (vec![], Summary::default()));
        // The longest first, a tie to the earliest, then a crop whose remainder gets a BOS, then the beginning again.
        let (rows, summary) = pack(&[vec![1], vec![2, 2], vec![3, 3], vec![4, 4, 4, 4, 4]], 4, 10);
        assert_eq!(rows, [[BOS, 2, 2, BOS], [BOS, 3, 3, BOS], [BOS, 1, BOS, 4], [BOS, 4, 4, 4], [BOS, 4, BOS, 1]]);
        assert_eq!(summary, Summary { rows: 5, tokens: 18 });
        // A corpus smaller than a row goes round.
        assert_eq!(pack(&[vec![1]], 5, 1).0, [[BOS, 1, BOS, 1, BOS]]);
        assert!(Packer::<_, u16>::new(Vec::new(), 1, BOS, 1).is_err());
        assert!(Packer::<_, u16>::new(Vec::new(), 2, BOS, 0).is_err());
    }

    #[test]
    fn wide_ids() {
        let mut bytes = Vec::new();
        let mut packer = Packer::<_, u32>::new(&mut bytes, 2, 70_000, 1).unwrap();
        packer.add(vec![1]).unwrap();
        packer.finish().unwrap();
        assert_eq!(bytes, [0x70, 0x11, 1, 0, 1, 0, 0, 0]);
    }

    #[test]
    fn one_huge_document() {
        let ids: Vec<u32> = vec![1; 300_000];
        let (rows, summary) = pack(&[ids], 4, 1000);
        assert_eq!(rows.len(), 100_000);
        assert_eq!(summary.tokens, 400_000);
    }

    #[test]
    fn plans_refuse_what_they_cannot_place() {
        assert!(plan_rows(&[1], 0, 1, true).is_err());
        assert!(plan_rows(&[1], 1, 0, true).is_err());
        for (lengths, crop) in [([0], true), ([-3], true), ([0], false), ([5], false), ([i64::MIN], false)] {
            assert!(plan_rows(&lengths, 4, 1, crop).is_err(), "{lengths:?}");
        }
        assert_eq!(plan_rows(&[], 4, 1, true).unwrap(), []);
    }

    #[test]
    fn a_file_that_is_sent_to_disk_early_holds_all() {
        let path = std::env::temp_dir().join(format!("rustbpe-eager-{}", std::process::id()));
        let bytes: Vec<u8> = (0..TOGETHER as usize * 5 / 2).map(|i| (i >> 3) as u8).collect();
        let mut file = EagerFile::create(&path).unwrap();
        bytes.chunks(1 << 20).for_each(|some| file.write_all(some).unwrap());
        file.flush().unwrap();
        let found = std::fs::read(&path);
        std::fs::remove_file(&path).unwrap();
        assert!(file.begun == 2 * TOGETHER && found.unwrap() == bytes);
    }

    proptest! {
        #[test]
        fn equals_the_slow_reference(lengths in prop::collection::vec(0usize..30, 0..40), row in 2usize..20, buffer in 1usize..12) {
            let documents: Vec<Vec<u32>> = lengths.iter().enumerate().map(|(i, &n)| (0..n).map(|j| (100 * i + j) as u32).collect()).collect();
            prop_assert_eq!(pack(&documents, row, buffer), slow(&documents, row, buffer));
        }

        #[test]
        fn plans_place_everything_once(lengths in prop::collection::vec(1i64..20, 0..40), row in 1usize..20, buffer in 1usize..12, crop: bool) {
            let lengths: Vec<i64> = if crop { lengths } else { lengths.iter().map(|&n| n.min(row as i64)).collect() };
            let plan = plan_rows(&lengths, row, buffer, crop).unwrap();
            let mut placed = vec![0; lengths.len()];
            let mut used = vec![0; plan.last().map_or(0, |last| last.row + 1)];
            for part in &plan {
                prop_assert_eq!(part.start, placed[part.item]);
                prop_assert!(part.length > 0);
                placed[part.item] += part.length;
                used[part.row] += part.length;
            }
            prop_assert_eq!(placed, lengths.iter().map(|&n| n as usize).collect::<Vec<_>>());
            prop_assert!(used.iter().all(|&n| 0 < n && n <= row));
            prop_assert!(!crop || used.iter().rev().skip(1).all(|&n| n == row));
            prop_assert!(crop || plan.len() == lengths.len());
        }
    }
}
