"""A model whose every weight is random, for the tests of exports: each part of it moves the logits."""

from pathlib import Path
from typing import Any

import torch

from nanochat.model.build import build_model
from nanochat.model.scaling import GPTConfig
from nanochat.runs.checkpoint import Checkpoint
from nanochat.runs.record import TrainedModel
from nanochat.tokenizer.tokenizer import QWEN2_PATTERN, SPLIT_PATTERN, Tokenizer

TEXT = [
    "The cat sat on the mat, didn't it? " * 9,
    "你是誰？我是小助手。今天天氣很好！" * 9,
    "12 + 34 = 46\n\n  x = 1\n" * 9,
    "naïve café 🎈🎈 WE'LL",
]


def random_model(architecture: str, depth: int = 4, run: str = "tiny", **changes: Any) -> TrainedModel:
    """A model with random weights, so that each part of it moves the logits; windows shorter than its context."""
    tokenizer = Tokenizer.train(TEXT, 400, pattern=QWEN2_PATTERN if architecture == "qwen3" else SPLIT_PATTERN)
    shape: dict[str, Any] = {"depth": depth, "dim": 64, "n_head": 4, "n_kv_head": 4, "head_dim": 16, "max_seq_len": 576}
    pattern = "L" if architecture == "qwen3" else "SSSL"
    shape |= {"vocab_size": tokenizer.vocab_size, "window_pattern": pattern, "architecture": architecture}
    gpt = GPTConfig(**shape | changes)
    model = build_model(gpt)
    generator = torch.Generator().manual_seed(depth)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            noise = torch.randn(weight.shape, generator=generator)
            weight.copy_(1 + 0.2 * noise if name.endswith(".gain") else noise * (0.15 if weight.dim() > 1 else 0.3))
    meta = {"stage": "sft", "run": run, "step": 7, "trial": False, "model": gpt.to_dict(), "tokenizer": tokenizer.id}
    return TrainedModel(run, Checkpoint(Path("none"), meta, ()), model, tokenizer)
