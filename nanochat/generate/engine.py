"""Answers from a model: batched decoding with a KV cache, sampling, and the calculator by forced tokens.

Shapes: B rows, T positions, D width, V vocabulary.
"""

import math
import secrets
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from nanochat.errors import UsageError
from nanochat.generate.tools import calculate
from nanochat.model.attention import KVCache
from nanochat.model.gpt import GPT
from nanochat.tokenizer import Tokenizer

GREEDY_BELOW = 1e-4  # temperatures that float32 can no longer tell from 0


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen. Raises UsageError for values that cannot be.

    temperature 0 takes the likeliest token; top_k keeps the k likeliest (None or 0: all); top_p keeps the likeliest that
    make up this much probability; the same seed gives the same answer (None: another one each time).
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

    def generators(self, rows: Sequence[int]) -> list[torch.Generator]:
        """A source of random numbers for each of `rows`: row r is seeded with seed + r, whoever its neighbours are."""
        seed = secrets.randbits(62) if self.seed is None else self.seed
        return [torch.Generator().manual_seed((seed + row) % 2**63) for row in rows]


@torch.inference_mode()
def sample(logits: Tensor, sampling: Sampling, generators: Sequence[torch.Generator]) -> list[int]:
    """One token id for each row of logits (B, V), each drawn with its own generator (one number a call)."""
    if sampling.temperature < GREEDY_BELOW:
        return logits.argmax(-1).tolist()
    order: Tensor | None = None  # (B, k) ids of the columns of `logits`, where they are sorted and cut
    if sampling.top_k and sampling.top_k < logits.size(-1):
        logits, order = logits.topk(sampling.top_k)
    elif sampling.top_p < 1:
        logits, order = logits.sort(dim=-1, descending=True)
    probabilities = ((logits - logits.amax(-1, keepdim=True)) / sampling.temperature).softmax(-1).double()
    if sampling.top_p < 1:
        before = probabilities.cumsum(-1) - probabilities  # what the likelier ones make up; the first is always kept
        probabilities = probabilities.masked_fill(before >= sampling.top_p, 0.0)
    # Inverse transform: the first token at which the running sum passes a uniform number. In float64, so that none of
    # probability 0 is ever hit. The numbers come from the CPU: equal answers whatever the device.
    uniform = torch.stack([torch.rand(1, generator=generator, dtype=torch.float64) for generator in generators])
    running = probabilities.cumsum(-1)
    chosen = torch.searchsorted(running, uniform.to(running.device) * running[:, -1:], right=True).clamp(max=logits.size(-1) - 1)
    return (chosen if order is None else order.gather(-1, chosen)).flatten().tolist()


class Emitted(NamedTuple):
    """A new token of the answer to prompt `row`; `forced` where the calculator and not the model said it."""

    row: int
    token: int
    forced: bool


class Row:
    """One answer under way: turns what the model would say next into what comes next.

    After a call of the calculator (python_start ... python_end) its result is forced into the answer, between
    output_start and output_end; where it has none, nothing is.
    """

    def __init__(self, tokenizer: Tokenizer, index: int, room: int):
        self.index = index
        self.last = -1  # the newest token, which the model has not read yet
        self.done = room <= 0
        self._tokenizer = tokenizer
        self._room = room
        self._forced: deque[int] = deque()
        self._expression: list[int] | None = None  # the ids since python_start

    def advance(self, sampled: int) -> Emitted:
        """The next token: a forced one where one is due, else `sampled`. Sets `done` after assistant_end, bos, or the last token."""
        special = self._tokenizer.special
        forced = bool(self._forced)
        token = self._forced.popleft() if forced else sampled
        if token == special("<|python_start|>"):
            self._expression = []
        elif token == special("<|python_end|>") and self._expression is not None:
            result = calculate(self._tokenizer.decode(self._expression))
            if result is not None:
                self._forced.extend((special("<|output_start|>"), *self._tokenizer.encode(result), special("<|output_end|>")))
            self._expression = None
        elif self._expression is not None:
            self._expression.append(token)
        self._room -= 1
        self.last = token
        self.done = self._room == 0 or token in (special("<|assistant_end|>"), special("<|bos|>"))
        return Emitted(self.index, token, forced)


class Engine:
    """Generates with a model and its tokenizer, on the device that the model lies on."""

    def __init__(self, model: GPT, tokenizer: Tokenizer):
        self.model, self.tokenizer = model, tokenizer
        self.context = model.config.max_seq_len
        self.device = next(model.parameters()).device

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        max_tokens: int,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float = 1.0,
        seed: int | None = None,
    ) -> Iterator[list[Emitted]]:
        """Answer all `prompts` (lists of ids) in lock-step; yields the new tokens of each step, one for each unfinished row.

        An answer ends with assistant_end or bos (which is yielded), after `max_tokens`, or where the context is full.
        It does not depend on the other prompts. Raises UsageError, at once, for sampling values that cannot be, and for a
        prompt that is empty or longer than the context.
        """
        sampling = Sampling(temperature, top_k, top_p, seed)
        self._check(prompts, max_tokens)
        return self._decode(prompts, range(len(prompts)), max_tokens, sampling)

    def complete(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        max_tokens: int,
        temperature: float = 0.0,
        top_k: int | None = None,
        top_p: float = 1.0,
        seed: int | None = None,
        batch_size: int = 64,
    ) -> list[list[int]]:
        """The new ids for each of `prompts`, forced ones and the ending special included; `batch_size` of them at a time.

        The answers are those of `generate`; prompts of like length share a batch, so that little is padding.
        """
        sampling = Sampling(temperature, top_k, top_p, seed)
        self._check(prompts, max_tokens)
        answers: list[list[int]] = [[] for _ in prompts]
        order = sorted(range(len(prompts)), key=lambda row: len(prompts[row]))
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            for step in self._decode([prompts[row] for row in rows], rows, max_tokens, sampling):
                for row, token, _ in step:
                    answers[row].append(token)
        return answers

    def _check(self, prompts: Sequence[Sequence[int]], max_tokens: int) -> None:
        if max_tokens < 1:
            raise UsageError(f"max_tokens = {max_tokens} is not possible", "the most tokens of an answer: a positive number")
        for prompt in prompts:
            if not 1 <= len(prompt) <= self.context:
                raise UsageError(f"a prompt of {len(prompt):,} tokens is not possible", f"this model reads 1 to {self.context:,} tokens")

    def _decode(
        self, prompts: Sequence[Sequence[int]], indices: Sequence[int], max_tokens: int, sampling: Sampling
    ) -> Iterator[list[Emitted]]:
        rows = [
            Row(self.tokenizer, index, min(max_tokens, self.context - len(prompt))) for index, prompt in zip(indices, prompts, strict=True)
        ]
        if all(row.done for row in rows):
            return
        generators = sampling.generators(indices)
        longest = max(len(prompt) for prompt in prompts)
        length = min(longest + max_tokens, self.context)
        cache = KVCache(self.model.config, len(rows), length, self.device, self.model.compute_dtype)
        ids = torch.zeros(len(rows), longest, dtype=torch.int64)
        for row, prompt in enumerate(prompts):
            ids[row, : len(prompt)] = torch.tensor(prompt)
        counts = torch.tensor([len(prompt) for prompt in prompts])
        while True:
            sampled = sample(self._logits(ids, cache, counts), sampling, generators)
            yield [row.advance(token) for row, token in zip(rows, sampled, strict=True) if not row.done]
            alive = [slot for slot, row in enumerate(rows) if not row.done]
            if not alive:
                return
            # Finished rows ride along, adding nothing to the cache, until it pays to copy the cache without them.
            if len(alive) <= 0.75 * len(rows):
                cache.keep(torch.tensor(alive, device=self.device))
                rows, generators = [rows[slot] for slot in alive], [generators[slot] for slot in alive]
            ids = torch.tensor([[max(row.last, 0)] for row in rows])
            counts = torch.tensor([int(not row.done) for row in rows])

    @torch.inference_mode()
    def _logits(self, ids: Tensor, cache: KVCache, counts: Tensor) -> Tensor:
        """Feed right-padded ids (B, T), counts (B,) of them real; the logits (B, V) after each row's last token."""
        hidden = self.model(ids.to(self.device), cache=cache, counts=counts.to(self.device))  # (B, T, D)
        last = (counts - 1).clamp(min=0).to(self.device)
        return self.model.logits(hidden[torch.arange(len(ids), device=self.device), last])


# A special token -> the kind of part that begins after it.
_OPENS = {
    "<|python_start|>": "python",
    "<|python_end|>": "text",
    "<|output_start|>": "python_output",
    "<|output_end|>": "text",
}


class Answer:
    """Puts an answer's tokens together as they come: what a user sees, and the parts for the conversation's history.

    A user sees the assistant's text alone: the calls of the calculator and its results are left out.
    """

    def __init__(self, tokenizer: Tokenizer):
        self.parts: list[dict[str, Any]] = []  # {"type": text|python|python_output, "text": str}, as in a Message
        self._decoder = tokenizer.stream_decoder()
        self._kinds = {tokenizer.special(name): kind for name, kind in _OPENS.items()}
        self._kind = "text"

    @property
    def text(self) -> str:
        """What a user has seen so far."""
        return "".join(part["text"] for part in self.parts if part["type"] == "text")

    def push(self, token: int) -> str:
        """The visible text that this token adds; never half a code point."""
        visible = self._add(self._decoder.push(token))
        self._kind = self._kinds.get(token, self._kind)
        return visible

    def flush(self) -> str:
        """The visible rest, at the end."""
        return self._add(self._decoder.flush())

    def _add(self, text: str) -> str:
        if not text:
            return ""
        if not self.parts or self.parts[-1]["type"] != self._kind:
            self.parts.append({"type": self._kind, "text": ""})
        self.parts[-1]["text"] += text
        return text if self._kind == "text" else ""


def answer_text(tokenizer: Tokenizer, ids: Sequence[int]) -> str:
    """What a user sees of an answer's ids: the assistant's text, without specials and the calculator's traffic."""
    answer = Answer(tokenizer)
    for token in ids:
        answer.push(token)
    answer.flush()
    return answer.text
