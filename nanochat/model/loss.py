"""Cross-entropy of softcapped logits, computed in chunks so that the full logits never exist.

Shapes: N tokens, D width, V vocabulary. A target of -1 is not counted.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from nanochat.model.gpt import GPT, softcap

IGNORE = -1
CHUNK_BYTES = 64 << 20  # of float32 logits at a time


def _chunk_rows(vocab: int) -> int:
    return max(256, CHUNK_BYTES // (4 * vocab))


class _SoftcappedCrossEntropy(torch.autograd.Function):
    """Sum of nats; the gradient is made chunk by chunk in the forward pass, while the chunk's logits are there."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, counts: Tensor, cap: float) -> Tensor:
        """hidden (N, D), weight (V, D), targets (N,), counts (N,) of each target in the sum -> scalar, float32."""
        cast = weight.to(hidden.dtype)
        total = hidden.new_zeros((), dtype=torch.float32)
        grad_hidden = torch.empty_like(hidden)
        grad_weight = torch.zeros_like(weight, dtype=torch.float32)
        rows = _chunk_rows(len(weight))
        for start in range(0, len(hidden), rows):
            part, target = hidden[start : start + rows], targets[start : start + rows]
            counted = counts[start : start + rows]
            index = target.clamp(min=0)[:, None]
            logits = softcap((part @ cast.T).float(), cap)
            logp = logits - logits.logsumexp(dim=-1, keepdim=True)
            total -= (logp.gather(1, index)[:, 0] * counted).sum()
            grad = logp.exp_()
            grad.scatter_add_(1, index, grad.new_full((1, 1), -1.0).expand(len(part), 1))
            grad *= counted[:, None]
            if cap:
                grad *= 1 - (logits / cap).square_()
            grad = grad.to(hidden.dtype)
            grad_hidden[start : start + rows] = grad @ cast
            grad_weight += (grad.T @ part).float()
        ctx.save_for_backward(grad_hidden, grad_weight)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Scale the stored gradients: both are linear in the incoming one."""
        grad_hidden, grad_weight = ctx.saved_tensors
        return grad_hidden * grads[0].to(grad_hidden.dtype), grad_weight * grads[0], None, None, None


def cross_entropy_sum(model: GPT, hidden: Tensor, targets: Tensor, weights: Tensor | None = None) -> Tensor:
    """Sum of nats over the counted targets: hidden (B, T, D), targets (B, T) -> scalar, float32, differentiable.

    `weights` (B,) say how much each row's targets count, which may be less than nothing; without them each counts once.
    The padded rows of the head are left out of the softmax, so the first loss of a new model is ln V exactly.
    """
    head, counts = model.head.weight[: model.config.vocab_size], targets != IGNORE
    if weights is not None:
        counts = counts * weights[:, None]
    return _SoftcappedCrossEntropy.apply(hidden.flatten(0, 1), head, targets.flatten(), counts.flatten(), model.config.softcap)


@torch.no_grad()
def token_losses(model: GPT, hidden: Tensor, targets: Tensor) -> Tensor:
    """Nats of each target, 0 where it is not counted: hidden (B, T, D), targets (B, T) -> (B, T), float32."""
    flat, wanted = hidden.flatten(0, 1), targets.flatten()
    rows = _chunk_rows(model.config.vocab_size)
    parts = [
        F.cross_entropy(model.logits(flat[start : start + rows]), wanted[start : start + rows], ignore_index=IGNORE, reduction="none")
        for start in range(0, len(flat), rows)
    ]
    return torch.cat(parts).view_as(targets)
