"""Settings and hooks of one stage of a run (pretraining, fine-tuning, reinforcement learning) for the trainer."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nanochat.train.batch import BatchSource
from nanochat.train.loss_scale import LossScale
from nanochat.train.schedule import Pacer, Schedule
from nanochat.train.timeleft import RunClock


@dataclass
class Stage:
    """One stage of a run. Hooks are called on every rank, unless noted."""

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
    skipped: int = 0  # number of skipped steps before the resumed step
    loss_scale: LossScale | None = None  # of float16 activations
    flops_per_token: float = 0.0
    peak_flops: float = 0.0  # of one device, for mfu; 0 if unknown
    planned_rate: float = 0.0  # planned tokens per second of all ranks; 0 if there is no plan
    evaluate: Callable[[], dict[str, float] | None] | None = None  # fields for the step's line; None when out of memory
    sample: Callable[[int], None] | None = None
    pacer: Pacer | None = None  # may change the number of steps
    clock: RunClock = field(default_factory=RunClock)  # the run's time left, shared by its stages
    meta: dict[str, Any] = field(default_factory=dict)  # metadata of every checkpoint
    saved: Callable[[Path], object] = lambda folder: None  # called with the directory of each saved step, on the main rank
    stepped: Callable[[float, int], object] = lambda seconds, tokens: None  # called after each step, without the time of reading its rows
    heartbeat: Callable[[str], object] = lambda where: None  # called with the work that begins, for the watchdog


def due(step: int, every: int, steps: int) -> bool:
    """Whether an action that is due every `every` steps and at the end is due after `step` steps."""
    return step == steps or (every > 0 and step % every == 0)
