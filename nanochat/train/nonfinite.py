"""Diagnosis files of a NaN or Inf loss or gradient, written before the run stops or skips the step.

runs/<run>/nonfinite/<stage>_step_000123/rank_00000.json    each row's loss, NaN or Inf gradients and weights, last metrics
                                         rank_00000.npz     the rank's inputs and targets (n, T)
"""

import io
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nanochat import paths
from nanochat.console import log
from nanochat.model.loss import IGNORE, token_losses
from nanochat.model.transformer import Transformer

LINES = 50  # last lines of metrics.jsonl in the file
LARGEST = 10  # largest finite gradients in the file


def write_down(
    folder: Path, rank: int, facts: dict[str, Any], inputs: np.ndarray, targets: np.ndarray, model: Transformer, metrics: Path
) -> None:
    """Write this rank's part of the step and `facts` into `folder`; a disk error is only a warning, so that it hides no other error.

    `model` has the gradients and the weights before the update; inputs and targets (n, T).
    """
    try:
        losses = _row_losses(model, inputs, targets)
        norms = {name: _norm(weight.grad) for name, weight in model.named_parameters() if weight.grad is not None}
        largest = sorted((name for name in norms if math.isfinite(norms[name])), key=lambda name: -norms[name])[:LARGEST]
        about = facts | {
            "rank": rank,
            "row_losses": [value if math.isfinite(value) else str(value) for value in losses],
            "rows_not_finite": [row for row, value in enumerate(losses) if not math.isfinite(value)],
            "gradients_not_finite": [name for name, norm in norms.items() if not math.isfinite(norm)],
            "largest_gradients": {name: norms[name] for name in largest},
            "weights_not_finite": [name for name, weight in model.named_parameters() if not math.isfinite(_norm(weight))],
            "before": _last_lines(metrics),
        }
        buffer = io.BytesIO()
        np.savez_compressed(buffer, inputs=inputs, targets=targets)
        paths.atomic_write(folder / f"rank_{rank:05d}.npz", buffer.getvalue())
        paths.atomic_write_json(folder / f"rank_{rank:05d}.json", about)
    except (OSError, RuntimeError) as error:
        log(f"warning: cannot write the diagnosis files: {error}")


def _norm(tensor: Tensor) -> float:
    return float(tensor.detach().float().norm())


@torch.no_grad()
def _row_losses(model: Transformer, inputs: np.ndarray, targets: np.ndarray) -> list[float]:
    """The mean loss of each row's targets, recomputed row by row; 0 if it has none."""
    device = next(model.parameters()).device
    losses = []
    for row, wanted in zip(inputs, targets, strict=True):
        ids, goal = (torch.from_numpy(part.astype(np.int64))[None].to(device) for part in (row, wanted))
        losses.append(float(token_losses(model, model(ids), goal).sum()) / max(int((wanted != IGNORE).sum()), 1))
    return losses


def _last_lines(metrics: Path) -> list[Any]:
    try:
        return [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()[-LINES:]]
    except (OSError, ValueError):
        return []
