"""The decoding step of a GPU, on the CPU: captured work is done again as a CUDA graph does it, and chooses what the other step chooses."""

import itertools
import random
import weakref
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from nanochat.generate import graphs
from nanochat.generate.batching import Batch, SequenceState
from nanochat.generate.graphs import Capture, Work
from nanochat.generate.sampling import Sampling
from nanochat.model.transformer import Transformer
from tests.generate.models import TOKENIZER, random_model

pytestmark = pytest.mark.long
CONTEXT = 600  # graphs of three spans: 256, 512 and 600 positions
MODEL = random_model(max_seq_len=CONTEXT)
SAMPLINGS = [
    Sampling(0.0),
    Sampling(1.0, seed=3),
    Sampling(0.7, top_k=5, seed=4),
    Sampling(1.5, top_p=0.6, seed=5),
    Sampling(1.0, 90, 0.9, 6),
]


class Replay(TorchDispatchMode):
    """Operations with the tensors and numbers of the time when they were captured; each result goes where the first one is.

    Capturing executes them, which CUDA does not do, so the first replay does nothing.
    """

    def __init__(self, work: Work):
        super().__init__()
        self.calls: list[tuple[Any, tuple[Any, ...], dict[str, Any], Any]] = []
        self.replays = 0
        with self:
            work()

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
        assert function is not torch.ops.aten._local_scalar_dense.default, "the host waits for a number"
        result = function(*arguments, **options or {})
        self.calls.append((function, arguments, options or {}, result))
        return result

    def __call__(self) -> None:
        self.replays += 1
        if self.replays == 1:
            return
        for function, arguments, options, first in self.calls:
            again = function(*arguments, **options)
            for old, new in zip(tree_leaves(first), tree_leaves(again), strict=True):
                if isinstance(old, torch.Tensor) and old.data_ptr() != new.data_ptr():  # equal for a view, and for a change in place
                    old.copy_(new)


class Captures:
    """Captures work, and counts what it captured."""

    def __init__(self) -> None:
        self.made = 0
        self.replays: list[weakref.ref[Replay]] = []

    def __call__(self, work: Work) -> Work:
        replay = Replay(work)
        self.made += 1
        self.replays.append(weakref.ref(replay))
        return replay

    @property
    def alive(self) -> list[Replay]:
        """Those that are not dropped."""
        return [replay for reference in self.replays if (replay := reference()) is not None]


def sequence(index: int, prompt: list[int], tokens: int, sampling: Sampling) -> SequenceState:
    return SequenceState(TOKENIZER, prompt, tokens, sampling, index, top=3 if index % 4 == 0 else None)


def generated(seed: int, slots: int, model: Transformer = MODEL, capture: Capture | None = None) -> list[list[tuple[int, int]]]:
    """(index, id) of each step's tokens, for sequences of all kinds that join and leave at random."""
    rng = random.Random(seed)
    batch = Batch(model, TOKENIZER, slots, prompt_tokens=512, capture=capture)
    lengths = [rng.choice([rng.randint(1, 30), rng.randint(230, 256), 505]) for _ in range(10)]
    waiting = [
        sequence(i, [rng.randrange(256) for _ in range(length)], rng.randint(1, 24), rng.choice(SAMPLINGS))
        for i, length in enumerate(lengths)
    ]
    steps = []
    while waiting or batch.sequences:
        while waiting and batch.free and rng.random() < 0.7:
            batch.join(waiting.pop(0))
        tokens = batch.step()
        steps.append([(token.sequence.index, token.id) for token in tokens])
        for token in tokens:
            if token.log_probs:
                assert token.log_probs.token <= token.log_probs.top[0][1] + 1e-6
        if batch.sequences and rng.random() < 0.1:
            batch.leave(rng.choice(batch.sequences))
    return steps


# Always the same examples: sums over more positions differ in the last digit, which in some draw chooses another id.
@given(st.integers(0, 10_000), st.integers(1, 7))
@settings(deadline=None, max_examples=12, derandomize=True)
def test_replayed_steps_choose_the_same_tokens(seed: int, slots: int) -> None:
    """Joining, leaving and being read while others decode: no id, length or number of an earlier step is used again."""
    captures = Captures()
    assert generated(seed, slots, capture=captures) == generated(seed, slots)


@pytest.mark.parametrize("changes", [{"architecture": "qwen3"}, {"window_pattern": "SSSL", "depth": 5}, {"n_kv_head": 2}])
def test_every_architecture(changes: dict[str, Any]) -> None:
    model, captures = random_model(max_seq_len=CONTEXT, **changes), Captures()
    assert generated(1, 4, model, captures) == generated(1, 4, model)
    assert captures.made > 4


def test_graphs_are_shared_by_the_steps_of_a_size() -> None:
    """Two for 1 row, and two for each power of two: what is decoded with 3 rows is the graph of 4."""
    captures = Captures()
    batch = Batch(MODEL, TOKENIZER, 3, capture=captures)
    for index in range(3):
        batch.join(sequence(index, [65 + index], 40 - 10 * index, Sampling(0.0)))
    while batch.sequences:
        batch.step()
    assert captures.made == 6
    assert sum(replay.replays for replay in captures.alive) == 2 * (39 - 3)  # but for the first token, and the first steps of each size


def test_the_longest_unused_graphs_are_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graphs, "GRAPHS", 2)
    captures = Captures()
    assert generated(3, 5, capture=captures) == generated(3, 5)
    assert captures.made > 4
    batch = Batch(MODEL, TOKENIZER, 2, capture=captures)
    batch.join(sequence(0, [65], 300, Sampling(0.0)))
    for _ in range(280):  # past the first span
        batch.step()
    assert len(captures.alive) == 2
    del batch
    assert not captures.alive, "graphs go with the cache whose addresses they hold"


def test_a_later_batch_has_the_weights_of_its_time() -> None:
    model = random_model(max_seq_len=CONTEXT)
    before = generated(5, 3, model, Captures())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5)
    after = generated(5, 3, model, Captures())
    assert after == generated(5, 3, model) != before


def test_without_capture_the_step_is_done_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    """A capture that fails is said once, for all batches."""
    graphs.say_once.cache_clear()
    count, captures = itertools.count(), Captures()

    def fail_later(work: Work) -> Work:
        if next(count) % 3 == 2:
            raise RuntimeError("no more graphs here\nand a trace")
        return captures(work)

    expected = generated(6, 4)
    assert generated(6, 4, capture=fail_later) == generated(6, 4, capture=fail_later) == expected
    assert captures.made == 4 and not captures.alive
    assert capsys.readouterr().err.count("skipped: CUDA graphs for decoding: no more graphs here\n") == 1
