//! Merging a long piece in nearly linear time, with the ids that scanning it would give.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use rustc_hash::FxHashMap;

use crate::core::id::Id;
use crate::core::merges::{Merges, NONE};

/// A piece of more bytes than this is long.
pub const LONG: usize = 128;

/// One byte many times, as runs of equal tokens, of which there are never many: appends its ids to `out`. False, and no ids, for any
/// other piece, for one that is not long, and where a merge makes one of a lower rank possible.
#[inline]
pub fn merge_run<I: Id>(merges: &Merges, piece: &[u8], out: &mut Vec<I>) -> bool {
    piece.len() > LONG && piece[1..] == piece[..piece.len() - 1] && merge_long_run(merges, piece, out)
}

fn merge_long_run<I: Id>(merges: &Merges, piece: &[u8], out: &mut Vec<I>) -> bool {
    let mut runs = vec![(merges.byte(piece[0]), piece.len())];
    loop {
        let inside = runs.iter().filter(|run| run.1 > 1).map(|run| merges.get(run.0, run.0));
        let between = runs.windows(2).map(|pair| merges.get(pair[0].0, pair[1].0));
        let Some(lowest) = inside.chain(between).min().filter(|&rank| rank != NONE) else { break };
        let lower = |left, right| merges.get(left, right) < lowest;
        if lower(lowest, lowest) || runs.iter().any(|run| lower(run.0, lowest) || lower(lowest, run.0)) {
            return false;
        }
        let mut merged: Vec<(u32, usize)> = Vec::with_capacity(2 * runs.len() + 1);
        for (id, mut count) in runs {
            if let Some(last) = merged.last_mut().filter(|last| merges.get(last.0, id) == lowest) {
                (last.1, count) = (last.1 - 1, count - 1);
                append_run(&mut merged, lowest, 1);
            }
            let pairs = if merges.get(id, id) == lowest { count / 2 } else { 0 };
            append_run(&mut merged, lowest, pairs);
            append_run(&mut merged, id, count - 2 * pairs);
        }
        runs = merged;
    }
    runs.into_iter().for_each(|(id, count)| out.resize(out.len() + count, I::new(id)));
    true
}

/// Lets runs of equal ids end with `count` times `id` more.
fn append_run(runs: &mut Vec<(u32, usize)>, id: u32, count: usize) {
    if runs.last().is_some_and(|run| run.1 == 0) {
        runs.pop();
    }
    match runs.last_mut() {
        Some(last) if last.0 == id => last.1 += count,
        _ if count > 0 => runs.push((id, count)),
        _ => {}
    }
}

/// Nearly linear: one rank after the other. That is right as long as no merge makes one of a lower rank possible, as is so where
/// the tokens were learned; otherwise false, and no ids.
pub fn merge_by_rank(merges: &Merges, piece: &[u8], out: &mut Vec<u32>) -> bool {
    let mut symbols = Symbols::new(merges, piece);
    let mut places: FxHashMap<u32, Vec<u32>> = FxHashMap::default();
    for (rank, i) in symbols.ranks() {
        places.entry(rank).or_default().push(i);
    }
    let mut ranks: BinaryHeap<Reverse<u32>> = places.keys().copied().map(Reverse).collect();
    let mut ascend = true;
    while let Some(Reverse(rank)) = ranks.pop() {
        let mut here = places.remove(&rank).unwrap_or_default();
        here.sort_unstable();
        for i in here {
            if symbols.rank(i) == rank {
                symbols.merge(merges, i, |next, i| {
                    ascend &= next > rank;
                    places.entry(next).or_insert_with(|| (ranks.push(Reverse(next)), Vec::new()).1).push(i);
                });
            }
        }
        if !ascend {
            return false;
        }
    }
    out.extend(symbols.ids());
    true
}

/// For any ranks, n log n.
pub fn merge_by_heap(merges: &Merges, piece: &[u8], out: &mut Vec<u32>) {
    let mut symbols = Symbols::new(merges, piece);
    let mut heap: BinaryHeap<Reverse<(u32, u32)>> = symbols.ranks().map(Reverse).collect();
    while let Some(Reverse((rank, i))) = heap.pop() {
        if symbols.rank(i) == rank {
            symbols.merge(merges, i, |rank, i| heap.push(Reverse((rank, i))));
        }
    }
    out.extend(symbols.ids());
}

/// The tokens of a piece so far, in a linked list.
struct Symbols(Vec<Symbol>);

#[derive(Clone, Copy)]
struct Symbol {
    /// NONE for one that another has taken.
    id: u32,
    /// Of its merge with the symbol after it.
    rank: u32,
    before: u32,
    after: u32,
}

impl Symbols {
    /// The bytes of a piece.
    fn new(merges: &Merges, piece: &[u8]) -> Self {
        let ranks = piece.windows(2).map(|pair| merges.byte_pair(pair)).chain([NONE]);
        let symbol =
            |((&byte, rank), i): ((&u8, u32), u32)| Symbol { id: merges.byte(byte), rank, before: i.wrapping_sub(1), after: i + 1 };
        Symbols(piece.iter().zip(ranks).zip(0..).map(symbol).collect())
    }

    /// The rank of the merge of symbol i with the next; NONE where they do not merge.
    #[inline]
    fn rank(&self, i: u32) -> u32 {
        self.0[i as usize].rank
    }

    /// The rank of each merge that is possible, and its left symbol.
    fn ranks(&self) -> impl Iterator<Item = (u32, u32)> + '_ {
        self.0.iter().zip(0..).map(|(symbol, i)| (symbol.rank, i)).filter(|&(rank, _)| rank != NONE)
    }

    fn ids(&self) -> impl Iterator<Item = u32> + '_ {
        self.0.iter().map(|symbol| symbol.id).filter(|&id| id != NONE)
    }

    /// Merges symbol i with the next, and calls `found` with each merge that is possible since: its rank and its left symbol.
    #[inline]
    fn merge(&mut self, merges: &Merges, i: u32, mut found: impl FnMut(u32, u32)) {
        let symbols = &mut self.0;
        let symbol = symbols[i as usize];
        let taken = &mut symbols[symbol.after as usize];
        let after = taken.after;
        (taken.id, taken.rank) = (NONE, NONE);
        symbols[i as usize] = Symbol { id: symbol.rank, after, ..symbol };
        if let Some(after) = symbols.get_mut(after as usize) {
            after.before = i;
        }
        for left in [symbol.before, i] {
            let Some(&Symbol { id, after, .. }) = symbols.get(left as usize) else { continue };
            let rank = symbols.get(after as usize).map_or(NONE, |after| merges.get(id, after.id));
            symbols[left as usize].rank = rank;
            if rank != NONE {
                found(rank, left);
            }
        }
    }
}
