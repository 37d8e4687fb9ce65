//! Packing beside a slow reference.

use proptest::prelude::*;

use super::packer::{Packer, Summary};
use super::plan::plan_rows;

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
