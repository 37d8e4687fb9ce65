"""Bits per byte of text, a model's loss in a unit that is independent of its tokenizer."""

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from nanochat.console import log
from nanochat.distributed.memory import map_with_oom_backoff
from nanochat.distributed.ranks import Ranks
from nanochat.errors import OutOfMemoryError
from nanochat.model.loss import IGNORE, token_losses
from nanochat.model.transformer import Transformer


@torch.inference_mode()
def bits_per_byte(
    model: Transformer,
    forward: Callable[[Tensor], Tensor],
    inputs: np.ndarray,
    targets: np.ndarray,
    token_bytes: np.ndarray,
    device_batch_size: int,
    ranks: Ranks,
) -> float | None:
    """Loss in nats divided by ln 2 and by the bytes of the targets that are text, so that vocabularies can be compared.

    inputs and targets (n, T), without counting targets of IGNORE; token_bytes (V,), 0 for special tokens. `forward` is the model's,
    compiled or not. Each rank takes its share of the rows in micro-batches of `device_batch_size`, or smaller when out of memory; if
    compiled, the last one is padded, because a second shape would be compiled for a minute. None, on all ranks, if one row does not fit
    into memory.
    """
    size = torch.from_numpy(token_bytes).to(ranks.device)
    totals = torch.zeros(3, dtype=torch.float64, device=ranks.device)
    own = slice(ranks.rank, None, ranks.world_size)
    inputs, targets = inputs[own], targets[own]
    if forward is not model:
        padding = (0, -len(inputs) % device_batch_size), (0, 0)
        inputs, targets = np.pad(inputs, padding), np.pad(targets.astype(np.int64), padding, constant_values=IGNORE)

    def add(rows: Sequence[int]) -> Sequence[int]:
        ids, wanted = (torch.from_numpy(part[rows].astype(np.int64)).to(ranks.device) for part in (inputs, targets))
        nats = token_losses(model, forward(ids), wanted)  # (B, T)
        counted = size[wanted.clamp(min=0)] * (wanted != IGNORE)
        totals[:2] += torch.stack(((nats.double() * (counted > 0)).sum(), counted.sum().double()))
        return rows

    try:
        map_with_oom_backoff(range(len(inputs)), device_batch_size, add, ranks.device, "in the evaluation")
    except OutOfMemoryError:
        totals[2] = 1
    nats_sum, byte_sum, failed = ranks.all_reduce_sum(totals).tolist()
    if failed:
        log("warning: evaluation skipped, out of memory with one sequence")
        return None
    return nats_sum / (math.log(2) * max(byte_sum, 1))
