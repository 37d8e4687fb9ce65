"""How the learning rate, Muon's momentum and the weight decay change over a stage's steps, and who may change their number."""

import math
from dataclasses import dataclass, replace
from typing import Protocol

REVIEWS = 20  # equal parts of a schedule; after each one that ends in the cooldown, the number of steps may change


class Pacer(Protocol):
    """Decides from the time that steps take how many of them a stage gets. `--hours` has one: planning/autosize.py."""

    def steps(self, done: int, step_seconds: float) -> int:
        """Steps of the whole stage, more than the `done` ones, where one takes `step_seconds`.

        The trainer asks at its schedule's review points, on the main rank alone.
        """
        ...


@dataclass(frozen=True)
class Schedule:
    """Learning rate, Muon momentum and weight decay over `steps` steps, as functions of the step (from 0).

    Where the number of steps was changed, `rescale_point` is the step at which it was and the part of the schedule that had passed by
    then: the rest of the schedule is stretched over the rest of the steps.
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
        """Steps over which the learning rate falls."""
        return max(1, round(self.steps * self.warmdown_ratio))

    def progress(self, step: int) -> float:
        """The step at which a schedule that was never rescaled would be."""
        at, passed = self.rescale_point
        return self.steps * (passed + (1 - passed) * (step - at) / (self.steps - at)) if at else step

    def review_due(self, done: int) -> bool:
        """Whether one of the REVIEWS parts of the schedule ends with `done` steps, in the cooldown."""
        part, before = (int(REVIEWS * self.progress(step) / self.steps) for step in (done, done - 1))
        return part > before and self.steps - self.cooldown_steps <= self.progress(done) < self.steps

    def rescaled(self, done: int, steps: int) -> "Schedule":
        """The schedule with other `steps`, more than the `done` ones."""
        return replace(self, steps=steps, rescale_point=(done, self.progress(done) / self.steps)) if steps != self.steps else self

    def lr(self, step: int) -> float:
        """Multiplier of every learning rate: linear warmup, flat, linear cooldown."""
        warmup = min((step + 1) / self.warmup_steps, 1.0) if self.warmup_steps else 1.0
        left = min((self.steps - self.progress(step)) / self.cooldown_steps, 1.0)
        return self.peak * warmup * (self.final_lr_frac + (1 - self.final_lr_frac) * left)

    def beta(self, step: int) -> float:
        """Muon's momentum: it rises while gradients still turn quickly, and falls again with the learning rate."""
        (start, peak, end), cooldown = self.momentum, self.cooldown_steps
        rise = max(1, min(self.momentum_steps, self.steps - cooldown))  # a short run still reaches the peak
        value = start + (peak - start) * min(step / rise, 1.0)
        fall = max(0.0, (self.progress(step) - (self.steps - cooldown)) / cooldown)
        return value + (end - value) * fall

    def decay(self, step: int) -> float:
        """Muon's weight decay: a cosine to zero."""
        return self.weight_decay * 0.5 * (1 + math.cos(math.pi * self.progress(step) / self.steps))
