"""The settings of one stage of a run (pretraining, fine-tuning, reinforcement learning), as the trainer needs them."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nanochat.train.batch import BatchSource
from nanochat.train.schedule import Pacer, Schedule


@dataclass
class Stage:
    """One stage of a run. The hooks run on every rank, where nothing else is said."""

    name: str
    source: BatchSource
    schedule: Schedule
    device_batch_size: int
    save_every: int = -1
    save_seconds: float = 900.0
    eval_every: int = -1
    sample_every: int = -1
    keep_last: int = 2
    skip_bad_batches: int = 0  # steps with a NaN or Inf loss or gradient to skip before stopping; they update nothing
    skipped: int = 0  # of them before the step that training resumes from
    flops_per_token: float = 0.0
    peak_flops: float = 0.0  # of one device, for mfu; 0 if unknown
    planned_rate: float = 0.0  # tokens per second of all ranks, by the plan; 0 if there is none
    evaluate: Callable[[], dict[str, float] | None] | None = None  # for the step's line; None if the memory was not enough
    sample: Callable[[int], None] | None = None
    pacer: Pacer | None = None  # may change the number of steps in the cooldown
    meta: dict[str, Any] = field(default_factory=dict)  # goes into every checkpoint
    saved: Callable[[Path], object] = lambda folder: None  # told the folder of each step that was saved, on the main rank
    heartbeat: Callable[[str], object] = lambda where: None  # told what begins now, for the watchdog


def due(step: int, every: int, steps: int) -> bool:
    """Whether something that happens every `every` steps, and at the end, happens after `step` steps."""
    return step == steps or (every > 0 and step % every == 0)
