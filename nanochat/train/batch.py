"""A training step's batch on this rank, and the interface of its source."""

from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from nanochat.distributed.ranks import Ranks


@dataclass(frozen=True)
class StepBatch:
    """This rank's rows of one step: inputs and targets (n, T), and over all ranks the numbers of `counted` targets and `tokens`.

    The loss is the mean over the counted targets, each times its row's weight; without a counted target, nothing is learned.
    """

    inputs: np.ndarray
    targets: np.ndarray
    counted: int
    tokens: int
    weights: np.ndarray | None = None  # (n,); rows with weights are sorted by length, longest first, and padded on the right
    facts: dict[str, float] = field(default_factory=dict)  # fields of the step's line, equal on all ranks


class BatchSource(Protocol):
    """Source of a stage's batches, which depend only on the step and on the model before it, so that resume is exact."""

    def batch(self, step: int, ranks: Ranks) -> StepBatch:
        """This rank's rows of `step` (from 0)."""
        ...
