//! The ids of pieces that one thread has seen, in bounded memory.

use rustc_hash::FxHashMap;

use crate::core::id::Id;
use crate::core::{memory, pieces};

/// The ids of short pieces, or, of those that have more than `IDS`, that they have so many. A piece is at one of the `WAYS` places
/// from the one that its hash names; where all of them are taken and the table has its full size, it takes the place of another.
#[derive(Default)]
pub struct ShortCache {
    table: Vec<Entry>,
    used: usize,
}

/// A short piece's ids. The key's four highest bits, which are free, are their number, or MANY. No entry crosses a cache line.
#[derive(Clone, Copy, Default)]
#[repr(align(32))]
struct Entry {
    key: u128,
    ids: [u32; IDS],
}

/// Number of cached ids of a short piece.
pub const IDS: usize = 4;
/// The number of ids of a piece that has more.
const MANY: usize = 15;
const WAYS: usize = 8;
/// Places of a new and of a full table (16 MB).
const FEW: usize = 1 << 12;
const MOST: usize = 1 << 19;
const KEY: u128 = u128::MAX >> 4;

impl ShortCache {
    /// Begins to fetch the first place where a piece may be.
    #[inline]
    pub fn fetch(&self, hash: u64) {
        if let Some(known) = self.table.get(hash as usize & self.table.len().wrapping_sub(1)) {
            memory::fetch(known);
        }
    }

    /// The ids of a piece, and how many they are, or MANY.
    #[inline]
    pub fn get(&self, key: u128, hash: u64) -> Option<(&[u32; IDS], usize)> {
        let mask = self.table.len().wrapping_sub(1);
        let first = self.table.get(hash as usize & mask)?;
        let known = if first.key & KEY == key { first } else { self.search(key, hash)? };
        Some((&known.ids, (known.key >> 124) as usize))
    }

    /// A piece that is not at the first of its places.
    fn search(&self, key: u128, hash: u64) -> Option<&Entry> {
        let mask = self.table.len() - 1;
        (0..WAYS)
            .map(|way| &self.table[(hash as usize).wrapping_add(way) & mask])
            .take_while(|known| known.key != 0)
            .find(|known| known.key & KEY == key)
    }

    /// Remembers a piece.
    pub fn remember(&mut self, key: u128, hash: u64, ids: &[u32]) {
        if 2 * self.used >= self.table.len() && self.table.len() < MOST {
            let larger = memory::filled((2 * self.table.len()).max(FEW), Entry::default());
            let smaller = std::mem::replace(&mut self.table, larger);
            self.used = 0;
            for known in smaller.into_iter().filter(|known| known.key != 0) {
                self.put(pieces::hash(known.key & KEY), known);
            }
        }
        let n = if ids.len() <= IDS { ids.len() } else { MANY };
        let mut known = Entry { key: key | (n as u128) << 124, ids: [0; IDS] };
        known.ids.iter_mut().zip(ids).for_each(|(place, &id)| *place = id);
        self.put(hash, known);
    }

    fn put(&mut self, hash: u64, known: Entry) {
        let place = |way| (hash as usize).wrapping_add(way) & (self.table.len() - 1);
        let free = (0..WAYS).map(place).find(|&place| self.table[place].key == 0);
        self.used += usize::from(free.is_some());
        let place = free.unwrap_or_else(|| place((hash >> 61) as usize % WAYS));
        self.table[place] = known;
    }
}

/// Pieces followed by their ids, found by a hash and then compared. When there are too many, all are dropped.
#[derive(Default)]
pub struct LongCache {
    /// Hash -> where in `memory` the bytes begin, where the ids do, and where they end.
    places: FxHashMap<u64, (u32, u32, u32)>,
    memory: Vec<u8>,
}

/// Bytes of all long pieces and their ids.
const MEMORY: usize = 32 << 20;
/// Longest cached piece in bytes.
pub const LONGEST: usize = 1 << 10;

impl LongCache {
    /// Appends the ids of a piece to `out` if they are cached; returns whether they are.
    pub fn copy<I: Id>(&self, piece: &[u8], hash: u64, out: &mut Vec<I>) -> bool {
        let Some(&(start, ids, end)) = self.places.get(&hash) else { return false };
        let found = self.memory[start as usize..ids as usize] == *piece;
        if found {
            let ids = self.memory[ids as usize..end as usize].chunks_exact(4);
            out.extend(ids.map(|id| I::new(u32::from_le_bytes([id[0], id[1], id[2], id[3]]))));
        }
        found
    }

    /// Remembers a piece of at most `LONGEST` bytes.
    pub fn remember(&mut self, piece: &[u8], hash: u64, ids: &[u32]) {
        if self.memory.len() > MEMORY {
            self.places.clear();
            self.memory.clear();
        }
        let start = self.memory.len() as u32;
        self.memory.extend_from_slice(piece);
        let middle = self.memory.len() as u32;
        self.memory.extend(ids.iter().flat_map(|id| id.to_le_bytes()));
        self.places.insert(hash, (start, middle, self.memory.len() as u32));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_cache_goes_on() {
        let mut short = ShortCache::default();
        for i in 0..MOST as u64 {
            let bytes = [&i.to_le_bytes()[..], &[7]].concat();
            let key = pieces::key(&bytes, 0, 9);
            short.remember(key, pieces::hash(key), &[i as u32, 1]);
            let (ids, n) = short.get(key, pieces::hash(key)).unwrap();
            assert_eq!(ids[..n], [i as u32, 1]);
        }
        assert!(short.table.len() == MOST && short.used < MOST);
        let mut long = LongCache::default();
        for i in 0..MEMORY as u32 / LONGEST as u32 + 10 {
            let piece = i.to_le_bytes().repeat(LONGEST / 4);
            long.remember(&piece, 1, &[i]); // all of one hash: the last is found, the one before is another
            let mut ids: Vec<u32> = Vec::new();
            assert!(long.copy(&piece, 1, &mut ids) && ids == [i]);
            assert!(!long.copy(&piece[1..], 1, &mut ids));
        }
        assert!(long.memory.len() < MEMORY);
    }
}
