"""The one training loop. What differs between pretraining, fine-tuning and RL is the source of batches and the schedule."""

import contextlib
import math
import os
import resource
import signal
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from nanochat.console import duration, log, quantity
from nanochat.distributed.memory import Attempt, is_out_of_memory
from nanochat.distributed.ranks import Ranks, echoed
from nanochat.distributed.watchdog import slow
from nanochat.errors import NonFiniteError, OutOfMemoryError, Preempted
from nanochat.model.loss import IGNORE, cross_entropy_sum
from nanochat.model.optim import MuonAdamW
from nanochat.model.transformer import Transformer
from nanochat.runs.checkpoint import Checkpoints
from nanochat.runs.metrics import EVALUATED, Metrics
from nanochat.train.nonfinite import write_down

LOG_SECONDS = 2.0  # between two step lines, so that fast steps do not flood the terminal
FIRST_LINES = 3
_NAMES = {"bpb": "bits per byte"}  # of what an evaluation finds
SETTLED = 10  # steps after which a slow step is no longer the start's
RECENT = 100  # steps whose pace says how long the rest takes
REVIEWS = 20  # parts of a schedule, after each of which, once the warm-down has begun, its steps may be changed


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


@dataclass(frozen=True)
class Schedule:
    """Learning rate, Muon momentum and weight decay over `steps` steps, as functions of the step (from 0).

    At the step `turn[0]` the part `turn[1]` of the schedule had passed, when its steps were changed: what is left is stretched over the
    steps that are left.
    """

    steps: int
    warmup_steps: int
    warmdown_ratio: float
    final_lr_frac: float
    weight_decay: float
    peak: float = 1.0
    momentum: tuple[float, float, float] = (0.85, 0.97, 0.90)  # at the start, at the peak, after the warm-down
    momentum_steps: int = 400
    turn: tuple[int, float] = (0, 0.0)

    @property
    def down(self) -> int:
        """Steps of the warm-down."""
        return max(1, round(self.steps * self.warmdown_ratio))

    def place(self, step: int) -> float:
        """The step at which a schedule without a turn would be."""
        at, passed = self.turn
        return self.steps * (passed + (1 - passed) * (step - at) / (self.steps - at)) if at else step

    def reviewed(self, done: int) -> bool:
        """Whether one of the REVIEWS parts of the schedule ends with `done` steps, in the warm-down."""
        part, before = (int(REVIEWS * self.place(step) / self.steps) for step in (done, done - 1))
        return part > before and self.steps - self.down <= self.place(done) < self.steps

    def turned(self, done: int, steps: int) -> "Schedule":
        """The schedule with other `steps`, more than the `done` ones."""
        return replace(self, steps=steps, turn=(done, self.place(done) / self.steps)) if steps != self.steps else self

    def lr(self, step: int) -> float:
        """Multiplier of every learning rate: linear warm-up, flat, linear warm-down."""
        warmup = min((step + 1) / self.warmup_steps, 1.0) if self.warmup_steps else 1.0
        left = min((self.steps - self.place(step)) / self.down, 1.0)
        return self.peak * warmup * (self.final_lr_frac + (1 - self.final_lr_frac) * left)

    def beta(self, step: int) -> float:
        """Muon's momentum: it rises while gradients still turn quickly, and falls again with the learning rate."""
        (start, peak, end), down = self.momentum, self.down
        rise = max(1, min(self.momentum_steps, self.steps - down))  # a short run still reaches the peak
        value = start + (peak - start) * min(step / rise, 1.0)
        fall = max(0.0, (self.place(step) - (self.steps - down)) / down)
        return value + (end - value) * fall

    def decay(self, step: int) -> float:
        """Muon's weight decay: a cosine to zero."""
        return self.weight_decay * 0.5 * (1 + math.cos(math.pi * self.place(step) / self.steps))


class StopSignal:
    """SIGTERM and SIGINT: before the loop they end the command, in it they set a flag that is agreed on at the step's end."""

    def __init__(self) -> None:
        self.set = False
        self.came: float | None = None  # when the first one did
        self.in_loop = False  # a step is under way: it is finished and saved first
        self.trained = False  # there is a checkpoint

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        if echoed(self.came):
            return
        self.came = self.came or time.monotonic()
        if self.set:  # the second one ends at once
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        self.set = True
        if not self.in_loop:
            what = "stopped: all that was trained is saved" if self.trained else "stopped before the first step: there was nothing to save"
            raise Preempted(what, "run the same command again to go on")
        line = "stopping: saving after this step (once more to stop at once)"
        try:
            print(line, file=sys.stderr, flush=True)
        except RuntimeError:  # the signal came in the midst of another print, and stderr's buffer cannot be entered twice
            os.write(2, f"{line}\n".encode())

    @contextlib.contextmanager
    def installed(self) -> Iterator["StopSignal"]:
        """Handle the signals inside the block; only the main thread can."""
        before = {number: signal.signal(number, self._handle) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


@dataclass
class Stage:
    """One stage of a run, as the loop sees it. The hooks run on every rank."""

    name: str
    source: BatchSource
    schedule: Schedule
    device_batch_size: int
    save_every: int = -1
    save_seconds: float = 900.0
    eval_every: int = -1
    sample_every: int = -1
    keep_last: int = 2
    skip_bad_batches: int = 0  # steps whose loss or gradient may be not finite; they update nothing
    skipped: int = 0  # of them before `start`
    flops_per_token: float = 0.0
    peak_flops: float = 0.0  # of one device, for mfu; 0 where unknown
    planned_rate: float = 0.0  # tokens a second of all ranks, by the plan; 0 where there is none
    evaluate: Callable[[], dict[str, float] | None] | None = None  # for the step's line; None where the memory was not enough
    sample: Callable[[int], None] | None = None
    retime: Callable[[int, float], int] | None = None  # in the warm-down: the steps done, seconds of one -> the stage's steps
    meta: dict[str, Any] = field(default_factory=dict)  # goes into every checkpoint
    saved: Callable[[Path], object] = lambda folder: None  # told the folder of each step that was saved, on the main rank
    beat: Callable[[str], object] = lambda where: None  # told what begins now, for the watchdog

    @property
    def steps(self) -> int:
        """Steps of the whole stage."""
        return self.schedule.steps


def due(step: int, every: int, steps: int) -> bool:
    """Whether something that happens every `every` steps, and at the end, happens after `step` steps."""
    return step == steps or (every > 0 and step % every == 0)


def run_stage(
    stage: Stage,
    model: Transformer,
    forward: Callable[[Tensor], Tensor],
    optimizer: MuonAdamW,
    ranks: Ranks,
    store: Checkpoints,
    metrics: Metrics | None,
    stop: StopSignal,
    start: int = 0,
) -> None:
    """Train from `start` done steps to the stage's end; `forward` is the model's forward pass, compiled or not.

    `metrics` is the main rank's; the others have None. A step that ran out of memory is done again with half the device batch.
    Raises OutOfMemoryError where that is not even one row, NonFiniteError before the update that would spread it (the first
    `stage.skip_bad_batches` of such steps pass, without an update), Preempted after a signal's checkpoint.
    """
    last = metrics.last if metrics else {}
    elapsed, tokens = float(last.get("elapsed_seconds", 0.0)), int(last.get("tokens", 0))
    began_at = printed_at = saved_at = time.monotonic()
    rows, fastest, waited, skipped = stage.device_batch_size, 0.0, 0.0, stage.skipped
    paces: list[float] = []

    def save(step: int) -> None:
        nonlocal saved_at
        stage.beat(f"saving {stage.name} step {step}")
        if metrics:
            metrics.sync()
        folder = store.save(
            model, optimizer, stage.meta | {"step": step, "optimizer_steps": optimizer.steps, "skipped": skipped}, ranks, stage.keep_last
        )
        saved_at = time.monotonic()
        stop.trained = True
        if ranks.main:
            stage.saved(folder)

    def evaluate(step: int) -> None:
        if stage.evaluate and due(step, stage.eval_every, stage.steps):
            stage.beat(f"evaluating {stage.name} step {step}")
            found = stage.evaluate()
            if metrics and found:
                said = " | ".join(f"{_NAMES.get(name, name)} {value:.4f}" for name, value in found.items() if name != "eval_tokens")
                log(f"{stage.name} step {step}/{stage.steps} | validation: {said}")
                metrics.amend(**found)
                if "bpb" in found:
                    store.evaluated(step, found["bpb"])

    def bad(done: int, loss: float, norm: float, lr: float, batch: StepBatch) -> None:
        nonlocal skipped
        skipped += 1
        folder = store.folder.parent / "nonfinite" / f"{stage.name}_step_{done:06d}"
        stage.beat(f"writing down what led to the loss of {stage.name} step {done}")
        facts = {"stage": stage.name, "step": done, "loss": str(loss), "gradient_norm": str(norm), "lr": lr}
        write_down(folder, ranks.rank, facts, batch.inputs, batch.targets, model, store.folder.parent / "metrics.jsonl")
        what = f"the loss of {stage.name} step {done} is {loss}, its gradient's length {norm}"
        if skipped > stage.skip_bad_batches:
            raise NonFiniteError(
                f"{what}: stopped before the update; what led to it is in {folder}",
                "run the same command again to go on from the newest checkpoint; if it comes back, lower --matrix_lr and --embedding_lr, "
                f"or go past the batch with --skip-bad-batches={skipped}",
            )
        log(f"warning: {what}: no update ({skipped} of {stage.skip_bad_batches} that may be skipped; what led to it is in {folder})")

    def report(done: int, loss: float, lr: float, seconds: float, batch: StepBatch, updated: bool) -> None:
        nonlocal printed_at
        if not metrics:
            return
        now, rate = time.monotonic(), batch.tokens / seconds
        entry: dict[str, Any] = {
            "stage": stage.name,
            "step": done,
            "loss": loss if math.isfinite(loss) else None,
            "lr": lr,
            "tokens": tokens,
            "tokens_per_second": round(rate, 1),
        } | batch.facts
        entry |= {"step_seconds": round(seconds, 4), "elapsed_seconds": round(elapsed, 3)}
        if stage.peak_flops:
            entry["mfu"] = round(stage.flops_per_token * rate / (stage.peak_flops * ranks.world_size), 4)
        if not updated:
            entry["skipped"] = True
        metrics.write(entry | {"peak_memory_bytes": _peak_memory(ranks.device)})
        if done - start <= FIRST_LINES or now - printed_at >= LOG_SECONDS or done == stage.steps:
            printed_at = now
            # By the newest steps: the first one compiles or packs rows, and a process may have been stopped in the midst of any.
            whole = (now - began_at) / sum(paces)  # evaluations and checkpoints too
            left = duration((stage.steps - done) * statistics.median(paces[-RECENT:]) * whole)
            facts = "".join(f" | {name} {value:.3f}" for name, value in batch.facts.items())
            speed = f"dt {seconds * 1000:.0f} ms | {quantity(rate)} tokens/s"
            log(f"{stage.name} step {done}/{stage.steps} | loss {loss:.4f}{facts} | {speed} | {left} left")
        if done - start == SETTLED and (alarm := slow(ranks.device, fastest, stage.planned_rate, batch.tokens, waited, rows)):
            log(alarm)

    def retime(done: int) -> None:
        if stage.retime and stage.schedule.reviewed(done) and len(paces) > 2 * SETTLED:
            newest = paces[SETTLED:][-max(stage.steps // REVIEWS, SETTLED) :]
            steps = stage.retime(done, statistics.mean(newest)) if ranks.main else 0
            steps = int(ranks.all_reduce_sum(torch.tensor(float(steps), device=ranks.device)).item())
            stage.schedule = stage.schedule.turned(done, steps)
            stage.meta |= {"steps": steps, "turn": stage.schedule.turn}

    stop.in_loop = True
    unseen = torch.tensor(float(0 < start == last.get("step") and EVALUATED[stage.name] not in last), device=ranks.device)
    if ranks.all_reduce_sum(unseen).item():  # it was stopped between the save and the evaluation of that step
        evaluate(start)
    done = start
    while done < stage.steps:
        retime(done)
        began, step, done = time.monotonic(), done, done + 1
        stage.beat(f"reading the rows of {stage.name} step {done}")
        batch = stage.source.batch(step, ranks)
        lr = stage.schedule.lr(step)
        read = time.monotonic() - began
        while True:
            stage.beat(f"computing {stage.name} step {done}")
            sums = torch.zeros(2, device=ranks.device)
            with Attempt(ranks.device) as attempt:
                sums = _forward_backward(batch, rows, model, forward, ranks)
            overdue = ranks.main and began - saved_at >= stage.save_seconds
            stage.beat(f"waiting for the other ranks in {stage.name} step {done}")
            flags = sums.new_tensor([float(stop.set), float(overdue), float(attempt.failed)])
            loss, norm, stopping, saving, failed = ranks.all_reduce_sum(torch.cat((sums, flags))).tolist()
            if not failed:
                break
            optimizer.zero_grad()
            rows = _halved(rows, batch, f"{stage.name} step {done}")
        finite, learned = math.isfinite(loss) and math.isfinite(norm), batch.counted > 0
        if not learned:  # the optimizer would follow its momentum
            log(f"{stage.name} step {done}/{stage.steps}: there is nothing to learn from this step, and no update")
        elif finite:
            with _memory_explained():
                optimizer.step(lr=lr, beta=stage.schedule.beta(step), weight_decay=stage.schedule.decay(step))
        else:
            bad(done, loss, norm, lr, batch)
        optimizer.zero_grad()
        seconds = time.monotonic() - began
        elapsed, tokens = elapsed + seconds, tokens + batch.tokens
        paces.append(seconds)
        if batch.tokens / seconds > fastest:
            fastest, waited = batch.tokens / seconds, read / seconds
        report(done, loss, lr, seconds, batch, finite and learned)
        evaluating = stage.evaluate is not None and due(done, stage.eval_every, stage.steps)
        if stopping or saving or evaluating or due(done, stage.save_every, stage.steps):
            save(done)  # before the evaluation and the samples: their failure loses nothing
        if stopping:
            raise Preempted(
                f"stopped after {stage.name} step {done} of {stage.steps}, which is saved", "run the same command again to go on"
            )
        evaluate(done)
        if stage.sample and due(done, stage.sample_every, stage.steps):
            stage.beat(f"sampling after {stage.name} step {done}")
            with Attempt(ranks.device) as attempt:
                stage.sample(done)
            if attempt.failed:
                log("warning: no sample: out of memory")
    stop.in_loop = False


def _forward_backward(
    batch: StepBatch, device_batch_size: int, model: Transformer, forward: Callable[[Tensor], Tensor], ranks: Ranks
) -> Tensor:
    """Accumulate the gradient of the batch's mean loss in micro-batches: this rank's part of that loss, and its gradient's length (2,).

    Micro-batches without a target are skipped, and the mean is over the targets of all ranks: nothing divides by zero.
    """
    total = torch.zeros((), device=ranks.device)
    counted = max(batch.counted, 1)
    for first in range(0, len(batch.inputs), device_batch_size):
        targets = batch.targets[first : first + device_batch_size]
        if not (targets != IGNORE).any():
            continue
        inputs, weights = batch.inputs[first : first + device_batch_size], None
        if batch.weights is not None:  # without the padding that all these rows share
            inputs, targets = (part[:, : np.flatnonzero((targets != IGNORE).any(axis=0))[-1] + 1] for part in (inputs, targets))
            weights = torch.from_numpy(batch.weights[first : first + device_batch_size]).to(ranks.device)
        hidden = forward(_to_device(inputs, ranks.device))
        loss = cross_entropy_sum(model, hidden, _to_device(targets, ranks.device), weights) / counted
        total += loss.detach()
        (loss * ranks.world_size).backward()  # the optimizer takes the mean over the ranks
    return torch.stack((total, _gradient_norm(model, ranks.device)))


def _gradient_norm(model: Transformer, device: torch.device) -> Tensor:
    """The length of this rank's gradient, a scalar; not finite where any part of it is not."""
    return torch.nn.utils.get_total_norm([weight.grad for weight in model.parameters() if weight.grad is not None]).to(device)


def _halved(rows: int, batch: StepBatch, where: str) -> int:
    """Half of `rows`, with a word on it. Raises OutOfMemoryError where that is none."""
    length = batch.inputs.shape[1]
    if rows == 1:
        raise OutOfMemoryError(
            f"out of memory in {where} with one row of {length} tokens on the device, the smallest batch",
            "use a smaller --depth or --max_seq_len",
        )
    log(
        f"warning: out of memory in {where} with {rows} rows of {length} tokens on a device: it goes on with {rows // 2}, in more parts; "
        f"a step's tokens, and so the losses, stay the same (--device_batch_size={rows // 2} begins so)"
    )
    return rows // 2


@contextlib.contextmanager
def _memory_explained() -> Iterator[None]:
    """Turn "out of memory" in the optimizer's step, which no smaller batch would avoid, into an error that says what to lower."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise OutOfMemoryError(
            "out of memory in the optimizer's step, which needs the same however small the device batch is",
            "use a smaller --depth, or more processes (--nproc_per_node), which share its state",
        ) from error


def _to_device(rows: np.ndarray, device: torch.device) -> Tensor:
    tensor = torch.from_numpy(rows.astype(np.int64))
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor


def _peak_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
