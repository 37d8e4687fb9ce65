"""Cross-entropy of a model's logits, computed in chunks so that the full logits are never in memory.

Shapes: B rows, T positions, N tokens, D width, V vocabulary. A target of -1 is not counted.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from nanochat.model.scaling import loss_rows
from nanochat.model.transformer import Transformer

IGNORE = -1


def cross_entropy_sum(model: Transformer, hidden: Tensor, targets: Tensor, weights: Tensor | None = None, scale: float = 1.0) -> Tensor:
    """Sum of the loss in nats over the counted targets: hidden (B, T, D), targets (B, T) -> scalar, float32, differentiable.

    `weights` (B,) are factors of the rows' losses, negative ones included; without them each is 1. `scale` is the gradient that the
    sum will receive, for operations that add to the head's before the backward pass.
    The head's padding rows are left out of the softmax, so the first loss of a new model is exactly ln V.
    """
    counts = targets != IGNORE
    if weights is not None:
        counts = counts * weights[:, None]
    flat, vocab, operations = hidden.flatten(0, 1), model.config.vocab_size, model.head.operations
    rows = loss_rows(len(flat), vocab, hidden.device.type, fused=operations.fused)
    return operations.cross_entropy_sum(
        flat, model.head.weight, targets.flatten(), counts.flatten(), vocab=vocab, cap=model.softcap, rows=rows, scale=scale
    )


@torch.no_grad()
def token_losses(model: Transformer, hidden: Tensor, targets: Tensor) -> Tensor:
    """Loss of each target in nats, 0 if it is not counted: hidden (B, T, D), targets (B, T) -> (B, T), float32."""
    flat, wanted = hidden.flatten(0, 1), targets.flatten()
    rows = loss_rows(len(flat), model.config.vocab_size, hidden.device.type)
    parts = [
        F.cross_entropy(model.logits(flat[start : start + rows]), wanted[start : start + rows], ignore_index=IGNORE, reduction="none")
        for start in range(0, len(flat), rows)
    ]
    return torch.cat(parts).view_as(targets)
