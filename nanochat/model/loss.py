"""Cross-entropy of softcapped logits, computed in chunks so that the full logits never exist.

Shapes: N tokens, D width, V vocabulary. A target of -1 is not counted.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from nanochat.kernels import fused
from nanochat.kernels.products import product
from nanochat.model.gpt import GPT
from nanochat.model.scaling import loss_rows

IGNORE = -1
Chunk = Callable[[Tensor, Tensor, Tensor, float], tuple[Tensor, Tensor]]


def _chunk(raw: Tensor, targets: Tensor, counts: Tensor, cap: float) -> tuple[Tensor, Tensor]:
    """Raw logits (n, V), overwritten where they are float32, targets and counts (n,) -> sum of nats, its gradient in the logits (n, V).

    The gradient has the logits' type; all between is float32.
    """
    kind, raw = raw.dtype, raw.float()
    index, counts = targets.clamp(min=0)[:, None], counts[:, None].float()
    if cap:
        # cap * tanh(x / cap) = 2 cap * half, half = sigmoid(2x / cap) - 1/2: one exponential, a third of tanh's time. It is within
        # 1e-6 of the capped logit, which the logarithm of the sum rounds to anyway.
        half = raw.mul_(2 / cap).sigmoid_().sub_(0.5)
        weights = torch.mul(half, 2 * cap).exp_()  # nothing overflows between +-cap, so that no maximum need be looked for
        wanted = 2 * cap * half.gather(1, index)
    else:
        raw.sub_(raw.amax(dim=-1, keepdim=True))
        weights, wanted = raw.exp(), raw.gather(1, index)
    sums = weights.sum(dim=-1, keepdim=True)
    nats = ((sums.log() - wanted) * counts).sum()
    grad = weights.mul_(counts / sums)
    if torch.compiler.is_compiling():  # a scatter would end the kernel and write the logits once more
        grad = torch.where(torch.arange(raw.size(-1), device=raw.device) == index, grad - counts, grad)
    else:
        grad.scatter_add_(1, index, -counts)
    return nats, (grad.mul_(half.square_().mul_(-4).add_(1)) if cap else grad).to(kind)


@functools.cache
def _compiled_chunk() -> Chunk:
    return torch.compile(_chunk, dynamic=False)


class _SoftcappedCrossEntropy(torch.autograd.Function):
    """Sum of nats; the gradient is made chunk by chunk in the forward pass, while the chunk's logits are there."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, counts: Tensor, vocab: int, cap: float, chunk: Chunk) -> Tensor:
        """hidden (N, D), weight (at least `vocab`, D), targets (N,), counts (N,) of each target in the sum -> scalar, float32."""
        cast = weight[:vocab].to(hidden.dtype)
        total = hidden.new_zeros((), dtype=torch.float32)
        grad_hidden = torch.empty_like(hidden)
        all_rows = torch.zeros_like(weight, dtype=torch.float32)
        grad_weight = all_rows[:vocab]
        rows = loss_rows(len(hidden), vocab, hidden.device.type)
        for start in range(0, len(hidden), rows):
            chosen = slice(start, start + rows)
            part = hidden[chosen]
            nats, grad = chunk(part @ cast.T, targets[chosen], counts[chosen], cap)
            total += nats
            torch.mm(grad, cast, out=grad_hidden[chosen])
            if hidden.dtype == torch.float32:
                grad_weight.addmm_(grad.T, part)
            elif hidden.is_cuda:  # bfloat16 in, float32 out, added in the product's own epilogue
                torch.addmm(grad_weight, grad.T, part, out_dtype=torch.float32, out=grad_weight)
            else:
                grad_weight += grad.T @ part
        ctx.save_for_backward(grad_hidden, all_rows)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Scale the stored gradients, in place: both are linear in the incoming one."""
        grad_hidden, grad_weight = ctx.saved_tensors
        return grad_hidden.mul_(grads[0].to(grad_hidden.dtype)), grad_weight.mul_(grads[0]), None, None, None, None, None


class _FusedCrossEntropy(torch.autograd.Function):
    """The same with a CPU's fused operations: the logits become their gradients where they are, and the weights' is added up in place."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, counts: Tensor, vocab: int, cap: float) -> Tensor:
        cast = fused.cast(weight, hidden.dtype)[:vocab]
        total, grad_hidden, grad_weight = torch.zeros(()), torch.empty_like(hidden), None
        rows = loss_rows(len(hidden), vocab, "cpu", fused=True)
        for start in range(0, len(hidden), rows):
            chosen = slice(start, start + rows)
            part = hidden[chosen]
            logits = product(part, cast.T, rough=True)
            total += fused.cross_entropy(logits, targets[chosen], counts[chosen], cap).sum()
            product(logits, cast, out=grad_hidden[chosen], rough=True)
            if grad_weight is None or hidden.dtype == torch.float32:
                grad_weight = product(logits.T, part, grad_weight, out=grad_weight, rough=True)
            else:
                grad_weight = grad_weight.float().add_(product(logits.T, part, rough=True))
        assert grad_weight is not None
        ctx.save_for_backward(grad_hidden, grad_weight)
        ctx.weight = weight
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        grad_hidden, grad_weight = ctx.saved_tensors
        return grad_hidden.mul_(grads[0].to(grad_hidden.dtype)), fused.accumulate(ctx.weight, grad_weight, grads[0].item()), *[None] * 4


def cross_entropy_sum(model: GPT, hidden: Tensor, targets: Tensor, weights: Tensor | None = None) -> Tensor:
    """Sum of nats over the counted targets: hidden (B, T, D), targets (B, T) -> scalar, float32, differentiable.

    `weights` (B,) say how much each row's targets count, which may be less than nothing; without them each counts once.
    The padded rows of the head are left out of the softmax, so the first loss of a new model is ln V exactly.
    """
    counts = targets != IGNORE
    if weights is not None:
        counts = counts * weights[:, None]
    flat = (hidden.flatten(0, 1), model.head.weight, targets.flatten(), counts.flatten())
    if fused.usable(hidden):
        return _FusedCrossEntropy.apply(*flat, model.config.vocab_size, model.config.softcap)
    chunk = _compiled_chunk() if model.compiled else _chunk
    return _SoftcappedCrossEntropy.apply(*flat, model.config.vocab_size, model.config.softcap, chunk)


@torch.no_grad()
def token_losses(model: GPT, hidden: Tensor, targets: Tensor) -> Tensor:
    """Nats of each target, 0 where it is not counted: hidden (B, T, D), targets (B, T) -> (B, T), float32."""
    flat, wanted = hidden.flatten(0, 1), targets.flatten()
    rows = loss_rows(len(flat), model.config.vocab_size, hidden.device.type)
    parts = [
        F.cross_entropy(model.logits(flat[start : start + rows]), wanted[start : start + rows], ignore_index=IGNORE, reduction="none")
        for start in range(0, len(flat), rows)
    ]
    return torch.cat(parts).view_as(targets)
