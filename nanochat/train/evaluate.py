"""Evaluation: bits per byte of held-out text, and exact answers to held-out questions."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nanochat.console import Progress, log
from nanochat.data.corpus import Item
from nanochat.errors import OutOfMemoryError
from nanochat.generate.engine import Engine, answer_text
from nanochat.model.gpt import GPT
from nanochat.model.loss import IGNORE, token_losses
from nanochat.train.memory import in_parts
from nanochat.train.ranks import Ranks


@torch.inference_mode()
def bits_per_byte(
    model: GPT,
    forward: Callable[[Tensor], Tensor],
    inputs: np.ndarray,
    targets: np.ndarray,
    token_bytes: np.ndarray,
    device_batch_size: int,
    ranks: Ranks,
) -> float | None:
    """Nats over ln 2 times bytes, of the targets that are text; independent of the tokenizer, so vocabularies can be compared.

    inputs and targets (n, T), targets of -1 not counted; token_bytes (V,); each rank takes its share of the rows,
    `device_batch_size` at a time and fewer where the memory is not enough. None, on every rank, where it is not enough for one row.
    """
    size = torch.from_numpy(token_bytes).to(ranks.device)
    totals = torch.zeros(3, dtype=torch.float64, device=ranks.device)
    own = slice(ranks.rank, None, ranks.world_size)
    inputs, targets = inputs[own], targets[own]

    def add(rows: Sequence[int]) -> Sequence[int]:
        ids, wanted = (torch.from_numpy(part[rows].astype(np.int64)).to(ranks.device) for part in (inputs, targets))
        nats = token_losses(model, forward(ids), wanted)  # (B, T)
        counted = size[wanted.clamp(min=0)] * (wanted != IGNORE)
        totals[:2] += torch.stack(((nats.double() * (counted > 0)).sum(), counted.sum().double()))
        return rows

    try:
        in_parts(range(len(inputs)), device_batch_size, add, ranks.device, "in the evaluation")
    except OutOfMemoryError:
        totals[2] = 1
    nats_sum, byte_sum, failed = ranks.all_reduce_sum(totals).tolist()
    if failed:
        log("warning: no evaluation: out of memory with one row")
        return None
    return nats_sum / (math.log(2) * max(byte_sum, 1))


CALCULATOR_TOKENS = 24  # room for a call of the calculator and its output, beside the answer itself


def answer_items(engine: Engine, items: Sequence[Item], what: str, *, batch: int = 128) -> tuple[list[bool], int]:
    """Whether the model's answer to each item, at temperature 0, is exactly the right one; and how many tokens it read and wrote."""
    tokenizer = engine.tokenizer
    max_tokens = CALCULATOR_TOKENS + max(len(tokenizer.encode(item.answer)) for item in items)
    with Progress(what, len(items), "questions") as progress:

        def ask(part: Sequence[Item]) -> list[tuple[bool, int]]:
            prompts = [tokenizer.render_prompt([{"role": "user", "content": item.prompt}], engine.context - 1)[0] for item in part]
            answers = engine.complete(prompts, max_tokens=max_tokens, temperature=0.0, batch_size=len(part))
            progress.advance(len(part))
            return [
                (answer_text(tokenizer, ids).strip() == item.answer, len(prompt) + len(ids))
                for item, prompt, ids in zip(part, prompts, answers, strict=True)
            ]

        asked, _ = in_parts(items, batch, ask, next(engine.model.parameters()).device, what)
    return [right for right, _ in asked], sum(tokens for _, tokens in asked)


def scores(items: Sequence[Item], untrained: Sequence[bool], trained: Sequence[bool]) -> dict[str, Any]:
    """The score, untrained beside trained, overall and by skill, as parts of 1."""

    def part(chosen: Sequence[int]) -> dict[str, Any]:
        count = len(chosen)
        return {
            "untrained": round(sum(untrained[i] for i in chosen) / count, 4),
            "trained": round(sum(trained[i] for i in chosen) / count, 4),
            "items": count,
        }

    skills = sorted({item.skill for item in items})
    by_skill = {skill: part([i for i, item in enumerate(items) if item.skill == skill]) for skill in skills}
    return part(range(len(items))) | {"by_skill": by_skill}
