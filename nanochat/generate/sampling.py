"""Sampling of the next token: temperature, top-k and top-p, with separate values and seeds for each row of a batch.

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
from nanochat.kernels.transfer import to_device

GREEDY_BELOW = 1e-4  # temperature below which float32 cannot distinguish it from 0


@dataclass(frozen=True)
class Sampling:
    """Sampling parameters. Raises UsageError for invalid values.

    temperature: 0 takes the most likely token.
    top_k: sample from the k most likely tokens (None or 0: all).
    top_p: sample from the most likely tokens with this total probability (nucleus sampling, Holtzman et al., 2020).
    seed: the same seed gives the same answer; None is a random seed.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float = 1.0
    seed: int | None = None

    def __post_init__(self) -> None:
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise UsageError(
                f"temperature = {self.temperature} is not valid", "set it to 0 (always the most likely token) or more, such as 0.8"
            )
        if self.top_k is not None and self.top_k < 0:
            raise UsageError(f"top_k = {self.top_k} is not valid", "set it to the number of most likely tokens to sample from, such as 50")
        if not 0 < self.top_p <= 1:
            raise UsageError(f"top_p = {self.top_p} is not valid", "set it to a probability above 0, up to 1")
        if self.seed is not None and not 0 <= self.seed < 2**63:
            raise UsageError(f"seed = {self.seed} is not valid", "set it to an integer from 0")

    def generator(self, row: int = 0) -> torch.Generator:
        """The random number generator of answer `row`, seeded with seed + row, independent of the other rows."""
        seed = secrets.randbits(62) if self.seed is None else self.seed
        return torch.Generator().manual_seed((seed + row) % 2**63)


@torch.inference_mode()
def sample(logits: Tensor, samplings: Sequence[Sampling], generators: Sequence[torch.Generator]) -> list[int]:
    """Sample a token id for each row of logits (B, V) with its own parameters and generator (one number per call, none if greedy)."""
    chosen = logits.argmax(-1)  # (B,)
    vocabulary = logits.size(-1)
    whole: list[int] = []  # rows drawn from the whole vocabulary
    cut: list[int] = []  # rows drawn from a part of it (top-k or top-p)
    for row, one in enumerate(samplings):
        if one.temperature >= GREEDY_BELOW:
            (cut if one.top_p < 1 or 0 < (one.top_k or 0) < vocabulary else whole).append(row)
    for rows in filter(None, (whole, cut)):
        own = [samplings[row] for row in rows]
        every = len(rows) == len(samplings)  # an index would be one more copy to the device, which waits
        drawn = _draw(logits if every else logits[rows], own, [generators[row] for row in rows], ranked=rows is cut)
        if every:
            chosen = drawn
        else:
            chosen[rows] = drawn
    return chosen.tolist()


def _draw(logits: Tensor, samplings: Sequence[Sampling], generators: Sequence[torch.Generator], ranked: bool) -> Tensor:
    """Ids (B,) drawn from logits (B, V); `ranked` if top_k or top_p applies to some row."""
    # One copy to the device. The uniform numbers are drawn on the CPU, for equal answers on any device.
    keep = [min(one.top_k or logits.size(-1), logits.size(-1)) for one in samplings]
    uniform = [torch.rand(1, generator=generator, dtype=torch.float64).item() for generator in generators]
    rows = [(kept, one.temperature, one.top_p, number) for kept, one, number in zip(keep, samplings, uniform, strict=True)]
    settings = to_device(torch.tensor(rows, dtype=torch.float64), logits.device)
    kept, temperature, top_p, drawn = settings.unsqueeze(-1).unbind(1)  # (B, 1) each
    order: Tensor | None = None  # (B, k) ids of the columns of `logits`, if they are sorted
    if ranked:
        logits, order = logits.topk(max(keep))
        if min(keep) < max(keep):
            ranks = torch.arange(max(keep), device=logits.device)
            logits = logits.masked_fill(ranks >= kept, -torch.inf)
    probabilities = ((logits - logits.amax(-1, keepdim=True)) / temperature.to(logits.dtype)).softmax(-1).double()
    if torch.are_deterministic_algorithms_enabled():
        probabilities, top_p, drawn = probabilities.cpu(), top_p.cpu(), drawn.cpu()  # a GPU's cumsum is not deterministic
    if ranked:
        before = probabilities.cumsum(-1) - probabilities  # total of the more likely tokens; the first token is always kept
        probabilities = probabilities.masked_fill((before >= top_p) & (top_p < 1), 0.0)
    # Inverse transform: the first token at which the cumulative sum exceeds a uniform number. In float64, so that no token of
    # probability 0 is chosen.
    running = probabilities.cumsum(-1)
    chosen = torch.searchsorted(running, drawn * running[:, -1:], right=True)
    chosen = chosen.clamp(max=logits.size(-1) - 1).to(logits.device)
    return (chosen if order is None else order.gather(-1, chosen)).flatten()


class LogProbs(NamedTuple):
    """Natural log of a token's probability at temperature 1, and (id, log probability) of the most likely tokens, best first."""

    token: float
    top: list[tuple[int, float]]


@torch.inference_mode()
def log_probs(logits: Tensor, token: int, top: int) -> LogProbs:
    """Log probabilities of `token` and of the `top` most likely tokens, from logits (V,)."""
    values = logits.log_softmax(-1)
    best = values.topk(min(top, len(values)))
    return LogProbs(values[token].item(), list(zip(best.indices.tolist(), best.values.tolist(), strict=True)))


@torch.inference_mode()
def row_log_probs(logits: Tensor, tokens: Sequence[int], top: int) -> list[LogProbs]:
    """`log_probs` of a token and of the `top` most likely ones for each row of logits (N, V)."""
    values = logits.log_softmax(-1)
    best = values.topk(min(top, values.size(-1)))
    own = values[torch.arange(len(tokens)), torch.tensor(tokens, device=values.device)].tolist()
    rows = zip(own, best.indices.tolist(), best.values.tolist(), strict=True)
    return [LogProbs(one, list(zip(ids, found, strict=True))) for one, ids, found in rows]
