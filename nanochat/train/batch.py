"""What a training step reads: this rank's rows, and where they come from."""

from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from nanochat.distributed.ranks import Ranks


@dataclass(frozen=True)
class StepBatch:
    """This rank's rows of one step: inputs and targets (n, T); `counted` targets over all ranks, `tokens` likewise.

    The loss is the mean over the counted targets, each row's times its weight; where none counts, there is nothing to learn.
    """

    inputs: np.ndarray
    targets: np.ndarray
    counted: int
    tokens: int
    weights: np.ndarray | None = None  # (n,); rows with weights come from the longest to the shortest, padded on the right
    facts: dict[str, float] = field(default_factory=dict)  # for the step's line, the same on all ranks


class BatchSource(Protocol):
    """Where a stage's batches come from: a function of the step alone, and of the model as that step finds it, so that resume is exact."""

    def batch(self, step: int, ranks: Ranks) -> StepBatch:
        """The rows of `step` (from 0) that this rank takes."""
        ...
