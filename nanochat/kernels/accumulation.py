"""Gradients of weights that are added in place to those of the micro-batches before.

Autograd computes a gradient in the activations' type, casts it to float32 and adds it in a pass of its own: 20 bytes of traffic per
parameter and micro-batch, and of a compiled step all gradients exist twice. Here the product of a weight's gradient itself adds to the
sum, in 8 bytes. The sums are an attribute of the weights during a step, because torch.compile reads no `grad` of another type than its
weight's, and become their `grad` at its end.
"""

from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

TOTAL = "gradient_total"  # attribute of a weight


def start(weights: Iterable[Tensor]) -> None:
    """Allocate a sum of zeros, float32, for each matrix and table."""
    for weight in weights:
        if weight.dim() == 2:
            setattr(weight, TOTAL, torch.zeros_like(weight, dtype=torch.float32))


def finish(weights: Iterable[Tensor]) -> None:
    """Make the sums the weights' `grad`."""
    for weight in weights:
        if (total := total_of(weight)) is not None:
            weight.grad = total
            setattr(weight, TOTAL, None)


def total_of(weight: Tensor) -> Tensor | None:
    """The sum of the step's gradients so far; None outside of a step."""
    return getattr(weight, TOTAL, None)


def add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """total += left.T @ right in place: total (n, m) float32 or of the others' type, left (N, n), right (N, m)."""
    if total.dtype == left.dtype:
        total.addmm_(left.T, right)
    elif total.is_cuda:  # added in float32 in the matrix product's epilogue
        torch.addmm(total, left.T, right, out_dtype=total.dtype, out=total)
    else:
        total += left.T @ right


@torch.library.custom_op("nanochat::add_products", mutates_args={"total"})
def _add_products(total: Tensor, left: Tensor, right: Tensor) -> None:
    """`add_product` of the rows of left (..., n) and right (..., m), as one node of a compiled graph, which keeps it in place."""
    add_product(total, left.flatten(0, -2), right.flatten(0, -2))


@_add_products.register_fake
def _(total: Tensor, left: Tensor, right: Tensor) -> None:
    return None


class AccumulatingLinear(torch.autograd.Function):
    """x (..., in) times weight (out, in), cast to x's type -> (..., out); the weight's gradient is added to `total` (out, in)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, total: Tensor) -> Tensor:
        cast = weight.to(x.dtype)
        ctx.save_for_backward(x, cast, total)
        return F.linear(x, cast)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        x, cast, total = ctx.saved_tensors
        grad_x = grads[0] @ cast  # first: Inductor would write what both products read once for each, the other way round
        _add_products(total, grads[0], x)
        return grad_x, None, None


class AccumulatingEmbedding(torch.autograd.Function):
    """Rows of table (V, D) for ids (...) in `dtype` -> (..., D); the table's gradient is added to `total` (V, D)."""

    @staticmethod
    def forward(ctx: Any, ids: Tensor, table: Tensor, total: Tensor, dtype: torch.dtype) -> Tensor:
        ctx.save_for_backward(ids, total)
        return table[ids].to(dtype)  # by index, which a compiled backward pass reads again instead of a copy; F.embedding's it would keep

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, None, None, None]:
        ids, total = ctx.saved_tensors
        total.index_add_(0, ids.flatten(), grads[0].flatten(0, -2).to(total.dtype))
        return None, None, None, None
