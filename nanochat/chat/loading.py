"""A checkpoint becomes a model that can answer: weights, tokenizer, threads, and the slots of its KV cache."""

import time
from dataclasses import dataclass, field
from pathlib import Path

import torch

from nanochat.generate.batching import Batch
from nanochat.generate.constraint import ConstraintCompiler
from nanochat.hardware.cpu import physical_cores
from nanochat.hardware.memory import available_bytes
from nanochat.model.scaling import GPTConfig, count_parameters
from nanochat.model.transformer import Transformer
from nanochat.runs import record as runs
from nanochat.runs.checkpoint import verify
from nanochat.runs.names import CheckpointName
from nanochat.tokenizer.tokenizer import Tokenizer

MAX_SLOTS = 64
CACHE_BYTES = 1 << 30  # for the KV cache of all slots, on a CPU, at most
CACHE_PART = 0.25  # of the free memory
ONE_THREAD_PARAMETERS = 2_000_000  # of the matrices: docs/experiments/log.md


@dataclass(eq=False)
class LoadedModel:
    """A model that answers, and what a client may know of it."""

    name: str
    stage: str
    step: int
    model: Transformer
    tokenizer: Tokenizer
    chats: bool  # it was taught to converse; else it continues text
    trial: bool
    parameters: int
    slots: int
    created: int = field(default_factory=lambda: int(time.time()))
    batch: Batch = field(init=False)

    def __post_init__(self) -> None:
        self.context = self.model.config.max_seq_len
        self.device = next(self.model.parameters()).device.type
        self.constraints = ConstraintCompiler(self.tokenizer)
        # The matrices of a small model are multiplied in less time than a second thread takes to wake up.
        small = sum(parameter.numel() for block in self.model.blocks for parameter in block.parameters()) < ONE_THREAD_PARAMETERS
        self.threads = 1 if small else physical_cores()
        self.reset()

    @property
    def checkpoint(self) -> CheckpointName:
        """The name of the checkpoint that it was loaded from."""
        return CheckpointName(self.name, self.stage, self.step)

    def reset(self) -> None:
        """Begin with an empty KV cache: after a step that failed, the old one may hold half of it."""
        self.batch = Batch(self.model, self.tokenizer, self.slots)


def load_model(folder: Path, device: str, slots: int = 0) -> LoadedModel:
    """The model of a checkpoint's directory, ready to answer. Raises DataError if the checkpoint is damaged."""
    opened = runs.open_checkpoint(folder.parts[-3], verify(folder), device)
    meta, config = opened.checkpoint.meta, opened.model.config
    return LoadedModel(
        name=opened.run,
        stage=meta["stage"],
        step=opened.checkpoint.step,
        model=opened.model,
        tokenizer=opened.tokenizer,
        chats=opened.chats,
        trial=bool(meta.get("trial")),
        parameters=count_parameters(config)["total"],
        slots=slots or _slots(config, device),
    )


def _slots(config: GPTConfig, device: str) -> int:
    """Number of concurrent answers for the memory planned for the KV cache."""
    if device == "cuda":
        budget, bytes_each = CACHE_PART * torch.cuda.mem_get_info()[0], 2
    else:
        budget, bytes_each = min(CACHE_PART * available_bytes(), CACHE_BYTES), 4
    one = 2 * config.depth * config.n_kv_head * config.head_dim * (config.max_seq_len + 1) * bytes_each
    return max(1, min(MAX_SLOTS, int(budget // one)))
