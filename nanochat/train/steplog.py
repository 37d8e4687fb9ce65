"""Log of training steps: lines of metrics.jsonl, step lines on the terminal, and a warning if steps are slow."""

import itertools
import math
import resource
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from nanochat.console import NORMAL, VERBOSE, duration, live, log, quantity, short_duration
from nanochat.distributed.ranks import Ranks
from nanochat.distributed.watchdog import slow
from nanochat.runs.metrics import Metrics
from nanochat.train.batch import StepBatch
from nanochat.train.stage import Stage

LOG_SECONDS = 10.0  # between two step lines, of any stage, so that fast steps do not flood a log
LIVE_SECONDS = 0.25  # between two states of a terminal's live line
BARRED = 2  # forms of the live line that have a bar, the longest ones
LEVELS = "▁▂▃▄▅▆▇█"  # of the small loss curve
CURVE, SHORT_CURVE = 16, 8  # its columns
SETTLED = 10  # steps at the start that may be slow


@dataclass(frozen=True)
class StepResult:
    """Result of one step, equal on all ranks except for the times."""

    done: int  # completed steps of the stage, this one included
    batch: StepBatch
    loss: float
    lr: float
    updated: bool  # whether the optimizer updated the weights
    stopping: bool  # whether a rank got a signal
    saving: bool  # whether a checkpoint is due by time
    rows: int  # micro-batch size
    seconds: float
    read_seconds: float  # part of `seconds` spent reading rows

    @property
    def tokens_per_second(self) -> float:
        """Tokens per second of all ranks."""
        return self.batch.tokens / self.seconds


class StepLog:
    """Times and logs a stage's steps. `metrics` is None except on the main rank; other ranks only time the steps."""

    def __init__(self, stage: Stage, ranks: Ranks, metrics: Metrics | None, start: int):
        last = metrics.last if metrics else {}
        self.stage, self.ranks, self.metrics, self.start = stage, ranks, metrics, start
        self.elapsed, self.tokens = float(last.get("elapsed_seconds", 0.0)), int(last.get("tokens", 0))  # over all stages and processes
        self.clock = stage.clock
        self.seconds: list[float] = []  # of each step of this process
        self.values: list[float] = []  # losses or rewards of this call
        self.live = False  # whether there is a terminal with a live line
        self.shown_at = 0.0  # when it was shown
        self.fastest = 0.0  # tokens per second of the fastest step
        self.waited = 0.0  # fraction of the fastest step spent reading rows

    def add(self, result: StepResult, steps: int) -> None:
        """Log the newest step of a stage with `steps` steps."""
        self.elapsed, self.tokens = self.elapsed + result.seconds, self.tokens + result.batch.tokens
        self.seconds.append(result.seconds)
        if result.tokens_per_second > self.fastest:
            self.fastest, self.waited = result.tokens_per_second, result.read_seconds / result.seconds
        if not self.metrics:
            return
        now = time.monotonic()
        self.clock.step(result.done, steps)
        changed = self.clock.change()
        self.metrics.write(self._entry(result))
        self.values.append(_measure(result)[1])
        if now - self.shown_at >= LIVE_SECONDS:
            self.shown_at, self.live = now, live(self._live_lines(result, steps), result.done / max(steps, 1), BARRED)
        last = result.done == steps
        if last or now - self.clock.printed_at >= LOG_SECONDS:
            self.clock.printed_at = now
            log(self._line(result, steps), level=VERBOSE if self.live else NORMAL)
        if last and self.live:  # the live line itself does not stay
            log(f"{self.stage.name} step {result.done}/{steps} | {_measure(result)[0]} {_measure(result)[1]:.4f}")
        if changed:
            log(f"{self.stage.name} step {result.done}/{steps}: {changed}")
        if result.done - self.start == SETTLED and (alarm := self._alarm(result)):
            log(alarm)

    def _entry(self, result: StepResult) -> dict[str, Any]:
        """The step's line of metrics.jsonl."""
        stage, rate = self.stage, result.tokens_per_second
        entry: dict[str, Any] = {
            "stage": stage.name,
            "step": result.done,
            "loss": result.loss if math.isfinite(result.loss) else None,
            "lr": result.lr,
            "tokens": self.tokens,
            "tokens_per_second": round(rate, 1),
        } | result.batch.facts
        entry |= {"step_seconds": round(result.seconds, 4), "elapsed_seconds": round(self.elapsed, 3)}
        if stage.peak_flops:
            entry["mfu"] = round(stage.flops_per_token * rate / (stage.peak_flops * self.ranks.world_size), 4)
        if not result.updated:
            entry["skipped"] = True
        if stage.loss_scale:
            entry["loss_scale"] = stage.loss_scale.scale
        if others := round(self.clock.load.busy.others, 2):
            entry["cpu_others"] = others
        return entry | {"peak_memory_bytes": _peak_memory(self.ranks.device)}

    def _live_lines(self, result: StepResult, steps: int) -> list[str]:
        """The live line of a terminal, in shorter and shorter forms: for 120, 80 and 40 columns, and less."""
        name, place, left = self.stage.name, self.clock.place, self.clock.left
        step, percent = f"{name} {result.done}/{steps}", f"{result.done / max(steps, 1):.0%}"
        (what, value), rate = _measure(result), quantity(result.tokens_per_second)
        short = f"{short_duration(left.stage)} left, run {short_duration(left.run)}"
        full = f"{duration(left.stage)} left, run {duration(left.run)}"
        long_curve, curve = (f" {small_curve(self.values, width)}".rstrip() for width in (CURVE, SHORT_CURVE))
        return [
            f"stage {place.replace('/', ' of ')}: {step} | {what} {value:.3f}{long_curve} | {rate} tokens/s | {full}",
            f"{place} {step} | {value:.3f}{curve} | {rate}/s | {short}",
            f"{place} {step} | {what} {value:.3f} | {short}",
            f"{place} {name} {percent} {value:.3f} {short.replace(' left', '')}",
            f"{place} {percent} {short.replace(' left', '')}",
            f"{place} {short_duration(left.run)}",
            place,
        ]

    def _line(self, result: StepResult, steps: int) -> str:
        """The step's plain line, with the time left of the stage and of the run."""
        left = self.clock.left
        facts = "".join(f" | {name} {value:.3f}" for name, value in result.batch.facts.items())
        speed = f"dt {result.seconds * 1000:.0f} ms | {quantity(result.tokens_per_second)} tokens/s"
        step = f"stage {self.clock.place} | {self.stage.name} step {result.done}/{steps} | loss {result.loss:.4f}{facts}"
        return f"{step} | {speed} | {duration(left.stage)} left, run {duration(left.run)}"

    def _alarm(self, result: StepResult) -> str | None:
        return slow(self.ranks.device, self.fastest, self.stage.planned_rate, result.batch.tokens, self.waited, result.rows)


def _measure(result: StepResult) -> tuple[str, float]:
    """The name and value that a stage is judged by: the reward of reinforcement learning, else the loss."""
    reward = result.batch.facts.get("reward")
    return ("loss", result.loss) if reward is None else ("reward", reward)


def small_curve(values: Sequence[float], width: int = CURVE) -> str:
    """The values as `width` blocks of different height: each the mean of an equal share of the steps."""
    finite = [value for value in values if math.isfinite(value)]
    count = min(width, len(finite))
    if count < 2:
        return ""
    edges = [index * len(finite) // count for index in range(count + 1)]
    means = [statistics.fmean(finite[begin:end]) for begin, end in itertools.pairwise(edges)]
    low, high = min(means), max(means)
    return "".join(LEVELS[round((mean - low) / ((high - low) or 1.0) * (len(LEVELS) - 1))] for mean in means)


def _peak_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
