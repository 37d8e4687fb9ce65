"""What a training run says of its steps: a line of metrics.jsonl for each, some of them on the terminal, a warning where they are slow."""

import math
import resource
import statistics
import time
from dataclasses import dataclass
from typing import Any

import torch

from nanochat.console import duration, log, quantity
from nanochat.distributed.ranks import Ranks
from nanochat.distributed.watchdog import slow
from nanochat.runs.metrics import Metrics
from nanochat.train.batch import StepBatch
from nanochat.train.stage import Stage

LOG_SECONDS = 2.0  # between two step lines, so that fast steps do not flood the terminal
FIRST_LINES = 3
SETTLED = 10  # steps after which a slow step is no longer the start's
RECENT = 100  # steps whose time says how long the rest takes


@dataclass(frozen=True)
class StepResult:
    """What one step came to, the same on all ranks but for the times."""

    done: int  # steps of the stage, this one included
    batch: StepBatch
    loss: float
    lr: float
    updated: bool  # the optimizer made its step
    stopping: bool  # a signal came on some rank
    saving: bool  # the last checkpoint is older than it may get
    rows: int  # of a micro-batch
    seconds: float
    read_seconds: float  # of them, for the rows

    @property
    def tokens_per_second(self) -> float:
        """Of all ranks."""
        return self.batch.tokens / self.seconds


class StepLog:
    """Times a stage's steps, and tells of them. `metrics` is the main rank's; the others have None, and only time them."""

    def __init__(self, stage: Stage, ranks: Ranks, metrics: Metrics | None, start: int):
        last = metrics.last if metrics else {}
        self.stage, self.ranks, self.metrics, self.start = stage, ranks, metrics, start
        self.elapsed, self.tokens = float(last.get("elapsed_seconds", 0.0)), int(last.get("tokens", 0))  # over all stages and calls
        self.began_at = self.printed_at = time.monotonic()
        self.seconds: list[float] = []  # of each step of this call
        self.fastest = 0.0  # tokens per second
        self.waited = 0.0  # part of the fastest step in which its rows were read

    def add(self, result: StepResult, steps: int) -> None:
        """Take in the newest step of a stage that has `steps` of them now."""
        self.elapsed, self.tokens = self.elapsed + result.seconds, self.tokens + result.batch.tokens
        self.seconds.append(result.seconds)
        if result.tokens_per_second > self.fastest:
            self.fastest, self.waited = result.tokens_per_second, result.read_seconds / result.seconds
        if not self.metrics:
            return
        now = time.monotonic()
        self.metrics.write(self._entry(result))
        if result.done - self.start <= FIRST_LINES or now - self.printed_at >= LOG_SECONDS or result.done == steps:
            self.printed_at = now
            log(self._line(result, steps, now))
        if result.done - self.start == SETTLED and (alarm := self._alarm(result)):
            log(alarm)

    def step_seconds(self, newest: int) -> float | None:
        """Mean seconds of one of the `newest` steps, or of at least SETTLED, the first SETTLED left out; None if there are too few."""
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

    def _line(self, result: StepResult, steps: int, now: float) -> str:
        """The step's line on the terminal, with the time that is left.

        By the newest steps: the first one compiles or packs rows, and a process may have been stopped in the midst of any.
        """
        whole = (now - self.began_at) / sum(self.seconds)  # evaluations and checkpoints too
        left = duration((steps - result.done) * statistics.median(self.seconds[-RECENT:]) * whole)
        facts = "".join(f" | {name} {value:.3f}" for name, value in result.batch.facts.items())
        speed = f"dt {result.seconds * 1000:.0f} ms | {quantity(result.tokens_per_second)} tokens/s"
        return f"{self.stage.name} step {result.done}/{steps} | loss {result.loss:.4f}{facts} | {speed} | {left} left"

    def _alarm(self, result: StepResult) -> str | None:
        return slow(self.ranks.device, self.fastest, self.stage.planned_rate, result.batch.tokens, self.waited, result.rows)


def _peak_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
