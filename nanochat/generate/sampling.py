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
GREEDY, WHOLE, CUT = range(3)  # how a token is chosen: the most likely one, or drawn from the whole vocabulary or a part of it


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

    def kind(self, vocabulary: int) -> int:
        """GREEDY, WHOLE or CUT."""
        if self.temperature < GREEDY_BELOW:
            return GREEDY
        return CUT if self.top_p < 1 or 0 < (self.top_k or 0) < vocabulary else WHOLE

    def values(self, generator: torch.Generator, vocabulary: int) -> tuple[float, float, float, float]:
        """For `draw`: the number of most likely tokens, temperature, top_p, and the generator's next uniform number.

        The number is drawn on the CPU, for equal answers on any device.
        """
        number = torch.rand(1, generator=generator, dtype=torch.float64).item()
        return min(self.top_k or vocabulary, vocabulary), self.temperature, self.top_p, number


@torch.inference_mode()
def sample(logits: Tensor, samplings: Sequence[Sampling], generators: Sequence[torch.Generator]) -> list[int]:
    """Sample a token id for each row of logits (B, V) with its own parameters and generator (one number per call, none if greedy)."""
    chosen = logits.argmax(-1)  # (B,)
    vocabulary = logits.size(-1)
    kinds = [one.kind(vocabulary) for one in samplings]
    for kind in (WHOLE, CUT):
        rows = [row for row, one in enumerate(kinds) if one == kind]
        if not rows:
            continue
        values = [samplings[row].values(generators[row], vocabulary) for row in rows]
        keep = [int(kept) for kept, *_ in values]
        every = len(rows) == len(samplings)  # an index would be one more copy to the device, which waits
        uploaded = to_device(torch.tensor(values, dtype=torch.float64), logits.device)  # one copy
        drawn = draw(logits if every else logits[rows], uploaded, max(keep) if kind == CUT else 0, min(keep) < max(keep))
        if every:
            chosen = drawn
        else:
            chosen[rows] = drawn
    return chosen.tolist()


def draw(logits: Tensor, values: Tensor, most: int = 0, differ: bool = True) -> Tensor:
    """Ids (B,) drawn from logits (B, V), by each row's `Sampling.values` (B, 4), float64.

    With `most`, no row keeps more than so many of the most likely tokens, and `differ` if some keep fewer; 0: top_k and top_p apply to no
    row.
    """
    kept, temperature, top_p, drawn = values.unsqueeze(-1).unbind(1)  # (B, 1) each
    order: Tensor | None = None  # (B, k) ids of the columns of `logits`, if they are sorted
    if most:
        logits, order = logits.topk(most)
        if differ:
            ranks = torch.arange(most, device=logits.device)
            logits = logits.masked_fill(ranks >= kept, -torch.inf)
    probabilities = ((logits - logits.amax(-1, keepdim=True)) / temperature.to(logits.dtype)).softmax(-1).double()
    if torch.are_deterministic_algorithms_enabled():
        probabilities, top_p, drawn = probabilities.cpu(), top_p.cpu(), drawn.cpu()  # a GPU's cumsum is not deterministic
    if most:
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
