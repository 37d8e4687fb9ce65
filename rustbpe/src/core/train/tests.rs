//! Training beside a slow reference.

use std::cmp::Reverse;

use proptest::prelude::*;

use super::counter::Counter;
use super::counts::Counts;
use super::learn::learn;
use crate::core::error::Error;
use crate::core::split::{GPT4_PATTERN, Splitter};
use crate::core::text::Text;

fn train(texts: &[&str], vocab_size: usize, threads: usize) -> Vec<Vec<u8>> {
    let mut counter = Counter::new(GPT4_PATTERN, threads).unwrap();
    for batch in texts.chunks(3) {
        let batch: Vec<Text> = batch.iter().map(|&text| text.into()).collect();
        counter.add(&batch, &mut || Ok(())).unwrap();
    }
    learn(counter.finish(), vocab_size, &mut || Ok(())).unwrap()
}

/// Counts every pair of every piece anew before each merge.
fn slow(texts: &[&str], vocab_size: usize) -> Vec<Vec<u8>> {
    let mut tokens: Vec<Vec<u8>> = (0..=255).map(|byte| vec![byte]).collect();
    let mut pieces: Vec<Vec<u32>> = Vec::new();
    for text in texts {
        let splitter = Splitter::new(GPT4_PATTERN).unwrap();
        splitter.split(text, |start, end| pieces.push(text[start..end].bytes().map(u32::from).collect()));
    }
    while tokens.len() < vocab_size {
        let mut counts = std::collections::BTreeMap::new();
        for pair in pieces.iter().flat_map(|piece| piece.windows(2)) {
            *counts.entry((pair[0], pair[1])).or_insert(0) += 1;
        }
        let Some((&(a, b), _)) = counts.iter().max_by_key(|&(&pair, &count)| (count, Reverse(pair))) else { break };
        for piece in &mut pieces {
            let mut merged = Vec::new();
            let mut rest = &piece[..];
            while let [first, tail @ ..] = rest {
                if *first == a && tail.first() == Some(&b) {
                    merged.push(tokens.len() as u32);
                    rest = &tail[1..];
                } else {
                    merged.push(*first);
                    rest = tail;
                }
            }
            *piece = merged;
        }
        tokens.push([&*tokens[a as usize], &*tokens[b as usize]].concat());
    }
    tokens
}

#[test]
fn the_most_frequent_pair_first_then_the_smallest_ids() {
    let tokens = train(&["abab cd cd ab"], 260, 1);
    assert_eq!(tokens[256], b"ab"); // 3 times
    assert_eq!(tokens[257], b" c"); // 2 times, as "cd" and " cd": the smallest ids
    assert_eq!(tokens[258], b" cd");
}

#[test]
fn stops_when_nothing_is_left() {
    assert_eq!(train(&["ab"], 1000, 1).len(), 257);
    assert_eq!(train(&[], 1000, 2).len(), 256);
    assert_eq!(train(&["ab ab"], 256, 2).len(), 256);
    assert!(learn(Counts::default(), 255, &mut || Ok(())).is_err());
}

#[test]
fn long_pieces_are_not_quadratic() {
    let mut state = 1u32;
    let genome: String = (0..300_000)
        .map(|_| {
            state = state.wrapping_mul(1664525).wrapping_add(1013904223);
            "acgt".as_bytes()[(state >> 30) as usize] as char
        })
        .collect();
    assert_eq!(train(&[&genome], 1000, 1).len(), 1000);
    let spaces = train(&[&" ".repeat(1 << 18)], 1000, 1);
    assert_eq!(spaces.last().unwrap().len(), 1 << 18);
}

#[test]
fn the_check_can_stop_it() {
    let mut counts = Counts::default();
    counts.add(&Splitter::new(GPT4_PATTERN).unwrap(), &"ab".repeat(1 << 19));
    assert!(matches!(learn(counts, 300, &mut || Err(Error::Stopped)), Err(Error::Stopped)));
}

proptest! {
    #[test]
    fn equals_the_slow_reference(texts in prop::collection::vec("[abc ]{0,30}|[aé字 \\n12]{0,20}", 0..8), extra in 0usize..40) {
        let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
        let tokens = train(&texts, 256 + extra, 1);
        prop_assert_eq!(&tokens, &slow(&texts, 256 + extra));
        prop_assert_eq!(&tokens, &train(&texts, 256 + extra, 3));
        let unique: std::collections::HashSet<_> = tokens.iter().collect();
        prop_assert_eq!(unique.len(), tokens.len());
    }
}
