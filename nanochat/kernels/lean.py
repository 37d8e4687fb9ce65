"""A GPU's operations that keep only their outputs for the backward pass, which the next matrix product keeps anyway.

Autograd's own keep their inputs as well: for each layer the queries and keys before their norm, the residual stream before each of its
norms and the MLP's activation before its square, together a third of a compiled step's memory. torch.compile traces these functions and
fuses them like torch's own.
Shapes: B rows of tokens, T positions, H heads, K width of a head, D width.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from nanochat.kernels import accumulation
from nanochat.kernels.accumulation import AccumulatingEmbedding, AccumulatingLinear
from nanochat.kernels.operations import RMS_EPS, Operations, rotate


class LeanOperations(Operations):
    """Torch's operations, but the squared ReLU computes its gradient from its output, and weights' gradients are added in place."""

    @property
    def table_dtype(self) -> torch.dtype:
        """That of the activations if it is bfloat16: nothing reads the rest of a float32 table's digits but its optimizer."""
        return torch.bfloat16 if self.dtype == torch.bfloat16 else torch.float32

    def start_gradients(self, weights: Iterable[Tensor]) -> None:
        accumulation.start(weights)

    def finish_gradients(self, weights: Iterable[Tensor]) -> None:
        accumulation.finish(weights)

    def embed(self, ids: Tensor, table: Tensor) -> Tensor:
        total = accumulation.total_of(table)
        return super().embed(ids, table) if total is None else AccumulatingEmbedding.apply(ids, table, total, self.dtype)

    def linear(self, x: Tensor, *weights: Tensor) -> tuple[Tensor, ...]:
        return tuple(self._linear(x, weight) for weight in weights)

    def _linear(self, x: Tensor, weight: Tensor) -> Tensor:
        total = accumulation.total_of(weight)
        return super().linear(x, weight)[0] if total is None else AccumulatingLinear.apply(x, weight, total)

    def relu_square(self, x: Tensor) -> Tensor:
        return _ReluSquare.apply(x)


class TracedLeanOperations(LeanOperations):
    """For torch.compile: the norms compute their gradients from their outputs too, in operations that only a compiler fuses."""

    def rms_norm(self, x: Tensor, eps: float | None = None) -> Tensor:
        return _RMSNorm.apply(x, RMS_EPS if eps is None else eps)

    def rotary_norm(self, x: Tensor, cos: Tensor, sin: Tensor, gain: float) -> Tensor:
        return _RotaryNorm.apply(x, cos, sin, gain)


def _normalized(x: Tensor, eps: float = RMS_EPS) -> tuple[Tensor, Tensor]:
    """x / sqrt(mean(x^2) + eps) over the last axis, and that factor of x: (..., D) -> (..., D), (..., 1)."""
    scale = torch.rsqrt(x.square().mean(dim=-1, keepdim=True) + eps)
    return x * scale, scale


def _norm_gradient(y: Tensor, scale: Tensor, grad: Tensor) -> Tensor:
    """Gradient of the norm's input from its output y and factor: dx = scale (g - y mean(g y)), exact with eps too."""
    return scale * (grad - y * (grad * y).mean(dim=-1, keepdim=True))


def _wide(x: Tensor) -> Tensor:
    """x in the type of intermediate values: float32, or float64 as it is."""
    return x if x.dtype == torch.float64 else x.float()


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, eps: float) -> Tensor:
        y, scale = _normalized(_wide(x), eps)
        y = y.to(x.dtype)
        ctx.save_for_backward(y, scale)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        y, scale = ctx.saved_tensors
        return _norm_gradient(_wide(y), scale, _wide(grads[0])).to(y.dtype), None


class _RotaryNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor, gain: float) -> Tensor:
        y, scale = _normalized(rotate(_wide(x), cos, sin))
        y = (y * gain).to(x.dtype)
        ctx.save_for_backward(y, scale, cos, sin)
        ctx.gain = gain
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        y, scale, cos, sin = ctx.saved_tensors
        rotated = _norm_gradient(_wide(y) / ctx.gain, scale, _wide(grads[0]) * ctx.gain)
        return rotate(rotated, cos, -sin).to(y.dtype), None, None, None  # the rotation's inverse


class _ReluSquare(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        y = torch.relu(x).square()
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (y,) = ctx.saved_tensors
        return grads[0] * (2 * y.sqrt())  # d max(x, 0)^2 = 2 max(x, 0) = 2 sqrt(y)
