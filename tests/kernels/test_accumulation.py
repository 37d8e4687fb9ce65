"""Gradients added in place: autograd's sum over the micro-batches, in eager mode and traced (nanochat/kernels/accumulation.py)."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from nanochat.kernels.accumulation import add_product, total_of
from nanochat.kernels.lean import LeanOperations, TracedLeanOperations
from nanochat.kernels.operations import Operations

VOCAB, WIDTH, OUT = 20, 8, 6


class Small(nn.Module):
    """A table, two weights that share an input, and a third."""

    def __init__(self, operations: Operations, table_dtype: torch.dtype):
        super().__init__()
        torch.manual_seed(0)
        self.operations = operations
        self.table = nn.Parameter(torch.randn(VOCAB, WIDTH).to(table_dtype))
        self.table.grad_dtype = torch.float32
        self.first, self.second = (nn.Parameter(torch.randn(OUT, WIDTH)) for _ in range(2))
        self.last = nn.Parameter(torch.randn(1, OUT))

    def forward(self, ids: Tensor) -> Tensor:
        x = self.operations.embed(ids, self.table)
        a, b = self.operations.linear(x, self.first, self.second)
        return self.operations.linear(a * torch.tanh(b), self.last)[0].float().sum()


def accumulated(operations: Operations, table_dtype: torch.dtype = torch.float32, wrap: Callable[[nn.Module], nn.Module] = lambda m: m):
    """The gradients of three micro-batches."""
    model = Small(operations, table_dtype)
    operations.start_gradients(model.parameters())
    totals = [total_of(weight) for weight in model.parameters()]
    run = wrap(model)
    for seed in range(3):
        run(torch.randint(0, VOCAB, (2, 5), generator=torch.Generator().manual_seed(seed))).backward()
    operations.finish_gradients(model.parameters())
    for weight, total in zip(model.parameters(), totals, strict=True):
        assert total is None or weight.grad is total  # added in place
        assert total_of(weight) is None
        assert weight.grad is not None and weight.grad.dtype == torch.float32
    return [weight.grad for weight in model.parameters()]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("operations", [LeanOperations, TracedLeanOperations])
def test_the_sum_is_autograds(operations: type[Operations], dtype: torch.dtype) -> None:
    tolerance = 1e-6 if dtype == torch.float32 else 0.02
    for ours, wanted in zip(accumulated(operations(dtype)), accumulated(Operations(dtype)), strict=True):
        assert (ours - wanted).norm() <= tolerance * wanted.norm()


def test_a_bfloat16_tables_gradient_is_summed_in_float32() -> None:
    """A thousand equal small gradients of one row: in bfloat16 the sum would stop growing at 256 times the first."""
    operations = LeanOperations(torch.bfloat16)
    table = nn.Parameter(torch.ones(2, 1, dtype=torch.bfloat16))
    table.grad_dtype = torch.float32
    operations.start_gradients([table])
    operations.embed(torch.zeros(1000, dtype=torch.int64), table).sum().backward()
    operations.finish_gradients([table])
    assert table.grad is not None
    assert table.grad.tolist() == [[1000.0], [0.0]]


def test_traced_in_place() -> None:
    def compiled(model: nn.Module) -> nn.Module:
        return torch.compile(model, backend="aot_eager", fullgraph=True, dynamic=False)

    operations = TracedLeanOperations(torch.bfloat16)
    for dtype in (torch.float32, torch.bfloat16):
        for ours, wanted in zip(accumulated(operations, dtype, compiled), accumulated(operations, dtype), strict=True):
            torch.testing.assert_close(ours, wanted)


def test_without_a_gradient_autograd_makes_one() -> None:
    model = Small(LeanOperations(torch.float32), torch.float32)
    model(torch.zeros(1, 2, dtype=torch.int64)).backward()
    assert all(weight.grad is not None for weight in model.parameters())


def test_float64_products_in_float64() -> None:
    left, right = torch.randn(5, 3, dtype=torch.float64), torch.randn(5, 4, dtype=torch.float64)
    total = torch.ones(3, 4, dtype=torch.float64)
    add_product(total, left, right)
    torch.testing.assert_close(total, 1 + torch.einsum("ni,nj->ij", left, right))
