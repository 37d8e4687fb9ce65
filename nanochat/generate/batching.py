"""Continuous batching (Yu et al., 2022, "Orca"): sequences join and leave between steps, with a fixed number of KV-cache slots.

Shapes: B sequences, T positions, V vocabulary.
"""

from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from nanochat.generate.constraint import Constraint, constrained
from nanochat.generate.graphs import Capture, GraphedStep, cuda_graphs
from nanochat.generate.sampling import LogProbs, Sampling, log_probs, sample
from nanochat.generate.tools import calculate
from nanochat.model.attention import KVCache
from nanochat.model.decode import decoder_for
from nanochat.model.transformer import Transformer
from nanochat.tokenizer.tokenizer import Tokenizer

PROMPT_TOKENS = 512  # prompt tokens of one step, padding included; bounds the delay of running answers
CALCULATOR = ("<|python_start|>", "<|python_end|>", "<|output_start|>", "<|output_end|>")  # an imported model's tokenizer has none
SHORTEST_PREFIX = 16  # a shorter common prefix does not decide the slot


class SequenceState:
    """One answer being generated: prompt, sampling, and its next tokens.

    After a calculator call (python_start ... python_end) the result is forced as the next tokens, between output_start and
    output_end. If the expression has no value, nothing is forced. Forced tokens count towards `max_new_tokens`. With a `constraint` the
    answer ends where it is complete, and the calculator is not called.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        prompt: Sequence[int],
        max_new_tokens: int,
        sampling: Sampling,
        index: int = 0,
        top: int | None = None,
        constraint: Constraint | None = None,
    ):
        self.prompt = list(prompt)
        self.sampling = sampling
        self.generator = sampling.generator(index)
        self.index = index
        self.constraint = constraint
        self.top = top  # number of most likely tokens to return log probabilities of, beside the token's own; None: of no token
        self.last = -1  # the newest token, not yet fed to the model
        self.ended = False  # by a token that ends an answer, or because the constraint's form is complete
        self._tokenizer = tokenizer
        self._python_start, self._python_end, *self._output = (tokenizer.specials.get(name, -1) for name in CALCULATOR)
        self._left = max_new_tokens  # remaining tokens
        self._forced: deque[int] = deque()
        self._expression: list[int] | None = None  # the ids since python_start

    @property
    def done(self) -> bool:
        """Whether the answer has ended or has `max_new_tokens` tokens."""
        return self.ended or self._left <= 0

    def advance(self, sampled: int) -> tuple[int, bool]:
        """(next token, whether it was forced): the next forced token if there is one, else `sampled`."""
        forced = bool(self._forced)
        token = self._forced.popleft() if forced else sampled
        if token == self._python_start:
            self._expression = []
        elif token == self._python_end and self._expression is not None:
            result = calculate(self._tokenizer.decode(self._expression))
            if result is not None:
                self._forced.extend((self._output[0], *self._tokenizer.encode(result), self._output[1]))
            self._expression = None
        elif self._expression is not None:
            self._expression.append(token)
        self._left -= 1
        self.last = token
        self.ended = token in self._tokenizer.ends
        if self.constraint and not self.ended:
            self.ended = self.constraint.accept(token)
        return token, forced


class Token(NamedTuple):
    """A new token of a sequence; `forced` if it is the calculator's and not sampled."""

    sequence: SequenceState
    id: int
    forced: bool
    log_probs: LogProbs | None


class Batch:
    """The sequences of one model's batch, and its KV cache. Not thread-safe: one thread owns it.

    Sequences fill the slots from 0 without a gap, decoding ones before those whose prompt is still being read, so that every
    forward pass uses a view of the cache. A finished sequence's keys and values stay until another sequence needs the slot, so that a
    conversation's next turn finds its earlier turns in the cache.
    """

    def __init__(
        self,
        model: Transformer,
        tokenizer: Tokenizer,
        slots: int,
        length: int | None = None,
        prompt_tokens: int = PROMPT_TOKENS,
        capture: Capture | None = None,  # for a GPU's decoding steps; None: CUDA graphs
    ):
        self.model, self.tokenizer, self.slots = model, tokenizer, slots
        self.device = next(model.parameters()).device
        self.context = model.config.max_seq_len
        self.sequences: list[SequenceState] = []
        self._decoding = 0  # the first so many of `sequences` have read their prompt
        self._prompt_tokens = prompt_tokens
        self._cache = KVCache(model.config, slots, min(length or self.context, self.context), self.device, model.compute_dtype)
        self._decoder = decoder_for(model)  # None for a model with another forward pass, which is then called instead
        self._graphed: GraphedStep | None = None
        if self._decoder and (capture or self.device.type == "cuda"):
            self._graphed = GraphedStep(self._decoder, self._cache, model.config.vocab_size, capture or cuda_graphs(self.device))
        self._held: list[list[int]] = [[] for _ in range(slots)]  # the ids in each slot of the cache
        self._used = [0] * slots  # time when each slot became free, to reuse the oldest first
        self._clock = 0

    @property
    def free(self) -> int:
        """The number of free slots."""
        return self.slots - len(self.sequences)

    def join(self, sequence: SequenceState) -> int:
        """Give `sequence` a slot; the next steps read its prompt. Returns the number of prompt tokens that are in the cache already."""
        assert self.free, "no slot is free"
        assert sequence.prompt, "an empty prompt"
        assert not sequence.done, "the sequence is complete"
        place = len(self.sequences)
        held, slot = max(
            (
                (shared if (shared := _shared(self._held[slot], sequence.prompt)) >= SHORTEST_PREFIX else 0, slot)
                for slot in range(place, self.slots)
            ),
            key=lambda found: (found[0], -self._used[found[1]]),
        )
        self._swap(place, slot)
        self._keep(place, held)
        self.sequences.append(sequence)
        return held

    def leave(self, sequence: SequenceState) -> None:
        """Free the slot of `sequence`, whether it is done or not."""
        place = self.sequences.index(sequence)
        if place < self._decoding:  # the last decoding sequence takes its slot, and the last sequence takes that one's
            self._decoding -= 1
            self._exchange(place, self._decoding)
            place = self._decoding
        self._exchange(place, len(self.sequences) - 1)
        self.sequences.pop()
        self._clock += 1
        self._used[len(self.sequences)] = self._clock

    def step(self) -> list[Token]:
        """One step: a token of every decoding sequence, a part of the waiting prompts, and the first token of prompts then complete.

        Complete sequences have left when this returns.
        """
        tokens: list[Token] = []
        if self._decoding:
            decoding = self.sequences[: self._decoding]
            tokens += self._advance(decoding, *self._decode(decoding))
        if self._decoding < len(self.sequences):
            tokens += self._read_prompts()
        for token in tokens:
            if token.sequence.done:
                self.leave(token.sequence)
        return tokens

    def _read_prompts(self) -> list[Token]:
        """Read a part of the waiting prompts in the order of their slots, at most `prompt_tokens` with padding."""
        first = self._decoding
        left = [sequence.prompt[len(self._held[first + i]) :] for i, sequence in enumerate(self.sequences[first:])]
        count = 1
        while count < len(left) and (count + 1) * max(map(len, left[: count + 1])) <= self._prompt_tokens:
            count += 1
        pieces = [prompt[: self._prompt_tokens] for prompt in left[:count]]
        logits = self._feed(first, pieces)
        read = [i for i in range(count) if len(pieces[i]) == len(left[i])]
        complete = [self.sequences[first + i] for i in read]
        tokens = self._advance(complete, _sampled(complete, logits[read]), logits[read])
        for i in read:
            self._exchange(self._decoding, first + i)
            self._decoding += 1
        return tokens

    def _decode(self, sequences: list[SequenceState]) -> tuple[list[int], Tensor]:
        """Feed each decoding sequence its newest token; the next one of each, and the logits (B, V) that it was sampled from."""
        ids = [sequence.last for sequence in sequences]
        if self._decoder is None:
            logits = self._feed(0, [[id] for id in ids])
        else:
            lengths = [len(held) for held in self._held[: len(ids)]]
            for held, id in zip(self._held, ids, strict=False):
                held.append(id)
            if self._graphed and not any(one.constraint for one in sequences):  # the CPU computes what a constraint allows
                return self._graphed(ids, lengths, [one.sampling for one in sequences], [one.generator for one in sequences])
            logits = self._decoder(ids, lengths, self._cache.slots(0, len(ids)))
        return _sampled(sequences, logits), logits

    @torch.inference_mode()
    def _feed(self, first: int, ids: list[list[int]]) -> Tensor:
        """Feed the sequences from slot `first` on their `ids` and return the logits (B, V) after the last id of each."""
        counts = torch.tensor([len(one) for one in ids])
        padded = torch.zeros(len(ids), int(counts.max()), dtype=torch.int64)
        for i, one in enumerate(ids):
            padded[i, : len(one)] = torch.tensor(one)
            self._held[first + i].extend(one)
        cache = self._cache.slots(first, first + len(ids))
        hidden = self.model(padded.to(self.device), cache=cache, counts=counts.to(self.device))  # (B, T, D)
        return self.model.logits(hidden[torch.arange(len(ids), device=self.device), (counts - 1).to(self.device)])

    def _advance(self, sequences: list[SequenceState], sampled: list[int], logits: Tensor) -> list[Token]:
        """One more token for each of `sequences`, which was sampled from logits (B, V)."""
        tokens = []
        for i, sequence in enumerate(sequences):
            token, forced = sequence.advance(sampled[i])
            tokens.append(Token(sequence, token, forced, None if sequence.top is None else log_probs(logits[i], token, sequence.top)))
        return tokens

    def _exchange(self, a: int, b: int) -> None:
        """Exchange slots `a` and `b`: sequences and cached tokens."""
        self.sequences[a], self.sequences[b] = self.sequences[b], self.sequences[a]
        self._swap(a, b)

    @torch.inference_mode()
    def _swap(self, a: int, b: int) -> None:
        """Exchange the cached tokens of slots `a` and `b`."""
        if a == b:
            return
        self._cache.swap(a, b, max(len(self._held[a]), len(self._held[b])))
        self._held[a], self._held[b] = self._held[b], self._held[a]
        self._used[a], self._used[b] = self._used[b], self._used[a]

    @torch.inference_mode()
    def _keep(self, slot: int, count: int) -> None:
        """Drop all but the first `count` ids of `slot`."""
        del self._held[slot][count:]
        self._cache.lengths[slot] = count
        if count:
            self._cache.previous[slot] = self.model.embedded(torch.tensor(self._held[slot][-1], device=self.device))
        else:
            self._cache.previous[slot] = 0


def _sampled(sequences: list[SequenceState], logits: Tensor) -> list[int]:
    """A token for each of `sequences`, from logits (B, V), that its constraint allows."""
    if not sequences:
        return []
    logits = constrained(logits, [one.constraint for one in sequences])
    return sample(logits, [one.sampling for one in sequences], [one.generator for one in sequences])


def _shared(held: list[int], prompt: list[int]) -> int:
    """Length of the common prefix; never the whole prompt, because its last id must be read for the logits."""
    count = 0
    for one, other in zip(held, prompt[:-1], strict=False):
        if one != other:
            break
        count += 1
    return count
