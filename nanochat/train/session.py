"""What all stages of a run share, and how a stage finds its place: its checkpoints, its metrics, its model."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from nanochat.config import Config
from nanochat.console import log
from nanochat.data.shards import Dataset
from nanochat.generate.engine import Engine, answer_text
from nanochat.model.gpt import GPT
from nanochat.model.optim import LearningRates, MuonAdamW
from nanochat.model.scaling import GPTConfig, flops_per_token, gpt_config
from nanochat.tokenizer import Tokenizer
from nanochat.train import device
from nanochat.train.checkpoint import Checkpoint, Checkpoints
from nanochat.train.evaluate import bits_per_byte
from nanochat.train.loop import BatchSource, Schedule, Stage, StopSignal, run_stage
from nanochat.train.metrics import SAMPLES, Metrics
from nanochat.train.mirror import Copier
from nanochat.train.ranks import Ranks
from nanochat.train.watchdog import Watchdog

SAMPLE_TOKENS = 32


@dataclass
class Session:
    """One run in this process: the resolved config, its data, its folder, and this process's place among the ranks."""

    config: Config
    dataset: Dataset
    tokenizer: Tokenizer
    folder: Path
    ranks: Ranks
    stop: StopSignal
    planned_rate: float = 0.0  # tokens a second, by the plan; 0 where there is none
    copier: Copier | None = None  # to the mirror, on the main rank
    follow: Callable[[Metrics], object] = lambda metrics: None  # told of each stage's metrics, on the main rank
    gpt: GPTConfig = field(init=False)

    def __post_init__(self) -> None:
        self.gpt = gpt_config(self.config.replace(vocab_size=self.tokenizer.vocab_size))

    def checkpoints(self, stage: str) -> Checkpoints:
        """The checkpoints of "base" or "sft"."""
        copier = self.copier
        return Checkpoints(self.folder / stage, (lambda: copier.copying) if copier else lambda: None)

    def new_model(self) -> GPT:
        """The model as it is before the first step."""
        model = GPT.build(self.gpt, self.ranks.device, self.config.seed)
        model.compute_dtype = device.compute_dtype(self.config)
        return model

    def rows_per_step(self) -> int:
        """Rows of one step over all ranks."""
        return self.config.total_batch_size // self.config.max_seq_len

    def run(
        self,
        name: str,
        source: BatchSource,
        schedule: Schedule,
        validation: tuple[np.ndarray, np.ndarray],
        prompts: list[list[int]],
        parent: Checkpoint | None = None,
    ) -> GPT:
        """Train stage `name` to its end from its newest checkpoint, from `parent`'s weights and optimizer, or from new weights.

        `validation` holds inputs and targets (n, T); `prompts` are continued where samples are due. Returns the trained model.
        """
        config, ranks, store = self.config, self.ranks, self.checkpoints(name)
        model = self.new_model()
        rates = LearningRates(config.matrix_lr, config.embedding_lr, config.value_embedding_lr, config.unembedding_lr, config.scalar_lr)
        optimizer = MuonAdamW(model, rates, config.total_batch_size, ranks)
        newest = store.newest()
        start = newest.step if newest else 0
        for checkpoint in filter(None, [newest or parent]):
            checkpoint.load_model(model)
            checkpoint.load_optimizer(optimizer)
        if newest:
            log(f"{name}: resuming at step {start} of {schedule.steps}, from {newest.folder}")
        forward = device.forward_of(model, config)

        def evaluate() -> float | None:
            inputs, targets = validation
            return bits_per_byte(model, forward, inputs, targets, self.tokenizer.token_bytes(), config.device_batch_size, ranks)

        stage = Stage(
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
            peak_flops=device.peak_flops(ranks.device),
            planned_rate=self.planned_rate,
            evaluate=evaluate,
            eval_tokens=validation[0].size,
            sample=self.sampler(name, model, prompts),
            meta=self.meta(name),
        )
        if self.copier:
            stage.saved = self.copier.offer
        metrics = Metrics(self.folder / "metrics.jsonl", name, start) if ranks.main else None
        if metrics:
            self.follow(metrics)
        try:
            with Watchdog(config.hang_timeout, ranks.rank) as watchdog:
                stage.beat = watchdog.beat
                run_stage(stage, model, forward, optimizer, ranks, store, metrics, self.stop, start)
        finally:
            if metrics:
                metrics.close()
        return model

    def meta(self, stage: str) -> dict[str, Any]:
        """What a checkpoint says of itself."""
        return {
            "stage": stage,
            "run": self.config.run,
            "trial": self.config.trial,
            "model": self.gpt.to_dict(),
            "tokenizer": self.tokenizer.id,
            "steps": self.config.num_iterations if stage == "base" else self.config.sft_iterations,
        }

    def sampler(self, name: str, model: GPT, prompts: list[list[int]]) -> Callable[[int], None]:
        """A hook that shows how the model continues `prompts`, likeliest token by token, and keeps what it said."""

        def sample(step: int) -> None:
            if self.ranks.main:
                answers = Engine(model, self.tokenizer).complete(prompts, max_tokens=SAMPLE_TOKENS, temperature=0.0)
                for prompt, ids in zip(prompts, answers, strict=True):
                    asked = self.tokenizer.decode([token for token in prompt if self.tokenizer.token_bytes()[token]])
                    said = answer_text(self.tokenizer, ids)
                    log(f"  sample at step {step}: {asked!r} -> {said!r}")
                    entry = {"stage": name, "step": step, "prompt": asked, "text": said}
                    with (self.folder / SAMPLES).open("a", encoding="utf-8") as file:
                        file.write(json.dumps(entry, ensure_ascii=False) + "\n")

        return sample
