"""A CPU's fused operations against plain formulas in float64: values, gradients, odd shapes and strides, NaN, and a whole model."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from nanochat.distributed.ranks import single
from nanochat.kernels import fused, selection
from nanochat.kernels.fused import FusedOperations
from nanochat.kernels.operations import RMS_EPS, Operations, rotate
from nanochat.model.build import build_model
from nanochat.model.layers import Layer, rotary_table
from nanochat.model.loss import cross_entropy_sum
from nanochat.model.optim import LearningRates, MuonAdamW
from nanochat.model.scaling import GPTConfig
from nanochat.model.transformer import Transformer

pytestmark = pytest.mark.usefixtures("fused_operations")
KINDS = pytest.mark.parametrize(("dtype", "error"), [(torch.float32, 2e-6), (torch.bfloat16, 6e-3)], ids=["float32", "bfloat16"])


def ours(dtype: torch.dtype) -> FusedOperations:
    """The operations under test."""
    found = selection.operations_for(torch.device("cpu"), dtype)
    assert isinstance(found, FusedOperations)
    return found


def random(*shape: int, seed: int, dtype: torch.dtype) -> Tensor:
    """Normal numbers that `dtype` can hold exactly, in float64."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype).double().requires_grad_()


def compare(fast: Callable[..., Tensor], slow: Callable[..., Tensor], inputs: list[Tensor], dtype: torch.dtype, error: float) -> None:
    """Values and gradients of `fast` on `inputs` in `dtype`, but for scalars, against `slow` on them in float64."""
    rough = [x.detach().to(dtype if x.dim() else torch.float32).requires_grad_() for x in inputs]
    found, wanted = fast(*rough), slow(*inputs)
    assert found.dtype == dtype
    upstream = random(*wanted.shape, seed=99, dtype=dtype).detach()
    pairs = zip(torch.autograd.grad(found, rough, upstream.to(dtype)), torch.autograd.grad(wanted, inputs, upstream), strict=True)
    for one, other in [(found, wanted), *pairs]:
        assert one.shape == other.shape
        assert (one.double() - other).norm() <= error * (1 + other.norm())


@KINDS
@pytest.mark.parametrize("shape", [(3, 64), (2, 5, 7), (300, 100)])
def test_rms_norm(dtype: torch.dtype, error: float, shape: tuple[int, ...]) -> None:
    def slow(x: Tensor) -> Tensor:
        return x / (x.square().mean(-1, keepdim=True) + RMS_EPS).sqrt()

    compare(ours(dtype).rms_norm, slow, [random(*shape, seed=1, dtype=dtype)], dtype, error)


@KINDS
def test_a_row_of_zeros_stays_one(dtype: torch.dtype, error: float) -> None:
    assert not ours(dtype).rms_norm(torch.zeros(2, 8, dtype=dtype)).any()


@KINDS
@pytest.mark.parametrize("transposed", [False, True])
def test_rotary_norm(dtype: torch.dtype, error: float, transposed: bool) -> None:
    """Of a view as well, whose heads lie before its positions."""
    cos, sin = rotary_table(9, 16)
    x = random(3, 4, 9, 16, seed=1, dtype=dtype) if transposed else random(3, 9, 4, 16, seed=1, dtype=dtype)

    def view(x: Tensor) -> Tensor:
        return x.transpose(1, 2) if transposed else x

    def slow(x: Tensor) -> Tensor:
        turned = rotate(view(x), cos.double(), sin.double())
        return 1.2 * turned / (turned.square().mean(-1, keepdim=True) + RMS_EPS).sqrt()

    compare(lambda x: ours(dtype).rotary_norm(view(x), cos, sin, 1.2), slow, [x], dtype, error)


@KINDS
def test_rotary_norm_of_gradients_with_other_strides(dtype: torch.dtype, error: float) -> None:
    cos, sin = rotary_table(9, 16)
    x = random(2, 9, 4, 16, seed=1, dtype=dtype)

    def slow(x: Tensor) -> Tensor:
        turned = rotate(x, cos.double(), sin.double())
        return (turned / (turned.square().mean(-1, keepdim=True) + RMS_EPS).sqrt()).transpose(1, 2).contiguous()

    compare(lambda x: ours(dtype).rotary_norm(x, cos, sin, 1.0).transpose(1, 2).contiguous(), slow, [x], dtype, error)


@KINDS
@pytest.mark.parametrize("rows", [1, 64, 150])
def test_mix(dtype: torch.dtype, error: float, rows: int) -> None:
    inputs = [torch.tensor(value, dtype=torch.float64, requires_grad=True) for value in (0.75, -0.25)]
    x, first = random(rows, 40, seed=1, dtype=dtype), random(rows, 40, seed=2, dtype=dtype)
    inputs = [inputs[0], x, inputs[1], first]
    compare(ours(dtype).mix, lambda a, x, b, first: a * x + b * first, inputs, dtype, error)


@KINDS
def test_relu_square(dtype: torch.dtype, error: float) -> None:
    compare(ours(dtype).relu_square, lambda x: F.relu(x).square(), [random(3, 5, 70, seed=1, dtype=dtype)], dtype, error)


@KINDS
def test_add_gated(dtype: torch.dtype, error: float) -> None:
    inputs = [random(2, 5, 3, 16, seed=1, dtype=dtype), random(2, 5, 3, seed=2, dtype=dtype), random(2, 5, 3, 16, seed=3, dtype=dtype)]
    compare(ours(dtype).add_gated, lambda v, gate, e: v + 3 * gate.sigmoid().unsqueeze(-1) * e, inputs, dtype, error)


@KINDS
@pytest.mark.parametrize("length", [2, 7, 40])
def test_attention(dtype: torch.dtype, error: float, length: int) -> None:
    def slow(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        scores = q @ k.mT / q.size(-1) ** 0.5
        return scores.masked_fill(~torch.ones(length, length, dtype=torch.bool).tril(), -torch.inf).softmax(-1) @ v

    inputs = [random(2, 3, length, 16, seed=seed, dtype=dtype) for seed in (1, 2, 3)]
    compare(ours(dtype).causal_attention, slow, inputs, dtype, 3 * error)


@KINDS
@pytest.mark.parametrize("again", [False, True], ids=["first", "added"])
def test_linear_and_embed(dtype: torch.dtype, error: float, again: bool) -> None:
    """The gradients of the weights are float32, and added to those that are there."""
    x = random(2, 30, 24, seed=1, dtype=dtype)
    weights = [random(rows, 24, seed=rows, dtype=torch.float32) for rows in (5, 8)]
    table, ids = random(50, 24, seed=3, dtype=torch.float32), torch.randint(0, 50, (2, 30), generator=torch.Generator().manual_seed(4))
    rough, flat = x.detach().to(dtype).requires_grad_(), [w.detach().float().requires_grad_() for w in (*weights, table)]
    for _ in range(1 + again):
        rows = ours(dtype).embed(ids, flat[2])
        first, second = ours(dtype).linear(rough * rows, *flat[:2])
        (first.sum() + second.float().square().sum()).backward()
    found = [rough.grad, *(w.grad for w in flat)]
    product = x * table.to(dtype)[ids] if dtype == torch.float32 else x * table[ids]
    loss = (product @ weights[0].mT).sum() + (product @ weights[1].mT).square().sum()
    for one, other in zip(found, torch.autograd.grad(loss, (x, *weights, table)), strict=True):
        assert one is not None
        assert (one.double() - (1 + again) * other).norm() < 4 * error * (1 + again) * other.norm()


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(vocabulary=st.integers(1, 70), rows=st.integers(1, 40), cap=st.sampled_from([0.0, 15.0]), size=st.sampled_from([0.1, 3.0, 1e4]))
def test_cross_entropy(vocabulary: int, rows: int, cap: float, size: float) -> None:
    generator = torch.Generator().manual_seed(rows)
    raw = torch.randn(rows, vocabulary, generator=generator) * size
    targets = torch.randint(-1, vocabulary, (rows,), generator=generator)
    counts = (targets >= 0) * torch.tensor([1.0, -0.3, 2.0]).repeat(rows)[:rows]
    exact = raw.double().requires_grad_()
    wanted = F.cross_entropy(cap * torch.tanh(exact / cap) if cap else exact, targets.clamp(min=0), reduction="none") * counts
    wanted.sum().backward()
    found = fused.cross_entropy(ours(torch.float32).library, raw, targets, counts, cap)
    torch.testing.assert_close(found, wanted.float(), rtol=2e-6, atol=1e-5)
    assert exact.grad is not None
    torch.testing.assert_close(raw, exact.grad.float(), rtol=1e-4, atol=2e-6)


@KINDS
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_is_not_hidden(dtype: torch.dtype, error: float, value: float) -> None:
    """The loop stops before an update where a loss or a gradient is not finite: none may come out as a number."""
    x = torch.ones(2, 40, dtype=dtype)
    x[1, 7] = value
    fast = ours(dtype)
    for found in (fast.rms_norm(x), fast.relu_square(x), fast.mix(torch.tensor(1.0), x, torch.tensor(1.0), x)):
        assert found[0].isfinite().all() and not found[1].isfinite().all()
    if value != value:
        assert fused.cross_entropy(fast.library, x.clone(), torch.tensor([1, 1]), torch.ones(2), 15.0).isnan().tolist() == [False, True]


def shape(depth: int = 3) -> GPTConfig:
    return GPTConfig(depth=depth, dim=64, n_head=2, n_kv_head=2, head_dim=32, vocab_size=200, max_seq_len=48)


def train(dtype: torch.dtype, steps: int = 6) -> tuple[list[float], Transformer]:
    """Losses of some steps of two micro-batches each, and the model."""
    model = build_model(shape())
    model.use(dtype)
    optimizer = MuonAdamW(model, LearningRates(), 2**14, single("cpu"))
    generator, losses = torch.Generator().manual_seed(5), []
    batches = torch.randint(0, 200, (2, 2, 49), generator=generator)
    for _ in range(steps):
        parts = [cross_entropy_sum(model, model(ids[:, :-1]), ids[:, 1:]) / 192 for ids in batches]
        for part in parts:
            part.backward()
        losses.append(sum(part.item() for part in parts))
        optimizer.step()
        optimizer.zero_grad()
    return losses, model


@KINDS
def test_a_model_learns_as_without_them(dtype: torch.dtype, error: float) -> None:
    """Also: what was kept of the weights in another type is made anew when they change, which the losses would show."""
    found, _ = train(dtype)
    selection.forget()
    wanted, _ = train(dtype)
    assert found[-1] < 0.9 * found[0]
    torch.testing.assert_close(found, wanted, rtol=50 * error, atol=0.0)


def test_gradients_do_not_depend_on_the_threads() -> None:
    def gradients(threads: int) -> list[Tensor | None]:
        torch.set_num_threads(threads)
        model = build_model(shape())
        torch.manual_seed(1)
        with torch.no_grad():
            for weight in model.parameters():
                weight.add_(torch.randn_like(weight) * 0.05)
        ids = torch.randint(0, 200, (16, 49), generator=torch.Generator().manual_seed(5))
        cross_entropy_sum(model, model(ids[:, :-1]), ids[:, 1:]).backward()
        # torch's own products and sums may add up in another order
        names = ("resid_lambdas", "x0_lambdas", "value_embeds", "embed")
        return [weight.grad for name, weight in model.named_parameters() if name.startswith(names)]

    before = torch.get_num_threads()
    try:
        for one, other in zip(gradients(1), gradients(3), strict=True):
            assert one is not None and other is not None
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6 * float(one.abs().max()))
    finally:
        torch.set_num_threads(before)


def test_an_index_that_points_nowhere_is_an_error() -> None:
    fast = ours(torch.float32)
    for bad in (-1, 50):
        with pytest.raises(IndexError, match="50 rows"):
            fast.embed(torch.tensor([1, bad]), torch.ones(50, 4))
        with pytest.raises(IndexError, match="50 logits"):
            fused.cross_entropy(fast.library, torch.ones(2, 50), torch.tensor([1, bad]), torch.ones(2), 15.0)
    nats = fused.cross_entropy(fast.library, torch.ones(2, 50), torch.tensor([1, -1]), torch.tensor([1.0, 0.0]), 15.0)
    assert nats[1] == 0  # it does not count


def test_other_models_are_left_to_torch() -> None:
    cpu = torch.device("cpu")
    assert ours(torch.float32).dtype == torch.float32 and ours(torch.bfloat16).dtype == torch.bfloat16
    for device, dtype in [(torch.device("meta"), torch.float32), (cpu, torch.float64)]:
        assert type(selection.operations_for(device, dtype)) is Operations
    selection.forget()
    assert type(selection.operations_for(cpu, torch.float32)) is Operations


def test_a_model_is_built_with_what_is_loaded() -> None:
    """All of its layers; what is to be compiled by torch has torch's operations, but for the head and the loss, which are not."""
    model = build_model(shape())
    layers = [part for part in model.modules() if isinstance(part, Layer)]
    assert {part.operations for part in layers} == {ours(torch.float32)}
    model.use(torch.bfloat16)
    assert {part.operations for part in layers} == {ours(torch.bfloat16)} and model.compute_dtype == torch.bfloat16
    model.use(torch.float32, compiled=True)
    assert model.head.operations is ours(torch.float32)
    assert {type(part.operations) for part in layers if part is not model.head} == {Operations}
    assert model(torch.zeros(1, 4, dtype=torch.int64)).dtype == torch.float32
