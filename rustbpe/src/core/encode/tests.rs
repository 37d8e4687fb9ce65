//! Encoding beside a slow reference.

use proptest::prelude::*;

use super::merge::{merge_by_scan, merge_short};
use super::merge_long::{merge_by_heap, merge_by_rank, merge_run};
use super::{Encoded, Encoder};
use crate::core::pieces::SHORT;
use crate::core::samples::{Held, alphabet, with_parts};
use crate::core::split::{GPT4_PATTERN, Splitter};
use crate::core::text::Text;
use crate::core::train::counter::Counter;
use crate::core::train::learn::learn;

fn train(text: &str, vocab_size: usize) -> Vec<Vec<u8>> {
    let mut counter = Counter::new(GPT4_PATTERN, 1).unwrap();
    counter.add(&[text.into()], &mut || Ok(())).unwrap();
    learn(counter.finish(), vocab_size, &mut || Ok(())).unwrap()
}

/// Looks for the best merge in the list of tokens, anew each time.
fn slow(tokens: &[Vec<u8>], text: &str) -> Vec<u32> {
    slow_split(tokens, text, GPT4_PATTERN)
}

fn slow_split(tokens: &[Vec<u8>], text: &str, pattern: &str) -> Vec<u32> {
    let mut ids = Vec::new();
    let splitter = Splitter::new(pattern).unwrap();
    let find = |bytes: &[u8]| tokens.iter().position(|token| token == bytes);
    splitter.split(text, |start, end| {
        let mut parts: Vec<Vec<u8>> = text[start..end].bytes().map(|byte| vec![byte]).collect();
        while let Some((_, i)) = (1..parts.len()).filter_map(|i| find(&[&*parts[i - 1], &*parts[i]].concat()).map(|rank| (rank, i))).min() {
            let right = parts.remove(i);
            parts[i - 1].extend(right);
        }
        ids.extend(parts.iter().map(|part| find(part).unwrap() as u32));
    });
    ids
}

#[test]
fn round_trip_and_specials() {
    let tokens = train("hello hello world", 262);
    let n = tokens.len() as u32;
    let encoder = Encoder::new(tokens, GPT4_PATTERN, vec![("<|bos|>".into(), n)]).unwrap();
    let text = "hello <|bos|> wörld 🙂\0";
    let ids = encoder.encode(text);
    assert!(ids.iter().all(|&id| id < n));
    assert_eq!(encoder.decode(ids.iter().map(|&id| id.into())).unwrap(), text.as_bytes());
    assert_eq!(encoder.decode([n.into()]).unwrap(), b"<|bos|>");
    assert_eq!(encoder.n_vocab(), n as usize + 1);
    assert!(encoder.decode([-1]).is_err());
    assert!(encoder.decode([i64::from(n) + 1]).is_err());
    assert!(encoder.decode([1 << 32]).is_err());
}

#[test]
fn bad_vocabularies() {
    let with = |token: &[u8]| [alphabet(), vec![token.to_vec()]].concat();
    let error = |tokens, specials| Encoder::new(tokens, GPT4_PATTERN, specials).err().unwrap().to_string();
    assert_eq!(error(with(b""), vec![]), "token 256 is empty");
    assert_eq!(error(with(b"a"), vec![]), "tokens 97 and 256 are the same bytes");
    assert_eq!(error(vec![], vec![]), "byte 0 is not among the tokens");
    assert_eq!(error(vec![vec![]; 1 << 21], vec![]), "2097152 tokens are too many: at most 2097151");
    assert!(error(alphabet(), vec![("x".into(), 255)]).contains("which is a token's"));
    assert!(error(alphabet(), vec![("x".into(), 256), ("y".into(), 256)]).contains("both have id 256"));
}

#[test]
fn long_pieces_are_not_quadratic() {
    let text = " ".repeat(1 << 16) + &"acgt".repeat(1 << 14) + &"字".repeat(1 << 14);
    let encoder = Encoder::new(train(&text, 300), GPT4_PATTERN, vec![]).unwrap();
    let ids = encoder.encode(&text);
    assert!(ids.len() < 2_000);
    assert_eq!(encoder.decode(ids.into_iter().map(i64::from)).unwrap(), text.as_bytes());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    #[test]
    fn equals_the_slow_reference(corpus in "[abc ]{0,60}", text in "[abcd ]{0,200}|[ab]{0,300}", extra in 0usize..60) {
        let tokens = train(&corpus, 256 + extra);
        let encoder = Encoder::new(tokens.clone(), GPT4_PATTERN, vec![]).unwrap();
        let ids = encoder.encode(&text);
        prop_assert_eq!(&ids, &slow(&tokens, &text));
        prop_assert_eq!(&ids, &encoder.encode(&text));
        // What was learned is encoded to itself.
        for (id, token) in (0..).zip(&tokens) {
            let mut ids = Vec::new();
            merge_by_scan(&encoder.merges, token, &mut Vec::new(), &mut ids);
            prop_assert_eq!(ids, [id]);
        }
    }

    #[test]
    fn any_list_of_tokens(more in prop::collection::btree_set("[ab]{2,5}", 0..20), text in "[ab]{0,40}|[ab]{120,160}") {
        let mut tokens = alphabet();
        tokens.extend(more.into_iter().map(String::into_bytes));
        let encoder = Encoder::new(tokens.clone(), GPT4_PATTERN, vec![]).unwrap();
        prop_assert_eq!(encoder.encode(&text), slow(&tokens, &text));
    }

    /// Tokens of any bytes that stand in such text, characters cut or not, in any order.
    #[test]
    fn any_list_of_parts_of_characters(
        corpus in "[aé字孖 ]{1,40}",
        more in prop::collection::vec((0usize..120, 2usize..8), 0..40),
        text in "[aé字孖学🙂 ]{0,60}|[字é]{40,60}",
    ) {
        let tokens = with_parts(&corpus, more);
        let encoder = Encoder::new(tokens.clone(), GPT4_PATTERN, vec![]).unwrap();
        let ids = slow(&tokens, &text);
        prop_assert_eq!(&encoder.encode(&text), &ids);
        prop_assert_eq!(&encoder.encode(&text), &ids);
        let words = r"\S+|\s+"; // cut by the engine
        prop_assert_eq!(Encoder::new(tokens.clone(), words, vec![]).unwrap().encode(&text), slow_split(&tokens, &text, words));
    }

    #[test]
    fn one_byte_many_times(lengths in prop::collection::vec(2usize..20, 0..8), length in 129usize..400) {
        let mut tokens = alphabet();
        for length in lengths {
            let token = vec![b'a'; length];
            if !tokens.contains(&token) {
                tokens.push(token);
            }
        }
        let encoder = Encoder::new(tokens.clone(), GPT4_PATTERN, vec![]).unwrap();
        let text = "a".repeat(length);
        prop_assert_eq!(encoder.encode(&text), slow(&tokens, &text));
        prop_assert!(!merge_run(&encoder.merges, &[b"ab", text.as_bytes()].concat(), &mut Vec::<u32>::new()));
    }

    #[test]
    fn all_ways_to_merge_are_equal(text in "[abc]{0,100}") {
        let encoder = Encoder::new(train(&text, 280), GPT4_PATTERN, vec![]).unwrap();
        let (mut short, mut by_scan, mut by_rank, mut by_heap) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        let start = &text.as_bytes()[..text.len().min(SHORT)];
        merge_short(&encoder.merges, start, &mut short);
        merge_by_scan(&encoder.merges, start, &mut Vec::new(), &mut by_scan);
        prop_assert_eq!(&short, &by_scan);
        by_scan.clear();
        merge_by_scan(&encoder.merges, text.as_bytes(), &mut Vec::new(), &mut by_scan);
        prop_assert!(merge_by_rank(&encoder.merges, text.as_bytes(), &mut by_rank));
        merge_by_heap(&encoder.merges, text.as_bytes(), &mut by_heap);
        prop_assert_eq!(&by_scan, &by_rank);
        prop_assert_eq!(&by_scan, &by_heap);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(30))]

    #[test]
    fn batches_equal_single_texts(texts in prop::collection::vec(any::<String>(), 0..20), long in "[ab é\n]{0,40}", threads in 0usize..4) {
        let mut texts = texts;
        texts.insert(texts.len() / 2, long.repeat(1 << 13));
        let encoder = Encoder::new(train(&texts.concat(), 300), GPT4_PATTERN, vec![]).unwrap();
        let held: Vec<Held> = texts.iter().map(|text| Held::new(text)).collect();
        // Each text in another of the ways that can hold it.
        let some: Vec<Text> = held.iter().enumerate().filter_map(|(i, held)| held.all().cycle().nth(i)).collect();
        let parts: Vec<Encoded<u16>> = encoder.encode_batch(&some, threads, &mut || Ok(())).unwrap();
        prop_assert_eq!(parts.iter().map(|part| part.bytes).sum::<usize>(), texts.iter().map(String::len).sum::<usize>());
        let (mut documents, mut document) = (Vec::new(), Vec::new());
        for part in parts {
            let mut start = 0;
            for end in part.ends {
                document.extend(part.ids[start..end].iter().map(|&id| u32::from(id)));
                documents.push(std::mem::take(&mut document));
                start = end;
            }
            document.extend(part.ids[start..].iter().map(|&id| u32::from(id)));
        }
        prop_assert!(document.is_empty());
        prop_assert_eq!(&documents, &texts.iter().map(|text| encoder.encode(text)).collect::<Vec<_>>());
        for (text, ids) in texts.iter().zip(documents) {
            prop_assert_eq!(encoder.decode(ids.into_iter().map(i64::from)).unwrap(), text.as_bytes());
        }
    }
}
