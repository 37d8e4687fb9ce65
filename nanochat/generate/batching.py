"""Continuous batching (Yu et al., 2022, "Orca"): rows join and leave between tokens, over a fixed number of KV-cache slots.

Shapes: B rows, T positions, V vocabulary.
"""

from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from nanochat.generate.sampling import LogProbs, Sampling, log_probs, sample
from nanochat.generate.tools import calculate
from nanochat.model.attention import KVCache
from nanochat.model.decode import decoder_for
from nanochat.model.transformer import Transformer
from nanochat.tokenizer.tokenizer import Tokenizer

PROMPT_TOKENS = 512  # of prompts, padding included, that one step reads: running answers wait no longer than that
SHORTEST_PREFIX = 16  # a shorter common beginning is not worth a particular slot


class Row:
    """One answer under way: its prompt, its sampling, and what comes next.

    After a call of the calculator (python_start ... python_end) its result is forced into the answer, between
    output_start and output_end; where it has none, nothing is. `room` is the most tokens the answer may have.
    """

    def __init__(self, tokenizer: Tokenizer, prompt: Sequence[int], room: int, sampling: Sampling, index: int = 0, top: int | None = None):
        self.prompt = list(prompt)
        self.sampling = sampling
        self.generator = sampling.generator(index)
        self.index = index
        self.top = top  # how many of the likeliest tokens' log probabilities are wanted beside the token's own; None: not even that
        self.last = -1  # the newest token, which the model has not read yet
        self.ended = False  # by assistant_end or bos
        self._tokenizer = tokenizer
        self._room = room
        self._forced: deque[int] = deque()
        self._expression: list[int] | None = None  # the ids since python_start

    @property
    def done(self) -> bool:
        """Whether nothing more comes: it ended, or there is no more room."""
        return self.ended or self._room <= 0

    def advance(self, sampled: int) -> tuple[int, bool]:
        """The next token, and whether it was forced: a forced one where one is due, else `sampled`."""
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
        self.ended = token in (special("<|assistant_end|>"), special("<|bos|>"))
        return token, forced


class Token(NamedTuple):
    """A new token of a row's answer; `forced` where the calculator and not the model said it."""

    row: Row
    id: int
    forced: bool
    log_probs: LogProbs | None


class Batch:
    """The rows that one model answers at once, and its KV cache. Not thread-safe: one thread owns it.

    Rows fill the slots from 0 without a gap, those that write before those whose prompt is still being read, so that every
    forward pass is over a view of the cache. What a row leaves behind stays in its slot until another row needs the slot: a
    conversation's next turn then finds its earlier turns already read.
    """

    def __init__(self, model: Transformer, tokenizer: Tokenizer, slots: int, length: int | None = None, prompt_tokens: int = PROMPT_TOKENS):
        self.model, self.tokenizer, self.slots = model, tokenizer, slots
        self.device = next(model.parameters()).device
        self.context = model.config.max_seq_len
        self.rows: list[Row] = []
        self._writing = 0  # so many of `rows`, from the first on, have their prompt read
        self._prompt_tokens = prompt_tokens
        self._cache = KVCache(model.config, slots, min(length or self.context, self.context), self.device, model.compute_dtype)
        self._decoder = decoder_for(model)  # a model with a forward pass of its own has none, and is asked through that
        self._held: list[list[int]] = [[] for _ in range(slots)]  # the ids that each slot of the cache holds
        self._used = [0] * slots  # when each slot was last left, to forget the oldest first
        self._clock = 0

    @property
    def free(self) -> int:
        """Slots that no row has."""
        return self.slots - len(self.rows)

    def join(self, row: Row) -> int:
        """Give `row` a slot; its prompt is read by the next steps. Returns how many of its tokens a slot still held."""
        assert self.free, "no slot is free"
        assert row.prompt, "an empty prompt"
        assert not row.done, "no room for an answer"
        place = len(self.rows)
        held, slot = max(
            (
                (shared if (shared := _shared(self._held[slot], row.prompt)) >= SHORTEST_PREFIX else 0, slot)
                for slot in range(place, self.slots)
            ),
            key=lambda found: (found[0], -self._used[found[1]]),
        )
        self._swap(place, slot)
        self._keep(place, held)
        self.rows.append(row)
        return held

    def leave(self, row: Row) -> None:
        """Free the slot of `row`, whether it is done or not."""
        place = self.rows.index(row)
        if place < self._writing:  # the last writing row takes its place, and the last of all that one's
            self._writing -= 1
            self._exchange(place, self._writing)
            place = self._writing
        self._exchange(place, len(self.rows) - 1)
        self.rows.pop()
        self._clock += 1
        self._used[len(self.rows)] = self._clock

    def step(self) -> list[Token]:
        """The next token of every row that writes, then a piece of the prompts that wait, and the first token of those that are read.

        A row that is done has left when this returns.
        """
        tokens: list[Token] = []
        if self._writing:
            writing = self.rows[: self._writing]
            tokens += self._advance(writing, self._write([row.last for row in writing]))
        if self._writing < len(self.rows):
            tokens += self._read()
        for token in tokens:
            if token.row.done:
                self.leave(token.row)
        return tokens

    def _read(self) -> list[Token]:
        """Read a piece of the prompts that wait, in the order of their slots, at most `prompt_tokens` with padding."""
        first = self._writing
        left = [row.prompt[len(self._held[first + i]) :] for i, row in enumerate(self.rows[first:])]
        count = 1
        while count < len(left) and (count + 1) * max(map(len, left[: count + 1])) <= self._prompt_tokens:
            count += 1
        pieces = [prompt[: self._prompt_tokens] for prompt in left[:count]]
        logits = self._feed(first, pieces)
        read = [i for i in range(count) if len(pieces[i]) == len(left[i])]
        tokens = self._advance([self.rows[first + i] for i in read], logits[read])
        for i in read:
            self._exchange(self._writing, first + i)
            self._writing += 1
        return tokens

    def _write(self, ids: list[int]) -> Tensor:
        """Let the rows that write read their newest token; the logits (B, V) after it."""
        if self._decoder is None:
            return self._feed(0, [[id] for id in ids])
        lengths = [len(held) for held in self._held[: len(ids)]]
        for held, id in zip(self._held, ids, strict=False):
            held.append(id)
        return self._decoder(ids, lengths, self._cache.slots(0, len(ids)))

    @torch.inference_mode()
    def _feed(self, first: int, ids: list[list[int]]) -> Tensor:
        """Let the rows from slot `first` on read their `ids`; the logits (B, V) after the last one of each."""
        counts = torch.tensor([len(one) for one in ids])
        padded = torch.zeros(len(ids), int(counts.max()), dtype=torch.int64)
        for i, one in enumerate(ids):
            padded[i, : len(one)] = torch.tensor(one)
            self._held[first + i].extend(one)
        cache = self._cache.slots(first, first + len(ids))
        hidden = self.model(padded.to(self.device), cache=cache, counts=counts.to(self.device))  # (B, T, D)
        return self.model.logits(hidden[torch.arange(len(ids), device=self.device), (counts - 1).to(self.device)])

    def _advance(self, rows: list[Row], logits: Tensor) -> list[Token]:
        """One more token for each of `rows`, from logits (B, V)."""
        if not rows:
            return []
        sampled = sample(logits, [row.sampling for row in rows], [row.generator for row in rows])
        tokens = []
        for i, row in enumerate(rows):
            token, forced = row.advance(sampled[i])
            tokens.append(Token(row, token, forced, None if row.top is None else log_probs(logits[i], token, row.top)))
        return tokens

    def _exchange(self, a: int, b: int) -> None:
        """Exchange the rows in slots `a` and `b`, and what the slots hold."""
        self.rows[a], self.rows[b] = self.rows[b], self.rows[a]
        self._swap(a, b)

    @torch.inference_mode()
    def _swap(self, a: int, b: int) -> None:
        """Exchange what slots `a` and `b` hold."""
        if a == b:
            return
        self._cache.swap(a, b, max(len(self._held[a]), len(self._held[b])))
        self._held[a], self._held[b] = self._held[b], self._held[a]
        self._used[a], self._used[b] = self._used[b], self._used[a]

    @torch.inference_mode()
    def _keep(self, slot: int, count: int) -> None:
        """Forget all but the first `count` ids that `slot` holds."""
        del self._held[slot][count:]
        self._cache.lengths[slot] = count
        if count:
            self._cache.previous[slot] = self.model.embedded(torch.tensor(self._held[slot][-1], device=self.device))
        else:
            self._cache.previous[slot] = 0


def _shared(held: list[int], prompt: list[int]) -> int:
    """How many ids both begin with; never the whole prompt, whose last id must be read for its logits."""
    count = 0
    for one, other in zip(held, prompt[:-1], strict=False):
        if one != other:
            break
        count += 1
    return count
