"""The session of a run: everything that its stages share, and the start of a stage from its newest checkpoint."""

import contextlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from nanochat.config import Config
from nanochat.console import NORMAL, VERBOSE, log
from nanochat.data.shards import Dataset
from nanochat.distributed.ranks import Ranks
from nanochat.distributed.watchdog import Watchdog
from nanochat.evaluation.bits_per_byte import bits_per_byte
from nanochat.generate.engine import Engine, answer_text
from nanochat.model.optim import LearningRates, MuonAdamW
from nanochat.model.scaling import GPTConfig, flops_per_token, gpt_config
from nanochat.model.transformer import Transformer
from nanochat.runs.checkpoint import Checkpoint, Checkpoints
from nanochat.runs.metrics import SAMPLES, Metrics
from nanochat.runs.mirror import Uploader
from nanochat.tokenizer.tokenizer import Tokenizer
from nanochat.train import device
from nanochat.train.batch import BatchSource
from nanochat.train.loss_scale import LossScale
from nanochat.train.schedule import Pacer, Schedule
from nanochat.train.signals import StopSignal
from nanochat.train.stage import Stage
from nanochat.train.timeleft import RunClock
from nanochat.train.trainer import Trainer

SAMPLE_TOKENS = 32
Forward = Callable[[Tensor], Tensor]


@dataclass
class Session:
    """One run in this process: resolved config, data, directory and rank."""

    config: Config
    dataset: Dataset | None  # None of a run that does not pretrain
    tokenizer: Tokenizer
    folder: Path
    ranks: Ranks
    stop: StopSignal
    planned_rate: float = 0.0  # tokens per second, by the plan; 0 if there is none
    uploader: Uploader | None = None  # to the mirror, on the main rank
    follow: Callable[[Metrics], object] = lambda metrics: None  # called with each stage's metrics, on the main rank
    first_row: int = 0  # of the run's data, with which the first stage begins
    pacer: Pacer | None = None  # chooses the number of steps of pretraining and fine-tuning, if it may change
    clock: RunClock = field(default_factory=RunClock)
    stepped: Callable[[float, int], object] = lambda seconds, tokens: None  # called after each step of any stage
    gpt: GPTConfig = field(init=False)

    def __post_init__(self) -> None:
        self.gpt = gpt_config(self.config.replace(vocab_size=self.tokenizer.vocab_size))

    def checkpoints(self, stage: str) -> Checkpoints:
        """The checkpoints of "base", "sft" or "rl"."""
        uploader = self.uploader
        return Checkpoints(self.folder / stage, (lambda: uploader.uploading) if uploader else lambda: None)

    def new_model(self) -> Transformer:
        """A model with initial weights."""
        return device.new_model(self.gpt, self.ranks.device, self.config)

    def begin_row(self, stage: str) -> int:
        """The row of its data at which a stage begins."""
        return self.first_row if stage == self.config.first_stage else 0

    def rows_per_step(self) -> int:
        """Rows of one step over all ranks."""
        return self.config.total_batch_size // self.config.max_seq_len

    def run(
        self,
        name: str,
        source: Callable[[Transformer], BatchSource],
        schedule: Schedule,
        evaluate: Callable[[Transformer, Forward], dict[str, float] | None],
        prompts: list[list[int]],
        parent: Checkpoint | None = None,
        fresh: bool = False,
        pacer: Pacer | None = None,
    ) -> Transformer:
        """Train stage `name` to its end from its newest checkpoint, from `parent`'s weights and optimizer, or from new weights.

        `source` is called with the model, `evaluate` with the model and its forward pass; `prompts` are those of samples. A `fresh`
        stage begins with a new optimizer and has steps of varying lengths, so it is neither compiled nor compared with the plan. If
        `pacer` changes the number of steps, the config is updated. Returns the trained model.
        """
        model, store = self.new_model(), self.checkpoints(name)
        optimizer = self._optimizer(model)
        newest = store.newest()
        self._load(model, optimizer, newest, parent, fresh)
        start = newest.step if newest else 0
        if newest:
            schedule = replace(schedule, rescale_point=tuple(newest.meta.get("turn", schedule.rescale_point)))
            log(f"{name}: resuming at step {start} of {schedule.steps}, from {newest.folder}")
        forward = model if fresh else device.forward_of(model, self.config)
        stage = self._stage(name, source(model), schedule, newest, fresh)
        if self.config.dtype == "float16":
            known = newest or (None if fresh else parent)
            stage.loss_scale = LossScale.begin(self.config.total_batch_size, known.meta if known else {})
        stage.evaluate, stage.sample, stage.pacer = lambda: evaluate(model, forward), self.sampler(name, model, prompts), pacer
        with self._metrics(name, start) as metrics, Watchdog(self.config.hang_timeout, self.ranks.rank) as watchdog:
            stage.heartbeat = watchdog.heartbeat
            trainer = Trainer(stage, model, forward, optimizer, self.ranks, store, metrics, self.stop, start)
            trainer.run()
        if pacer:
            self.config = self.config.replace(**pacer.after(name, trainer.schedule.steps))
        return model

    def _optimizer(self, model: Transformer) -> MuonAdamW:
        """A new optimizer of `model`'s weights."""
        config = self.config
        rates = LearningRates(config.matrix_lr, config.embedding_lr, config.value_embedding_lr, config.unembedding_lr, config.scalar_lr)
        return MuonAdamW(model, rates, config.total_batch_size, self.ranks)

    def _load(self, model: Transformer, optimizer: MuonAdamW, newest: Checkpoint | None, parent: Checkpoint | None, fresh: bool) -> None:
        """Load the stage's newest checkpoint, else its parent's (`fresh`: only the weights), into model and optimizer.

        An imported parent has only weights.
        """
        if checkpoint := newest or parent:
            checkpoint.load_model(model)
            if newest or (not fresh and checkpoint.has_optimizer):
                checkpoint.load_optimizer(optimizer)

    def _stage(self, name: str, source: BatchSource, schedule: Schedule, newest: Checkpoint | None, fresh: bool) -> Stage:
        """The stage's settings from the config, without hooks for evaluations and samples."""
        config = self.config
        return Stage(
            name=name,
            source=source,
            schedule=schedule,
            device_batch_size=config.device_batch_size,
            save_every=config.save_every,
            save_seconds=60 * config.save_minutes,
            eval_every=config.eval_every,
            sample_every=config.sample_every,
            keep_last=config.keep_last,
            skip_bad_batches=config.skip_bad_batches,
            skipped=int(newest.meta.get("skipped", 0)) if newest else 0,
            flops_per_token=flops_per_token(self.gpt),
            peak_flops=0.0 if fresh else device.peak_flops(self.ranks.device),
            planned_rate=0.0 if fresh else self.planned_rate,
            clock=self.clock,
            meta=self.meta(name),
            stepped=self.stepped,
            saved=self.uploader.enqueue if self.uploader else lambda folder: None,
        )

    @contextlib.contextmanager
    def _metrics(self, name: str, start: int) -> Iterator[Metrics | None]:
        """The run's metrics from step `start` of a stage on, passed to `follow`; None except on the main rank."""
        if not self.ranks.main:
            yield None
            return
        metrics = Metrics(self.folder / "metrics.jsonl", name, start)
        self.follow(metrics)
        try:
            yield metrics
        finally:
            metrics.close()

    def meta(self, stage: str) -> dict[str, Any]:
        """A checkpoint's metadata."""
        return {
            "stage": stage,
            "run": self.config.run,
            "trial": self.config.trial,
            "model": self.gpt.to_dict(),
            "tokenizer": self.tokenizer.id,
            "steps": self.config.steps[stage],
        }

    def measure(self, inputs: np.ndarray, targets: np.ndarray) -> Callable[[Transformer, Forward], dict[str, float] | None]:
        """An evaluation in bits per byte of held-out inputs and targets (n, T)."""

        def evaluate(model: Transformer, forward: Forward) -> dict[str, float] | None:
            bpb = bits_per_byte(model, forward, inputs, targets, self.tokenizer.token_bytes(), self.config.device_batch_size, self.ranks)
            return None if bpb is None else {"bpb": bpb, "eval_tokens": inputs.size}

        return evaluate

    def sampler(self, name: str, model: Transformer, prompts: list[list[int]]) -> Callable[[int], None]:
        """A hook that prints the model's continuations of `prompts` at temperature 0 and writes them into samples.jsonl."""

        def sample(step: int) -> None:
            if self.ranks.main:
                answers = Engine(model, self.tokenizer).complete(prompts, max_tokens=SAMPLE_TOKENS, temperature=0.0)
                for number, (prompt, ids) in enumerate(zip(prompts, answers, strict=True)):
                    asked = self.tokenizer.decode([token for token in prompt if self.tokenizer.token_bytes()[token]])
                    said = answer_text(self.tokenizer, ids)
                    log(f"  sample at step {step}: {asked!r} -> {said!r}", level=VERBOSE if number else NORMAL)
                    entry = {"stage": name, "step": step, "prompt": asked, "text": said}
                    with (self.folder / SAMPLES).open("a", encoding="utf-8") as file:
                        file.write(json.dumps(entry, ensure_ascii=False) + "\n")

        return sample
