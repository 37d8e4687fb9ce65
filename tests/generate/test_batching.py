"""Continuous batching: whoever joins and leaves, each sequence gets what it gets alone, and an earlier turn is not read twice."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nanochat.generate.batching import SHORTEST_PREFIX, Batch, SequenceState
from nanochat.generate.sampling import LogProbs, Sampling
from tests.generate.models import END, TOKENIZER
from tests.generate.test_engine import MODEL, full_logits, prompts, slow_greedy

pytestmark = pytest.mark.long
GREEDY = Sampling(0.0)


def run(batch: Batch, *sequences: SequenceState) -> list[list[int]]:
    """Let `sequences` join, and step to the end of all."""
    answers: dict[int, list[int]] = {id(one): [] for one in sequences}
    for one in sequences:
        batch.join(one)
    while batch.sequences:
        for token in batch.step():
            answers[id(token.sequence)].append(token.id)
    return [answers[id(one)] for one in sequences]


@given(st.integers(0, 10_000), st.integers(1, 5), st.sampled_from([8, 40, 512]))
@settings(deadline=None, max_examples=12)
def test_sequences_that_come_and_go_are_answered_as_alone(seed: int, slots: int, prompt_tokens: int) -> None:
    """Joining, leaving early and reading prompts in pieces, in any order: every answer is the one of the full pass."""
    rng = random.Random(seed)
    batch = Batch(MODEL, TOKENIZER, slots, prompt_tokens=prompt_tokens)
    lengths = [rng.randint(1, 12) for _ in range(8)]
    waiting = [SequenceState(TOKENIZER, prompt, lengths[i], GREEDY, i) for i, prompt in enumerate(prompts(8, seed))]
    given_up, answers = set(), [list[int]() for _ in waiting]
    while waiting or batch.sequences:
        while waiting and batch.free and rng.random() < 0.7:
            batch.join(waiting.pop(0))
        for token in batch.step():
            answers[token.sequence.index].append(token.id)
        if batch.sequences and rng.random() < 0.1:
            sequence = rng.choice(batch.sequences)
            batch.leave(sequence)
            given_up.add(sequence.index)
    assert batch.free == slots
    for index, prompt in enumerate(prompts(8, seed)):
        expected = slow_greedy(prompt, lengths[index])
        assert answers[index] == (expected[: len(answers[index])] if index in given_up else expected)


def test_each_sequence_samples_by_its_own_values() -> None:
    options = [
        Sampling(0.0),
        Sampling(1.0, seed=3),
        Sampling(0.7, top_k=5, seed=4),
        Sampling(1.5, top_p=0.6, seed=5),
        Sampling(1.0, 9, 0.9, 6),
    ]
    many = prompts(5)
    sequences = [SequenceState(TOKENIZER, prompt, 10, one) for prompt, one in zip(many, options, strict=True)]
    together = run(Batch(MODEL, TOKENIZER, 5), *sequences)
    for prompt, one, answer in zip(many, options, together, strict=True):
        assert run(Batch(MODEL, TOKENIZER, 1), SequenceState(TOKENIZER, prompt, 10, one)) == [answer]


def test_the_next_turn_finds_the_earlier_ones_read() -> None:
    batch = Batch(MODEL, TOKENIZER, 3)
    first, other = [TOKENIZER.bos, *range(65, 85)], [TOKENIZER.bos, *range(97, 117)]
    answer, _ = run(batch, SequenceState(TOKENIZER, first, 8, GREEDY), SequenceState(TOKENIZER, other, 8, GREEDY))
    following = [*first, *answer[:-1], 65, 66, 67]
    sequence = SequenceState(TOKENIZER, following, 6, GREEDY)
    assert batch.join(sequence) == len(first) + len(answer) - 1
    assert [token.id for _ in range(6) for token in batch.step()] == slow_greedy(following, 6)
    again = SequenceState(TOKENIZER, other, 3, GREEDY)
    assert batch.join(again) == len(other) - 1  # the last id is read anew, for its logits
    batch.leave(again)
    short = SequenceState(TOKENIZER, [*first[: SHORTEST_PREFIX - 1], 1, 2], 3, GREEDY)
    assert batch.join(short) == 0
    assert [token.id for _ in range(3) for token in batch.step()] == slow_greedy(short.prompt, 3)


def test_the_slot_left_longest_ago_is_forgotten_first() -> None:
    batch = Batch(MODEL, TOKENIZER, 3)
    turns = [[TOKENIZER.bos, *range(start, start + 20)] for start in (20, 50, 80)]
    for turn in turns:
        run(batch, SequenceState(TOKENIZER, turn, 1, GREEDY))
    run(batch, SequenceState(TOKENIZER, [TOKENIZER.bos, 200, 201], 1, GREEDY))
    for turn, kept in zip((turns[1], turns[2], turns[0]), (20, 20, 0), strict=True):
        sequence = SequenceState(TOKENIZER, turn, 1, GREEDY)
        assert batch.join(sequence) == kept
        batch.leave(sequence)


def test_log_probabilities() -> None:
    [prompt] = prompts(1)
    batch = Batch(MODEL, TOKENIZER, 2)
    sequence, plain = SequenceState(TOKENIZER, prompt, 4, GREEDY, top=3), SequenceState(TOKENIZER, prompt, 4, Sampling(1.0, seed=1))
    batch.join(sequence)
    batch.join(plain)
    ids = list(prompt)
    while not sequence.done:
        for token in batch.step():
            if token.sequence is plain:
                assert token.log_probs is None
                continue
            expected = full_logits(ids).log_softmax(-1)
            assert isinstance(token.log_probs, LogProbs)
            assert token.log_probs.token == pytest.approx(expected[token.id].item(), abs=1e-4)
            assert [one for one, _ in token.log_probs.top] == expected.topk(3).indices.tolist()
            ids.append(token.id)


def test_a_prompt_longer_than_a_piece_does_not_hold_up_the_others() -> None:
    batch = Batch(MODEL, TOKENIZER, 2, prompt_tokens=8)
    quick, slow = SequenceState(TOKENIZER, [TOKENIZER.bos, 65], 20, GREEDY), SequenceState(TOKENIZER, [66] * 33, 4, GREEDY)
    batch.join(quick)
    batch.step()
    batch.join(slow)
    steps = [[token.sequence for token in batch.step()] for _ in range(5)]
    assert all(quick in running for running in steps) or END in slow_greedy(quick.prompt, 6)
    assert [slow in running for running in steps] == [False, False, False, False, True]


def test_a_full_batch_takes_no_more() -> None:
    batch = Batch(MODEL, TOKENIZER, 1)
    batch.join(SequenceState(TOKENIZER, [1], 5, GREEDY))
    with pytest.raises(AssertionError, match="no slot is free"):
        batch.join(SequenceState(TOKENIZER, [1], 5, GREEDY))
