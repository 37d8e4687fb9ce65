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

from nanochat.console import NORMAL, VERBOSE, bar, duration, live, log, quantity
from nanochat.distributed.ranks import Ranks
from nanochat.distributed.watchdog import slow
from nanochat.runs.metrics import Metrics
from nanochat.train.batch import StepBatch
from nanochat.train.stage import Stage

LOG_SECONDS = 10.0  # between two step lines, so that fast steps do not flood a log
LIVE_SECONDS = 0.25  # between two states of a terminal's live line
LEVELS = "▁▂▃▄▅▆▇█"  # of the small loss curve
CURVE = 16  # its columns
FIRST_LINES = 3
SETTLED = 10  # steps at the start that may be slow
RECENT = 100  # steps whose time predicts the remaining time


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
        self.began_at = self.printed_at = time.monotonic()
        self.seconds: list[float] = []  # of each step of this process
        self.losses: list[float] = []  # of this call
        self.shown_at = self.live_at = 0.0  # when the terminal's live line was shown
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
        self.metrics.write(self._entry(result))
        self.losses.append(result.loss)
        if now - self.shown_at >= LIVE_SECONDS and result.done < steps and live(self._live_lines(result, steps, now)):
            self.shown_at = self.live_at = now
        if result.done - self.start <= FIRST_LINES or now - self.printed_at >= LOG_SECONDS or result.done == steps:
            self.printed_at = now
            log(self._line(result, steps, now), level=VERBOSE if self.live_at and result.done < steps else NORMAL)
        if result.done - self.start == SETTLED and (alarm := self._alarm(result)):
            log(alarm)

    def step_seconds(self, newest: int) -> float | None:
        """Mean seconds of the last max(newest, SETTLED) steps, without the first SETTLED; None if there are too few."""
        if len(self.seconds) <= 2 * SETTLED:
            return None
        return statistics.mean(self.seconds[SETTLED:][-max(newest, SETTLED) :])

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
        return entry | {"peak_memory_bytes": _peak_memory(self.ranks.device)}

    def _left(self, result: StepResult, steps: int, now: float) -> str:
        """The remaining time of the stage.

        The estimate uses the newest steps, because the first step compiles or packs rows, and a process may be suspended during any.
        """
        whole = (now - self.began_at) / sum(self.seconds)  # evaluations and checkpoints included
        return duration((steps - result.done) * statistics.median(self.seconds[-RECENT:]) * whole)

    def _live_lines(self, result: StepResult, steps: int, now: float) -> list[str]:
        """The live line of a terminal, in shorter and shorter forms."""
        step = f"{self.stage.name} {result.done}/{steps}"
        left, speed = f"{self._left(result, steps, now)} left", f"{quantity(result.tokens_per_second)} tokens/s"
        loss, curve = f"loss {result.loss:.3f}", small_curve(self.losses)
        part = result.done / max(steps, 1)
        return [
            f"{bar(part, 24)} {step} | {loss} {curve} | {speed} | {left}",
            f"{bar(part, 12)} {step} | {loss} | {speed} | {left}",
            f"{step} | {loss} | {left}",
            f"{step} | {loss}",
            step,
        ]

    def _line(self, result: StepResult, steps: int, now: float) -> str:
        """The step's line on the terminal, with the remaining time."""
        left = self._left(result, steps, now)
        facts = "".join(f" | {name} {value:.3f}" for name, value in result.batch.facts.items())
        speed = f"dt {result.seconds * 1000:.0f} ms | {quantity(result.tokens_per_second)} tokens/s"
        return f"{self.stage.name} step {result.done}/{steps} | loss {result.loss:.4f}{facts} | {speed} | {left} left"

    def _alarm(self, result: StepResult) -> str | None:
        return slow(self.ranks.device, self.fastest, self.stage.planned_rate, result.batch.tokens, self.waited, result.rows)


def small_curve(losses: Sequence[float]) -> str:
    """The losses as CURVE blocks of different height: each the mean of an equal share of the steps."""
    finite = [loss for loss in losses if math.isfinite(loss)]
    count = min(CURVE, len(finite))
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
