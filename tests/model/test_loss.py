"""The chunked loss against plain cross-entropy on softcapped logits: value, gradients, ignored targets, chunk boundaries."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from nanochat.kernels.lean import LeanOperations
from nanochat.model import scaling
from nanochat.model.build import build_model
from nanochat.model.loss import IGNORE, cross_entropy_sum, token_losses
from nanochat.model.scaling import GPTConfig
from nanochat.model.transformer import Transformer

VOCAB = 70  # the head has 128 rows


@pytest.fixture(autouse=True, params=["torch", "fused"])
def operations(request: pytest.FixtureRequest) -> None:
    """Everything here once with torch's operations, once with the fused ones."""
    if request.param == "fused":
        request.getfixturevalue("fused_operations")


@pytest.fixture(params=["nanochat", "qwen3"], ids=["softcap", "no softcap"])
def model(request: pytest.FixtureRequest) -> Transformer:
    torch.set_num_threads(1)
    shape = GPTConfig(1, dim=32, n_head=1, n_kv_head=1, head_dim=32, vocab_size=VOCAB, max_seq_len=300, architecture=request.param)
    model = build_model(shape)
    with torch.no_grad():
        model.head.weight.normal_(0, 1.5, generator=torch.Generator().manual_seed(0))
    return model


def example(ignored: float) -> tuple[Tensor, Tensor]:
    """Hidden states (2, 300, 32) and targets (2, 300), a part of them ignored."""
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(2, 300, 32, generator=generator).requires_grad_()
    targets = torch.randint(0, VOCAB, (2, 300), generator=generator)
    targets[torch.rand(2, 300, generator=generator) < ignored] = IGNORE
    return hidden, targets


def cut(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the loss hold so many logits at once."""
    for where in ("cpu", "cpu, fused"):
        monkeypatch.setitem(scaling.LOSS_CHUNK, where, chunk)


def plain(model: Transformer, hidden: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(model.logits(hidden).flatten(0, 1), targets.flatten(), ignore_index=IGNORE, reduction="sum")


@pytest.mark.parametrize("chunk", [16 << 20, 1, VOCAB * 300], ids=["one chunk", "chunks of 256", "chunks of 300"])
@pytest.mark.parametrize("ignored", [0.0, 0.6, 1.0])
def test_value_and_gradients(model: Transformer, ignored: float, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    cut(chunk, monkeypatch)
    hidden, targets = example(ignored)
    scale = 0.37  # the loop divides by the count of targets
    wanted = torch.autograd.grad(plain(model, hidden, targets) * scale, (hidden, model.head.weight))
    value = cross_entropy_sum(model, hidden, targets)
    found = torch.autograd.grad(value * scale, (hidden, model.head.weight))
    torch.testing.assert_close(value, plain(model, hidden, targets), rtol=1e-5, atol=1e-5)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    assert not found[1][VOCAB:].any()  # the head's padded rows are never trained
    if ignored == 1:
        assert value == 0 and not found[0].any() and not found[1].any()


@pytest.mark.long
def test_compiled(model: Transformer) -> None:
    """One kernel for all of a chunk's pointwise work gives what the separate operations give."""
    hidden, targets = example(0.3)
    parts = (hidden, model.head.weight)
    eager = cross_entropy_sum(model, hidden, targets)
    wanted = torch.autograd.grad(eager, parts)
    model.use(torch.float32, compiled=True)
    value = cross_entropy_sum(model, hidden, targets)
    torch.testing.assert_close(value, eager, rtol=1e-5, atol=1e-5)
    for one, other in zip(torch.autograd.grad(value, parts), wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("chunk", [16 << 20, 1])
def test_weights_of_rows(model: Transformer, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    cut(chunk, monkeypatch)
    hidden, targets = example(0.4)
    weights = torch.tensor([1.7, -0.3])
    wanted = sum(weights[row] * plain(model, hidden[row : row + 1], targets[row : row + 1]) for row in range(2))
    value = cross_entropy_sum(model, hidden, targets, weights)
    torch.testing.assert_close(value, wanted, rtol=1e-5, atol=1e-4)
    for one, other in zip(
        torch.autograd.grad(value, (hidden, model.head.weight)), torch.autograd.grad(wanted, (hidden, model.head.weight)), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("chunk", [16 << 20, 1])
def test_losses_of_single_tokens(model: Transformer, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    cut(chunk, monkeypatch)
    hidden, targets = example(0.5)
    nats = token_losses(model, hidden, targets)
    assert nats.shape == targets.shape and not nats.requires_grad
    assert not nats[targets == IGNORE].any() and (nats[targets != IGNORE] > 0).all()
    torch.testing.assert_close(nats.sum(), plain(model, hidden, targets), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(nats.sum(), cross_entropy_sum(model, hidden, targets), rtol=1e-5, atol=1e-5)


def test_large_logits_do_not_overflow(model: Transformer) -> None:
    hidden, targets = example(0.1)
    hidden = (hidden * 1e4).detach().requires_grad_()
    value = cross_entropy_sum(model, hidden, targets)
    (gradient,) = torch.autograd.grad(value, hidden)
    assert value.isfinite() and gradient.isfinite().all()


def test_bfloat16_hidden_states(model: Transformer) -> None:
    hidden, targets = example(0.3)
    rough = hidden.detach().bfloat16().requires_grad_()
    (exact,) = torch.autograd.grad(plain(model, hidden, targets), model.head.weight)
    model.use(torch.bfloat16)
    value = cross_entropy_sum(model, rough, targets)
    model.use(torch.float32)
    value.backward()
    assert value.dtype == torch.float32 and rough.grad is not None and rough.grad.dtype == torch.bfloat16
    assert value.item() == pytest.approx(plain(model, hidden, targets).item(), rel=0.02)
    assert model.head.weight.grad is not None and model.head.weight.grad.dtype == torch.float32
    assert F.cosine_similarity(model.head.weight.grad.flatten(), exact.flatten(), dim=0) > 0.999


def test_the_heads_gradient_is_added_in_place() -> None:
    """Two micro-batches in chunks, each scaled as it will be in the backward pass: autograd's gradients of head and hidden states."""
    model = build_model(GPTConfig(depth=2, dim=16, n_head=1, n_kv_head=1, head_dim=16, vocab_size=40, max_seq_len=8))
    model.head.operations = LeanOperations(torch.float32)
    batches = [(torch.randn(2, 300, 16), torch.randint(0, 40, (2, 300))) for _ in range(2)]
    found = []
    for in_place in (False, True):
        model.head.weight.grad = None
        if in_place:
            model.head.operations.start_gradients([model.head.weight])
        hidden = [part.clone().requires_grad_() for part, _ in batches]
        values = [cross_entropy_sum(model, part, targets, scale=0.25) for part, (_, targets) in zip(hidden, batches, strict=True)]
        (sum(values, torch.zeros(())) * 0.25).backward()
        model.head.operations.finish_gradients([model.head.weight])
        found.append([model.head.weight.grad, *(part.grad for part in hidden), *values])
        assert model.head.weight.grad is not None
    for ours, wanted in zip(found[1], found[0], strict=True):
        torch.testing.assert_close(ours, wanted)
