"""Choosing the next token: temperature, top-k and top-p, each row of a batch with values and a seed of its own.

Shapes: B rows, V vocabulary.
"""

import math
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from nanochat.errors import UsageError

GREEDY_BELOW = 1e-4  # temperatures that float32 can no longer tell from 0


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen. Raises UsageError for values that cannot be.

    temperature 0 takes the likeliest token; top_k keeps the k likeliest (None or 0: all); top_p keeps the likeliest that
    make up this much probability (nucleus sampling, Holtzman et al., 2020); the same seed gives the same answer (None:
    another one each time).
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float = 1.0
    seed: int | None = None

    def __post_init__(self) -> None:
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise UsageError(f"temperature = {self.temperature} is not possible", "0 (always the likeliest token) or more, such as 0.8")
        if self.top_k is not None and self.top_k < 0:
            raise UsageError(f"top_k = {self.top_k} is not possible", "how many of the likeliest tokens to choose from, such as 50")
        if not 0 < self.top_p <= 1:
            raise UsageError(f"top_p = {self.top_p} is not possible", "a probability above 0, up to 1")
        if self.seed is not None and not 0 <= self.seed < 2**63:
            raise UsageError(f"seed = {self.seed} is not possible", "a whole number from 0")

    def generator(self, row: int = 0) -> torch.Generator:
        """The source of random numbers of answer `row`: seeded with seed + row, whoever its neighbours are."""
        seed = secrets.randbits(62) if self.seed is None else self.seed
        return torch.Generator().manual_seed((seed + row) % 2**63)


@torch.inference_mode()
def sample(logits: Tensor, samplings: Sequence[Sampling], generators: Sequence[torch.Generator]) -> list[int]:
    """One token id for each row of logits (B, V), by its own sampling and generator (one number a call, none at temperature 0)."""
    chosen = logits.argmax(-1)  # (B,)
    vocabulary = logits.size(-1)
    whole: list[int] = []  # rows drawn from the whole vocabulary
    cut: list[int] = []  # rows drawn from its likeliest part
    for row, one in enumerate(samplings):
        if one.temperature >= GREEDY_BELOW:
            (cut if one.top_p < 1 or 0 < (one.top_k or 0) < vocabulary else whole).append(row)
    for rows in filter(None, (whole, cut)):
        own = [samplings[row] for row in rows]
        chosen[rows] = _draw(logits[rows], own, [generators[row] for row in rows], ranked=rows is cut)
    return chosen.tolist()


def _draw(logits: Tensor, samplings: Sequence[Sampling], generators: Sequence[torch.Generator], ranked: bool) -> Tensor:
    """Ids (B,) drawn from logits (B, V); `ranked` where top_k or top_p cuts some row's vocabulary."""
    order: Tensor | None = None  # (B, k) ids of the columns of `logits`, where they are sorted
    if ranked:
        keep = [min(one.top_k or logits.size(-1), logits.size(-1)) for one in samplings]
        logits, order = logits.topk(max(keep))
        if min(keep) < max(keep):
            ranks = torch.arange(max(keep), device=logits.device)
            logits = logits.masked_fill(ranks >= torch.tensor(keep, device=logits.device)[:, None], -torch.inf)
    temperature = torch.tensor([[one.temperature] for one in samplings], dtype=logits.dtype, device=logits.device)
    probabilities = ((logits - logits.amax(-1, keepdim=True)) / temperature).softmax(-1).double()
    if torch.are_deterministic_algorithms_enabled():
        probabilities = probabilities.cpu()  # a GPU's running sums are not
    if ranked:
        top_p = torch.tensor([[one.top_p] for one in samplings], dtype=torch.float64, device=probabilities.device)
        before = probabilities.cumsum(-1) - probabilities  # what the likelier ones make up; the first is always kept
        probabilities = probabilities.masked_fill((before >= top_p) & (top_p < 1), 0.0)
    # Inverse transform: the first token at which the running sum passes a uniform number. In float64, so that none of
    # probability 0 is ever hit. The numbers come from the CPU: equal answers whatever the device.
    uniform = torch.stack([torch.rand(1, generator=generator, dtype=torch.float64) for generator in generators])
    running = probabilities.cumsum(-1)
    chosen = torch.searchsorted(running, uniform.to(running.device) * running[:, -1:], right=True)
    chosen = chosen.clamp(max=logits.size(-1) - 1).to(logits.device)
    return (chosen if order is None else order.gather(-1, chosen)).flatten()


class LogProbs(NamedTuple):
    """The natural log of a token's probability at temperature 1, and the likeliest tokens' (id, log probability), best first."""

    token: float
    top: list[tuple[int, float]]


@torch.inference_mode()
def log_probs(logits: Tensor, token: int, top: int) -> LogProbs:
    """What the model thought of `token` and of its `top` likeliest ones: logits (V,)."""
    values = logits.log_softmax(-1)
    best = values.topk(min(top, len(values)))
    return LogProbs(values[token].item(), list(zip(best.indices.tolist(), best.values.tolist(), strict=True)))
