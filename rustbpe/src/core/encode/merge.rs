//! Merging a piece into tokens.
//!
//! The neighbours of the lowest rank merge, in a tie the leftmost, until there are none. This module has the algorithms for pieces that
//! are not long, `merge_long` those in nearly linear time. All give the same ids.

use super::merge_long::{LONG, merge_by_heap, merge_by_rank};
use crate::core::bits::ones;
use crate::core::merges::{ID_BITS, Merges, NONE};
use crate::core::pieces::SHORT;

/// Appends the ids of a piece to `ids`. `ranks` is working memory.
pub fn merge(merges: &Merges, piece: &[u8], ranks: &mut Vec<u32>, ids: &mut Vec<u32>) {
    if piece.len() <= SHORT {
        merge_short(merges, piece, ids);
    } else if piece.len() <= LONG {
        merge_by_scan(merges, piece, ranks, ids);
    } else if !merge_by_rank(merges, piece, ids) {
        merge_by_heap(merges, piece, ids);
    }
}

/// An id that no token has.
const NO_ID: u32 = (1 << ID_BITS) - 1;

/// For a short piece: every possible part is examined each time, which avoids unpredictable branches.
pub fn merge_short(merges: &Merges, piece: &[u8], out: &mut Vec<u32>) {
    const PLACES: usize = 16;
    const OUTSIDE: usize = PLACES; // before the first and after the last part
    let mut ids = [NO_ID; PLACES + 1];
    // Of the merge of each part with the next: its rank, and then its place.
    let mut keys = [u64::MAX; PLACES + 1];
    let key = |rank: u32, place: usize| u64::from(rank) << 8 | place as u64;
    for (place, &byte) in piece.iter().enumerate() {
        ids[place] = merges.byte(byte);
    }
    for (place, pair) in piece.windows(2).enumerate() {
        keys[place] = key(merges.byte_pair(pair), place);
    }
    let lower = |one: u64, other: u64| if one < other { one } else { other };
    let mut parts = (1u32 << piece.len()) - 1;
    loop {
        let eight: [u64; 8] = std::array::from_fn(|i| lower(keys[i], keys[i + 8]));
        let four: [u64; 4] = std::array::from_fn(|i| lower(eight[i], eight[i + 4]));
        let lowest = lower(lower(four[0], four[1]), lower(four[2], four[3]));
        if lowest >= key(NONE, 0) {
            break;
        }
        let (rank, at) = ((lowest >> 8) as u32, lowest as usize & (PLACES - 1));
        let (left, right) = (parts & ((1 << at) - 1), parts & u32::MAX << (at + 1));
        let taken = right.trailing_zeros() as usize & (PLACES - 1);
        let after = (right & right.wrapping_sub(1) | 1 << OUTSIDE).trailing_zeros() as usize;
        let before = if left == 0 { OUTSIDE } else { 31 - left.leading_zeros() as usize };
        parts &= !(1 << taken);
        ids[at] = rank;
        keys[taken] = u64::MAX;
        keys[before] = key(merges.get(ids[before], rank), before);
        keys[at] = key(merges.get(rank, ids[after]), at);
    }
    out.extend(ones(parts.into()).map(|place| ids[place]));
}

/// Quadratic, and fastest for a piece that is not very long. `ranks` is working memory: of the merge of each part with the next.
pub fn merge_by_scan(merges: &Merges, piece: &[u8], ranks: &mut Vec<u32>, ids: &mut Vec<u32>) {
    ids.extend(piece.iter().map(|&byte| merges.byte(byte)));
    ranks.clear();
    ranks.extend(piece.windows(2).map(|pair| merges.byte_pair(pair)));
    loop {
        let (mut lowest, mut at) = (NONE, 0);
        for (i, &rank) in ranks.iter().enumerate() {
            if rank < lowest {
                (lowest, at) = (rank, i);
            }
        }
        if lowest == NONE {
            return;
        }
        ids[at] = lowest;
        ids.remove(at + 1);
        ranks.remove(at);
        if at > 0 {
            ranks[at - 1] = merges.get(ids[at - 1], lowest);
        }
        if let Some(&after) = ids.get(at + 1) {
            ranks[at] = merges.get(lowest, after);
        }
    }
}
