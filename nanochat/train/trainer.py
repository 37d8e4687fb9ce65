"""The training loop, shared by pretraining, fine-tuning and reinforcement learning, which differ in batch source and schedule."""

import contextlib
import gc
import math
import time
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from nanochat.console import log
from nanochat.distributed.memory import Attempt, is_out_of_memory
from nanochat.distributed.ranks import Ranks
from nanochat.errors import NonFiniteError, OutOfMemoryError, Preempted
from nanochat.hardware import awake
from nanochat.model.optim import MuonAdamW
from nanochat.model.transformer import Transformer
from nanochat.runs.checkpoint import Checkpoints
from nanochat.runs.metrics import EVALUATED, Metrics
from nanochat.train.batch import StepBatch
from nanochat.train.gradients import accumulate_gradients
from nanochat.train.loss_scale import GROWTH_STEPS
from nanochat.train.nonfinite import write_down
from nanochat.train.signals import StopSignal
from nanochat.train.stage import Stage, due
from nanochat.train.steplog import StepLog, StepResult
from nanochat.train.timeleft import EVALUATION, SAMPLE, SAVE

_NAMES = {"bpb": "bits per byte"}  # names of an evaluation's results


class Trainer:
    """Trains one stage of a run, from `start` completed steps to its end.

    `forward` is the model's forward pass, compiled or not. `metrics` is None except on the main rank. A step that runs out of
    memory is computed again with half the micro-batch size.
    """

    def __init__(
        self,
        stage: Stage,
        model: Transformer,
        forward: Callable[[Tensor], Tensor],
        optimizer: MuonAdamW,
        ranks: Ranks,
        store: Checkpoints,
        metrics: Metrics | None,
        stop: StopSignal,
        start: int = 0,
    ):
        self.stage, self.model, self.forward, self.optimizer, self.ranks = stage, model, forward, optimizer, ranks
        self.store, self.metrics, self.stop = store, metrics, stop
        self.log = StepLog(stage, ranks, metrics, start)
        self.done = start  # steps, including the running one
        self.schedule, self.rows, self.skipped = stage.schedule, stage.device_batch_size, stage.skipped
        self.saved_at = time.monotonic()
        self.review = False  # whether the pacer is to be asked, on all ranks

    def run(self) -> None:
        """Train to the end of the stage, saving, evaluating and sampling when due.

        Raises OutOfMemoryError if one row does not fit, NonFiniteError before the update with a NaN or Inf (the first
        `skip_bad_batches` of such steps are skipped instead), Preempted after a signal's checkpoint.
        """
        self.stop.in_loop = True
        self.stage.clock.begin(self.stage.name, self.done, self.schedule.steps)
        if self._evaluation_missing() and self._evaluation_due():
            self.evaluate()
        with _frozen_objects(collect=self.ranks.device.type == "cuda") as freeze:
            self._loop(freeze)
        self.stop.in_loop = False

    def _loop(self, freeze: Callable[[], None]) -> None:
        """Train the remaining steps, with all that each of them makes due."""
        stage = self.stage
        while self.done < self.schedule.steps:
            if self.review:
                self._review()
            result = self.step()
            freeze()
            self.log.add(result, self.schedule.steps)
            stage.stepped(result.seconds - result.read_seconds, result.batch.tokens)
            if result.stopping or result.saving or self._evaluation_due() or self._due(stage.save_every):
                self.save()  # before the evaluation and the samples, so that their failure loses nothing
            if result.stopping:
                what = f"stopped after {stage.name} step {self.done} of {self.schedule.steps}, which is saved"
                raise Preempted(what, "run the same command again to resume")
            if self._evaluation_due():
                self.evaluate()
            if stage.sample and self._due(stage.sample_every):
                self.sample()

    def step(self) -> StepResult:
        """Train one step: read its rows, accumulate their gradient, update the weights."""
        began, step = awake.monotonic(), self.done  # counted from 0
        self.done += 1
        self._heartbeat("reading the rows of")
        batch = self.stage.source.batch(step, self.ranks)
        lr = self.schedule.lr(step)
        read_seconds = awake.monotonic() - began
        overdue = self.ranks.main and time.monotonic() - self.saved_at >= self.stage.save_seconds
        review = self.ranks.main and self.stage.pacer is not None and self.stage.pacer.due()
        loss, norm, stopping, saving, self.review = self._gradients(batch, overdue, review)
        updated = self._update(step, batch, lr, loss, norm)
        seconds = awake.monotonic() - began
        return StepResult(self.done, batch, loss, lr, updated, stopping, saving, self.rows, seconds, read_seconds)

    def save(self) -> None:
        """Save a checkpoint of the newest step."""
        self._heartbeat("saving")
        if self.metrics:
            self.metrics.sync()
        meta = self.stage.meta | {"steps": self.schedule.steps, "turn": self.schedule.rescale_point, "step": self.done}
        meta |= {"optimizer_steps": self.optimizer.steps, "skipped": self.skipped}
        meta |= self.stage.loss_scale.meta() if self.stage.loss_scale else {}
        folder = self.store.save(self.model, self.optimizer, meta, self.ranks, self.stage.keep_last)
        self.saved_at = time.monotonic()
        self.stop.trained = True
        if self.ranks.main:
            self.stage.saved(folder)
        self.stage.clock.event(SAVE)

    def evaluate(self) -> None:
        """Evaluate the newest step, which is saved, and add the result to its line."""
        assert self.stage.evaluate is not None
        self._heartbeat("evaluating")
        found = self.stage.evaluate()
        if self.metrics and found:
            said = " | ".join(f"{_NAMES.get(name, name)} {value:.4f}" for name, value in found.items() if name != "eval_tokens")
            log(f"{self.stage.name} step {self.done}/{self.schedule.steps} | validation: {said}")
            self.metrics.amend(**found)
            if "bpb" in found:
                self.store.evaluated(self.done, found["bpb"])
        self.stage.clock.event(EVALUATION)

    def sample(self) -> None:
        """Print samples after the newest step."""
        assert self.stage.sample is not None
        self._heartbeat("sampling after")
        with Attempt(self.ranks.device) as attempt:
            self.stage.sample(self.done)
        if attempt.failed:
            log("warning: sample skipped, out of memory")
        self.stage.clock.event(SAMPLE)

    def _due(self, every: int) -> bool:
        return due(self.done, every, self.schedule.steps)

    def _evaluation_due(self) -> bool:
        return self.stage.evaluate is not None and self._due(self.stage.eval_every)

    def _evaluation_missing(self) -> bool:
        """Whether the last step was saved but not evaluated, because the previous process was stopped."""
        last = self.metrics.last if self.metrics else {}
        missing = 0 < self.done == last.get("step") and EVALUATED[self.stage.name] not in last
        return bool(self.ranks.all_reduce_sum(torch.tensor(float(missing), device=self.ranks.device)).item())

    def _heartbeat(self, doing: str) -> None:
        self.stage.heartbeat(f"{doing} {self.stage.name} step {self.done}")

    def _review(self) -> None:
        """Get the number of steps from the pacer, and rescale the rest of the schedule to it."""
        assert self.stage.pacer is not None
        steps = self.stage.pacer.steps(self.stage.name, self.done, self.schedule.steps) if self.ranks.main else 0
        steps = int(self.ranks.all_reduce_sum(torch.tensor(float(steps), device=self.ranks.device)).item())
        self.schedule = self.schedule.rescaled(self.done, steps)

    def _gradients(self, batch: StepBatch, overdue: bool, review: bool) -> tuple[float, float, bool, bool, bool]:
        """Accumulate the batch's gradient; returns (loss, gradient norm, whether a signal came, `overdue`, `review`).

        All values are over all ranks. If one rank runs out of memory, all repeat the step with half the micro-batch size.
        """
        while True:
            self._heartbeat("computing")
            sums = torch.zeros(2, device=self.ranks.device)
            scale = self.stage.loss_scale.scale if self.stage.loss_scale else 1
            with Attempt(self.ranks.device) as attempt:
                sums = accumulate_gradients(batch, self.rows, self.model, self.forward, self.ranks, scale)
            self._heartbeat("waiting for the other ranks in")
            flags = sums.new_tensor([float(self.stop.set), float(overdue), float(review), float(attempt.failed)])
            loss, norm, stopping, saving, reviewing, failed = self.ranks.all_reduce_sum(torch.cat((sums, flags))).tolist()
            if not failed:
                return loss, norm, bool(stopping), bool(saving), bool(reviewing)
            self.optimizer.zero_grad()
            self.rows = _halved(self.rows, batch, f"{self.stage.name} step {self.done}")

    def _update(self, step: int, batch: StepBatch, lr: float, loss: float, norm: float) -> bool:
        """Update the weights; False without an update, if no target is counted or the loss or gradient is NaN or Inf."""
        finite, learned = math.isfinite(loss) and math.isfinite(norm), batch.counted > 0
        where, scale = f"{self.stage.name} step {self.done}/{self.schedule.steps}", self.stage.loss_scale
        if not learned:  # otherwise the optimizer would follow its momentum
            log(f"{where}: no targets to learn from in this step, so there is no update")
        elif finite:
            with _memory_explained():
                self.optimizer.step(lr=lr, beta=self.schedule.beta(step), weight_decay=self.schedule.decay(step))
            if scale and scale.grow():
                log(f"{where}: loss scale {scale.scale}, doubled after {GROWTH_STEPS} steps without overflow")
        elif scale and math.isfinite(loss) and scale.halve():  # a loss that is NaN or Inf does not come from its scale
            log(f"{where}: a gradient overflowed float16; step skipped, loss scale halved to {scale.scale}")
        else:
            self._skip(batch, lr, loss, norm)
        self.optimizer.zero_grad()
        return finite and learned

    def _skip(self, batch: StepBatch, lr: float, loss: float, norm: float) -> None:
        """Write diagnosis files of a NaN or Inf. Raises NonFiniteError if no more such steps may be skipped."""
        stage, run = self.stage, self.store.folder.parent
        self.skipped += 1
        folder = run / "nonfinite" / f"{stage.name}_step_{self.done:06d}"
        self._heartbeat("writing diagnosis files of")
        facts = {"stage": stage.name, "step": self.done, "loss": str(loss), "gradient_norm": str(norm), "lr": lr}
        write_down(folder, self.ranks.rank, facts, batch.inputs, batch.targets, self.model, run / "metrics.jsonl")
        what = f"the loss of {stage.name} step {self.done} is {loss}, the gradient norm is {norm}"
        if self.skipped > stage.skip_bad_batches:
            raise NonFiniteError(
                f"{what}; stopped before the update (diagnosis files in {folder})",
                "run the same command again to resume at the newest checkpoint; if the error repeats, lower --matrix_lr and "
                f"--embedding_lr, or skip the step with --skip_bad_batches={self.skipped}",
            )
        log(f"warning: {what}; step skipped ({self.skipped} of at most {stage.skip_bad_batches}, diagnosis files in {folder})")


def _halved(rows: int, batch: StepBatch, where: str) -> int:
    """Half of `rows`, with a warning. Raises OutOfMemoryError if `rows` is 1."""
    length = batch.inputs.shape[1]
    if rows == 1:
        raise OutOfMemoryError(
            f"out of memory in {where} with one sequence of {length} tokens, the smallest micro-batch",
            "use a smaller --depth or --max_seq_len",
        )
    log(
        f"warning: out of memory in {where} with micro-batches of {rows} sequences of {length} tokens; continuing with {rows // 2}, "
        f"which keeps the losses (start with --device_batch_size={rows // 2} to avoid this)"
    )
    return rows // 2


@contextlib.contextmanager
def _frozen_objects(*, collect: bool) -> Iterator[Callable[[], None]]:
    """A function whose first call takes all objects that are alive out of Python's garbage collection, until the end of the block.

    After the first step these are the model, the optimizer and what torch.compile made: a collection that traverses them stops the
    step for 0.2 s, and they live as long as the stage. `collect` garbage first, which may keep a GPU's memory.
    """
    frozen = False

    def freeze() -> None:
        nonlocal frozen  # frozen once: later steps make no objects that live as long
        if not frozen:
            frozen = True
            if collect:
                gc.collect()
            gc.freeze()

    try:
        yield freeze
    finally:
        gc.unfreeze()


@contextlib.contextmanager
def _memory_explained() -> Iterator[None]:
    """Turn out of memory in the optimizer's step, which a smaller batch does not avoid, into an error with a suitable hint."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise OutOfMemoryError(
            "out of memory in the optimizer's step, which does not depend on the micro-batch size",
            "use a smaller --depth, or more processes (--nproc_per_node), which divide its state",
        ) from error
