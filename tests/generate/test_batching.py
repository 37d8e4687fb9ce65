"""Continuous batching: whoever joins and leaves, each row gets what it gets alone, and an earlier turn is not read twice."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nanochat.generate.batching import SHORTEST_PREFIX, Batch, Row
from nanochat.generate.sampling import LogProbs, Sampling
from tests.generate.test_engine import END, MODEL, TOKENIZER, full_logits, prompts, slow_greedy

pytestmark = pytest.mark.long
GREEDY = Sampling(0.0)


def run(batch: Batch, *rows: Row) -> list[list[int]]:
    """Let `rows` join, and step to the end of all."""
    answers: dict[int, list[int]] = {id(row): [] for row in rows}
    for row in rows:
        batch.join(row)
    while batch.rows:
        for token in batch.step():
            answers[id(token.row)].append(token.id)
    return [answers[id(row)] for row in rows]


@given(st.integers(0, 10_000), st.integers(1, 5), st.sampled_from([8, 40, 512]))
@settings(deadline=None, max_examples=12)
def test_rows_that_come_and_go_are_answered_as_alone(seed: int, slots: int, prompt_tokens: int) -> None:
    """Joining, leaving early and reading prompts in pieces, in any order: every answer is the one of the full pass."""
    rng = random.Random(seed)
    batch = Batch(MODEL, TOKENIZER, slots, prompt_tokens=prompt_tokens)
    waiting = [Row(TOKENIZER, prompt, rng.randint(1, 12), GREEDY, i) for i, prompt in enumerate(prompts(8, seed))]
    rooms = [row._room for row in waiting]
    given_up, answers = set(), [list[int]() for _ in waiting]
    while waiting or batch.rows:
        while waiting and batch.free and rng.random() < 0.7:
            batch.join(waiting.pop(0))
        for token in batch.step():
            answers[token.row.index].append(token.id)
        if batch.rows and rng.random() < 0.1:
            row = rng.choice(batch.rows)
            batch.leave(row)
            given_up.add(row.index)
    assert batch.free == slots
    for index, prompt in enumerate(prompts(8, seed)):
        expected = slow_greedy(prompt, rooms[index])
        assert answers[index] == (expected[: len(answers[index])] if index in given_up else expected)


def test_each_row_samples_by_its_own_values() -> None:
    options = [
        Sampling(0.0),
        Sampling(1.0, seed=3),
        Sampling(0.7, top_k=5, seed=4),
        Sampling(1.5, top_p=0.6, seed=5),
        Sampling(1.0, 9, 0.9, 6),
    ]
    many = prompts(5)
    together = run(Batch(MODEL, TOKENIZER, 5), *(Row(TOKENIZER, prompt, 10, one) for prompt, one in zip(many, options, strict=True)))
    for prompt, one, answer in zip(many, options, together, strict=True):
        assert run(Batch(MODEL, TOKENIZER, 1), Row(TOKENIZER, prompt, 10, one)) == [answer]


def test_the_next_turn_finds_the_earlier_ones_read() -> None:
    batch = Batch(MODEL, TOKENIZER, 3)
    first, other = [TOKENIZER.bos, *range(65, 85)], [TOKENIZER.bos, *range(97, 117)]
    answer, _ = run(batch, Row(TOKENIZER, first, 8, GREEDY), Row(TOKENIZER, other, 8, GREEDY))
    following = [*first, *answer[:-1], 65, 66, 67]
    row = Row(TOKENIZER, following, 6, GREEDY)
    assert batch.join(row) == len(first) + len(answer) - 1
    assert [token.id for _ in range(6) for token in batch.step()] == slow_greedy(following, 6)
    again = Row(TOKENIZER, other, 3, GREEDY)
    assert batch.join(again) == len(other) - 1  # the last id is read anew, for its logits
    batch.leave(again)
    short = Row(TOKENIZER, [*first[: SHORTEST_PREFIX - 1], 1, 2], 3, GREEDY)
    assert batch.join(short) == 0
    assert [token.id for _ in range(3) for token in batch.step()] == slow_greedy(short.prompt, 3)


def test_the_slot_left_longest_ago_is_forgotten_first() -> None:
    batch = Batch(MODEL, TOKENIZER, 3)
    turns = [[TOKENIZER.bos, *range(start, start + 20)] for start in (20, 50, 80)]
    for turn in turns:
        run(batch, Row(TOKENIZER, turn, 1, GREEDY))
    run(batch, Row(TOKENIZER, [TOKENIZER.bos, 200, 201], 1, GREEDY))
    for turn, kept in zip((turns[1], turns[2], turns[0]), (20, 20, 0), strict=True):
        row = Row(TOKENIZER, turn, 1, GREEDY)
        assert batch.join(row) == kept
        batch.leave(row)


def test_log_probabilities() -> None:
    [prompt] = prompts(1)
    batch = Batch(MODEL, TOKENIZER, 2)
    row, plain = Row(TOKENIZER, prompt, 4, GREEDY, top=3), Row(TOKENIZER, prompt, 4, Sampling(1.0, seed=1))
    batch.join(row)
    batch.join(plain)
    ids = list(prompt)
    while not row.done:
        for token in batch.step():
            if token.row is plain:
                assert token.log_probs is None
                continue
            expected = full_logits(ids).log_softmax(-1)
            assert isinstance(token.log_probs, LogProbs)
            assert token.log_probs.token == pytest.approx(expected[token.id].item(), abs=1e-4)
            assert [one for one, _ in token.log_probs.top] == expected.topk(3).indices.tolist()
            ids.append(token.id)


def test_a_prompt_longer_than_a_piece_does_not_hold_up_the_others() -> None:
    batch = Batch(MODEL, TOKENIZER, 2, prompt_tokens=8)
    quick, slow = Row(TOKENIZER, [TOKENIZER.bos, 65], 20, GREEDY), Row(TOKENIZER, [66] * 33, 4, GREEDY)
    batch.join(quick)
    batch.step()
    batch.join(slow)
    steps = [[token.row for token in batch.step()] for _ in range(5)]
    assert all(quick in rows for rows in steps) or END in slow_greedy(quick.prompt, 6)
    assert [slow in rows for rows in steps] == [False, False, False, False, True]


def test_a_full_batch_takes_no_more() -> None:
    batch = Batch(MODEL, TOKENIZER, 1)
    batch.join(Row(TOKENIZER, [1], 5, GREEDY))
    with pytest.raises(AssertionError, match="no slot is free"):
        batch.join(Row(TOKENIZER, [1], 5, GREEDY))
