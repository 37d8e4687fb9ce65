"""Schedules of learning rate, Muon momentum and weight decay over a stage's steps, and the hook that may change their number."""

import math
from dataclasses import dataclass, replace
from typing import Protocol


class Pacer(Protocol):
    """Chooses the number of a stage's steps while it trains; for `--hours` (planning/autosize.py). Asked on the main rank only."""

    def due(self) -> bool:
        """Whether it is time to ask for the number of steps again. Called after each step."""
        ...

    def steps(self, stage: str, done: int, steps: int) -> int:
        """Total steps of the stage, more than `done`; now `steps`."""
        ...

    def after(self, stage: str, steps: int) -> dict[str, int]:
        """The config's fields that change when `stage` ends with `steps` steps. Called on every rank."""
        ...


@dataclass(frozen=True)
class Schedule:
    """Learning rate, Muon momentum and weight decay over `steps` steps, as functions of the step (from 0).

    If the number of steps was changed, `rescale_point` is (step of the change, position in the original schedule then): the rest of the
    schedule is scaled to the remaining steps.
    """

    steps: int
    warmup_steps: int
    warmdown_ratio: float
    final_lr_frac: float
    weight_decay: float
    peak: float = 1.0
    momentum: tuple[float, float, float] = (0.85, 0.97, 0.90)  # at the start, at the peak, after the cooldown
    momentum_steps: int = 400
    rescale_point: tuple[int, float] = (0, 0.0)

    @property
    def cooldown_steps(self) -> int:
        """Steps of the cooldown."""
        return max(1, round(self.steps * self.warmdown_ratio))

    def progress(self, step: int) -> float:
        """The step's position in the original schedule, before any rescaling."""
        at, passed = self.rescale_point
        return self.steps * (passed + (1 - passed) * (step - at) / (self.steps - at)) if at else step

    def rescaled(self, done: int, steps: int) -> "Schedule":
        """The schedule with a new number of `steps`, more than `done`."""
        return replace(self, steps=steps, rescale_point=(done, self.progress(done) / self.steps)) if steps != self.steps else self

    def lr(self, step: int) -> float:
        """Multiplier of every learning rate: linear warmup, flat, linear cooldown."""
        warmup = min((step + 1) / self.warmup_steps, 1.0) if self.warmup_steps else 1.0
        left = min((self.steps - self.progress(step)) / self.cooldown_steps, 1.0)
        return self.peak * warmup * (self.final_lr_frac + (1 - self.final_lr_frac) * left)

    def beta(self, step: int) -> float:
        """Muon's momentum: lower at the start, while gradients change quickly, and in the cooldown."""
        (start, peak, end), cooldown = self.momentum, self.cooldown_steps
        rise = max(1, min(self.momentum_steps, self.steps - cooldown))  # a short run still reaches the peak
        value = start + (peak - start) * min(step / rise, 1.0)
        fall = max(0.0, (self.progress(step) - (self.steps - cooldown)) / cooldown)
        return value + (end - value) * fall

    def decay(self, step: int) -> float:
        """Muon's weight decay: cosine decay to zero."""
        return self.weight_decay * 0.5 * (1 + math.cos(math.pi * self.progress(step) / self.steps))
