"""Gradient accumulation in micro-batches."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from nanochat.distributed.ranks import Ranks
from nanochat.kernels.transfer import to_device
from nanochat.model.loss import IGNORE, cross_entropy_sum
from nanochat.model.transformer import Transformer
from nanochat.train.batch import StepBatch


def accumulate_gradients(
    batch: StepBatch, rows: int, model: Transformer, forward: Callable[[Tensor], Tensor], ranks: Ranks, loss_scale: int = 1
) -> Tensor:
    """Accumulate the gradient of the batch's mean loss in micro-batches of `rows`; returns this rank's (loss, gradient norm) as (2,).

    Micro-batches without a target are skipped, and the mean is over the targets of all ranks, so there is no division by zero. The
    backward pass is that of `loss_scale` times the loss, and the gradients are divided by it.
    """
    total = torch.zeros((), device=ranks.device)
    counted = max(batch.counted, 1)
    model.operations.start_gradients(model.parameters())
    for first in range(0, len(batch.inputs), rows):
        targets = batch.targets[first : first + rows]
        if not (targets != IGNORE).any():
            continue
        inputs, weights = batch.inputs[first : first + rows], None
        if batch.weights is not None:  # cut the padding that all rows of the micro-batch share
            inputs, targets = (part[:, : np.flatnonzero((targets != IGNORE).any(axis=0))[-1] + 1] for part in (inputs, targets))
            weights = to_device(torch.from_numpy(batch.weights[first : first + rows]), ranks.device)
        hidden = forward(_ids_on(inputs, ranks.device))
        scale = ranks.world_size * loss_scale / counted  # the optimizer takes the mean over the ranks
        loss = cross_entropy_sum(model, hidden, _ids_on(targets, ranks.device), weights, scale) / counted
        total += loss.detach()
        (loss * (ranks.world_size * loss_scale)).backward()
    model.operations.finish_gradients(model.parameters())
    if loss_scale != 1:
        torch._foreach_mul_([weight.grad for weight in model.parameters() if weight.grad is not None], 1 / loss_scale)
    return torch.stack((total, _gradient_norm(model, ranks.device)))


def _gradient_norm(model: Transformer, device: torch.device) -> Tensor:
    """The norm of this rank's gradient, a scalar; NaN or Inf if any element is."""
    return torch.nn.utils.get_total_norm([weight.grad for weight in model.parameters() if weight.grad is not None]).to(device)


def _ids_on(rows: np.ndarray, device: torch.device) -> Tensor:
    return to_device(torch.from_numpy(rows.astype(np.int64)), device)
