//! The texts as one sequence of tokens, in which pairs are merged.

use super::counts::Counts;
use crate::core::error::{Error, Result};

/// Two neighbouring tokens.
pub type Pair = (u32, u32);

/// No token: between pieces, and inside a token.
pub const NONE: u32 = u32::MAX;

/// All unique pieces behind each other, NONE between them. A token covers as many slots as it had parts when the slots
/// were last compacted, and has its id in the first and the last of them, so that neighbours are found from either side.
pub struct Sequence {
    slots: Vec<u32>,
    /// (first slot, count) of each group of pieces that share a count, ascending in the slot.
    groups: Vec<(u32, i64)>,
    /// Slots of each token.
    widths: Vec<u32>,
}

impl Sequence {
    /// Errors: `Invalid` where the pieces are too many for places of 32 bits.
    pub fn new(counts: Counts) -> Result<Self> {
        let (bytes, pieces) = counts.size();
        let length = 1 + bytes + pieces;
        if length >= NONE as usize {
            return Err(Error::Invalid(format!(
                "the texts hold {length} bytes of different pieces; at most {NONE} can be trained on: use fewer texts"
            )));
        }
        let mut slots = Vec::with_capacity(length);
        let mut groups: Vec<(u32, i64)> = Vec::new();
        slots.push(NONE);
        counts.visit(|piece, count| {
            if piece.len() > 1 {
                if groups.last().is_none_or(|group| group.1 != count) {
                    groups.push((slots.len() as u32, count));
                }
                slots.extend(piece.iter().copied().map(u32::from));
                slots.push(NONE);
            }
        });
        Ok(Sequence { slots, groups, widths: vec![1; 256] })
    }

    /// One slot for each token again, and no more pieces of one token.
    pub fn compact(&mut self) {
        // Groups whose pieces are all gone begin where the next one does.
        let (mut from, mut to, mut group) = (1, 1, 0);
        while from < self.slots.len() {
            while self.groups.get(group).is_some_and(|next| next.0 as usize == from) {
                self.groups[group].0 = to as u32;
                group += 1;
            }
            let token = self.slots[from];
            from += if token == NONE { 1 } else { self.widths[token as usize] as usize };
            if token == NONE && self.slots[to - 2] == NONE {
                to -= 1;
            } else {
                self.slots[to] = token;
                to += 1;
            }
        }
        self.slots.truncate(to);
        self.widths.fill(1);
    }

    /// The number of slots.
    pub fn len(&self) -> usize {
        self.slots.len()
    }

    /// Whether nothing was merged yet.
    pub fn is_bytes(&self) -> bool {
        self.widths.len() == 256
    }

    /// The slots of a token.
    #[inline]
    pub fn width(&self, token: u32) -> u32 {
        self.widths[token as usize]
    }

    /// Calls `visit` with each pair, its place and its piece's count; every token covers one slot.
    pub fn pairs(&self, mut visit: impl FnMut(Pair, u32, i64)) {
        let mut group = Group::default();
        for (at, pair) in self.slots.windows(2).enumerate() {
            if pair[0] != NONE && pair[1] != NONE {
                visit((pair[0], pair[1]), at as u32, group.count(&self.groups, at as u32));
            }
        }
    }

    /// Makes `id` of a pair wherever it still is at one of `places`, and calls `visit` there: with the place, the tokens before and
    /// after (NONE where a piece ends), and the piece's count.
    #[inline]
    pub fn merge(&mut self, (left, right): Pair, id: u32, places: &[u32], mut visit: impl FnMut(u32, Pair, i64)) {
        let (left_width, right_width) = (self.width(left), self.width(right));
        self.widths.push(left_width + right_width);
        let slots = &mut self.slots;
        let mut group = Group::default();
        for &place in places {
            let start = place as usize;
            let middle = start + left_width as usize;
            if slots[start] != left || slots[middle] != right {
                continue; // an earlier merge took one of the two
            }
            let end = middle + right_width as usize;
            let around = (slots[start - 1], slots[end]);
            (slots[middle - 1], slots[middle]) = (NONE, NONE);
            (slots[start], slots[end - 1]) = (id, id);
            visit(place, around, group.count(&self.groups, place));
        }
    }
}

/// Finds the counts of places that ascend.
#[derive(Default)]
struct Group(usize);

impl Group {
    /// The count of the group that `place` is in.
    #[inline]
    fn count(&mut self, groups: &[(u32, i64)], place: u32) -> i64 {
        // In steps that double, then between the last two.
        let mut step = 1;
        while groups.get(self.0 + step).is_some_and(|group| group.0 <= place) {
            step *= 2;
        }
        let within = &groups[self.0 + step / 2..groups.len().min(self.0 + step)];
        self.0 += step / 2 + within.partition_point(|group| group.0 <= place).max(1) - 1;
        groups[self.0].1
    }
}
