"""Bits per byte against a slow reference."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from nanochat.distributed.ranks import Ranks, single
from nanochat.evaluation.bits_per_byte import bits_per_byte
from nanochat.model.build import build_model
from nanochat.model.loss import IGNORE
from nanochat.model.scaling import GPTConfig
from nanochat.model.transformer import Transformer

VOCAB = 40
TOKEN_BYTES = np.array([0, 0, 0, *([1] * 20), *([3] * 17)], dtype=np.int64)  # the first three are specials


@pytest.fixture
def model() -> Transformer:
    torch.set_num_threads(1)
    model = build_model(GPTConfig(depth=1, dim=32, n_head=2, n_kv_head=2, head_dim=16, vocab_size=VOCAB, max_seq_len=16))
    with torch.no_grad():
        model.head.weight.normal_(0, 0.5, generator=torch.Generator().manual_seed(0))
    return model


def rows(dtype: str = "<u2") -> tuple[np.ndarray, np.ndarray]:
    ids = np.random.default_rng(0).integers(0, VOCAB, (7, 17)).astype(dtype)
    return ids[:, :-1], ids[:, 1:]


@torch.no_grad()
def slow_bits_per_byte(model: Transformer, inputs: np.ndarray, targets: np.ndarray) -> float:
    nats, size = 0.0, 0
    for row, wanted in zip(inputs.tolist(), targets.tolist(), strict=True):
        logp = F.log_softmax(model.logits(model(torch.tensor([row])))[0].double(), dim=-1)
        for place, token in enumerate(wanted):
            if token != IGNORE and TOKEN_BYTES[token]:
                nats -= logp[place, token].item()
                size += int(TOKEN_BYTES[token])
    return nats / (math.log(2) * size)


@pytest.mark.parametrize("device_batch_size", [1, 3, 100])
def test_bits_per_byte_equal_a_slow_reference(device_batch_size: int, model: Transformer) -> None:
    inputs, targets = rows()
    found = bits_per_byte(model, model, inputs, targets, TOKEN_BYTES, device_batch_size, single())
    assert found == pytest.approx(slow_bits_per_byte(model, inputs, targets), rel=1e-5)


@pytest.mark.parametrize("device_batch_size", [3, 100])
def test_a_compiled_model_sees_one_shape(device_batch_size: int, model: Transformer) -> None:
    """The last, smaller micro-batch is padded, and the padding counts for nothing."""
    inputs, targets = rows()
    shapes = []

    def forward(ids: torch.Tensor) -> torch.Tensor:
        shapes.append(len(ids))
        return model(ids)

    found = bits_per_byte(model, forward, inputs, targets, TOKEN_BYTES, device_batch_size, single())
    assert found == pytest.approx(slow_bits_per_byte(model, inputs, targets), rel=1e-5)
    assert set(shapes) == {device_batch_size}


def test_ignored_targets_do_not_count(model: Transformer) -> None:
    inputs, targets = (part.copy() for part in rows("<i4"))
    targets[:, ::3] = IGNORE
    targets[2] = IGNORE
    found = bits_per_byte(model, model, inputs, targets, TOKEN_BYTES, 2, single())
    assert found == pytest.approx(slow_bits_per_byte(model, inputs, targets), rel=1e-5)
    targets[:] = IGNORE
    assert bits_per_byte(model, model, inputs, targets, TOKEN_BYTES, 2, single()) == 0


def test_ranks_share_the_rows(model: Transformer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three ranks of unequal shares add up to one; what each would send to the others is caught on its way."""
    inputs, targets = rows()
    sent = []
    monkeypatch.setattr(Ranks, "all_reduce_sum", lambda self, tensor: sent.append(tensor.clone()) or tensor)
    for rank in range(3):
        bits_per_byte(model, model, inputs, targets, TOKEN_BYTES, 2, Ranks(rank, rank, 3, torch.device("cpu")))
    nats, size, _ = sum(sent).tolist()  # type: ignore[attr-defined]
    assert nats / (math.log(2) * size) == pytest.approx(slow_bits_per_byte(model, inputs, targets), rel=1e-5)


def test_out_of_memory_halves_the_evaluations_batch(model: Transformer, capsys: pytest.CaptureFixture[str]) -> None:
    inputs, targets = rows()
    calls = []

    def forward(ids: torch.Tensor) -> torch.Tensor:
        calls.append(len(ids))
        if len(ids) > 2 or len(calls) == 4:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return model(ids)

    found = bits_per_byte(model, forward, inputs, targets, TOKEN_BYTES, 5, single())
    assert found == pytest.approx(slow_bits_per_byte(model, inputs, targets), rel=1e-5)
    assert calls == [5, 2, 2, 2, 1, 1, 1, 1, 1, 1]  # ten rows: as the forward pass may be compiled, three more fill the second batch
    assert "continuing with batch size 2" in capsys.readouterr().err


def test_an_evaluation_that_cannot_be_is_left_out(model: Transformer, capsys: pytest.CaptureFixture[str]) -> None:
    def full(ids: torch.Tensor) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    assert bits_per_byte(model, full, *rows(), TOKEN_BYTES, 5, single()) is None
    assert "evaluation skipped" in capsys.readouterr().err


def test_one_rank_without_memory_leaves_it_out_on_all(model: Transformer, monkeypatch: pytest.MonkeyPatch) -> None:
    def with_a_failed_fellow(self: Ranks, tensor: torch.Tensor) -> torch.Tensor:
        tensor[2] += 1
        return tensor

    monkeypatch.setattr(Ranks, "all_reduce_sum", with_a_failed_fellow)
    assert bits_per_byte(model, model, *rows(), TOKEN_BYTES, 5, Ranks(1, 1, 2, torch.device("cpu"))) is None


def test_a_new_model_needs_the_bits_of_a_fair_guess(model: Transformer) -> None:
    with torch.no_grad():
        model.head.weight.zero_()
    inputs, targets = rows()
    counted = TOKEN_BYTES[targets]
    expected = math.log2(VOCAB) * (counted > 0).sum() / counted.sum()
    assert bits_per_byte(model, model, inputs, targets, TOKEN_BYTES, 4, single()) == pytest.approx(expected)
