"""A GPU's lean operations: their gradients are autograd's, and they keep only their outputs (nanochat/kernels/lean.py)."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from nanochat.kernels import selection
from nanochat.kernels.lean import LeanOperations, TracedLeanOperations
from nanochat.kernels.operations import Operations
from nanochat.model.layers import rotary_table

LEAN, PLAIN = TracedLeanOperations(torch.float64), Operations(torch.float64)
SHAPE = (2, 6, 3, 8)  # (B, T, H, K)
COS, SIN = rotary_table(SHAPE[1], SHAPE[3])
CASES: dict[str, Callable[[Operations, Tensor], Tensor]] = {
    "rms_norm": lambda operations, x: operations.rms_norm(x),
    "rotary_norm": lambda operations, x: operations.rotary_norm(x, COS, SIN, 1.2),
    "relu_square": lambda operations, x: operations.relu_square(x),
}


def gradient(run: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    """The output for x, and x's gradient of a fixed weighting of the output."""
    x = x.clone().requires_grad_()
    out = run(x)
    weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(out.dtype)
    (out * weights).sum().backward()
    assert x.grad is not None
    return out.detach(), x.grad


def numbers(dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype)


@pytest.mark.parametrize("name", CASES)
def test_gradients_in_float64(name: str) -> None:
    run = CASES[name]
    assert torch.autograd.gradcheck(lambda x: run(LEAN, x), numbers().requires_grad_())
    for ours, wanted in zip(gradient(lambda x: run(LEAN, x), numbers()), gradient(lambda x: run(PLAIN, x), numbers()), strict=True):
        torch.testing.assert_close(ours, wanted, rtol=1e-6, atol=1e-6)  # torch's norm has another epsilon in float64


@pytest.mark.parametrize("name", CASES)
def test_bfloat16_is_as_exact_as_autograd(name: str) -> None:
    """Against float64: the error of the lean gradient, computed from a rounded output, is at most a little above autograd's."""
    run, half = CASES[name], numbers(torch.bfloat16)
    exact = gradient(lambda x: run(PLAIN, x), half.double())[1]
    ours, autograd = ((gradient(lambda x, o=o: run(o, x), half)[1].double() - exact).norm() / exact.norm() for o in (LEAN, PLAIN))
    assert ours <= max(1.5 * autograd, 2**-8), (float(ours), float(autograd))


@pytest.mark.parametrize("name", CASES)
def test_only_outputs_are_kept(name: str) -> None:
    kept: list[Tensor] = []
    x = numbers(torch.bfloat16).requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        y = CASES[name](LEAN, x)
    wide = [tensor for tensor in kept if tensor.numel() == x.numel()]
    assert len(wide) == 1
    assert torch.equal(wide[0], y.detach())
    assert sum(tensor.numel() for tensor in kept) < 2 * x.numel()


def test_traced() -> None:
    """The whole of each is traced, without a graph break."""

    def every(x: Tensor) -> Tensor:
        return sum((run(LEAN, x) for run in CASES.values()), torch.zeros(()))

    compiled = torch.compile(every, backend="aot_eager", fullgraph=True)
    for ours, wanted in zip(gradient(compiled, numbers()), gradient(every, numbers()), strict=True):
        torch.testing.assert_close(ours, wanted)


def test_zeros_have_a_finite_gradient() -> None:
    for run in CASES.values():
        assert gradient(lambda x, run=run: run(LEAN, x), torch.zeros(SHAPE))[1].isfinite().all()


def test_selection() -> None:
    cuda, cpu = torch.device("cuda"), torch.device("cpu")
    assert type(selection.operations_for(cuda, torch.bfloat16)) is LeanOperations
    assert type(selection.operations_for(cuda, torch.bfloat16, traced=True)) is TracedLeanOperations
    assert type(selection.operations_for(cpu, torch.float32, traced=True)) is Operations
