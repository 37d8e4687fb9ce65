"""Batched scoring of a model: likelihood of a text, choice of a letter, and generated answers.

Shapes: B rows, T positions, D width, V vocabulary.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from nanochat.distributed.memory import map_with_oom_backoff
from nanochat.generate.engine import Engine, answer_text
from nanochat.model.transformer import Transformer
from nanochat.tokenizer.tokenizer import Tokenizer

BATCH_TOKENS = 16_384  # tokens of one forward pass, padding included
LOGIT_ROWS = 1024  # rows of logits in memory at the same time

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Span:
    """A text as ids, with the scored part ids[start:end]; 1 <= start <= end."""

    ids: list[int]
    start: int
    end: int

    def within(self, context: int) -> "Span":
        """The span without its oldest ids if there are more than `context`; the first remaining id cannot be scored."""
        cut = max(len(self.ids) - context, 0)
        return Span(self.ids[cut:], max(self.start - cut, 1), max(self.end - cut, 1))


class Scorer:
    """A model with its tokenizer, evaluated in batches; when out of memory, this and later batches are halved.

    A text's result does not depend on its batch, except for rounding.
    """

    def __init__(self, model: Transformer, tokenizer: Tokenizer, batch_tokens: int = BATCH_TOKENS):
        self.model, self.tokenizer, self.batch_tokens = model, tokenizer, batch_tokens
        self.engine = Engine(model, tokenizer)
        self.context = model.config.max_seq_len
        self.device = next(model.parameters()).device

    def score_spans(self, spans: Sequence[Span]) -> list[tuple[float, bool]]:
        """(mean loss of the scored ids in nats, whether each was the most likely id) of every span; equal spans are read once.

        The mean of a span without scored ids is infinite, so that it is never chosen.
        """
        keys = [(tuple(cut.ids), cut.start, cut.end) for cut in (span.within(self.context) for span in spans)]
        different = [Span(list(ids), start, end) for ids, start, end in dict.fromkeys(keys)]

        def score(batch: Sequence[Span]) -> list[tuple[float, bool]]:
            return score_batch(self.model, batch, self.tokenizer.bos)

        scored = dict(zip(dict.fromkeys(keys), self._batched(different, lambda span: len(span.ids), score), strict=True))
        return [scored[key] for key in keys]

    def choose_letters(self, prompts: Sequence[list[int]], letters: Sequence[Sequence[str]]) -> list[int]:
        """Index of the most likely letter after each prompt; the first of equals."""
        items = [
            (prompt[-self.context :], [self.tokenizer.encode(letter)[0] for letter in few])
            for prompt, few in zip(prompts, letters, strict=True)
        ]

        def choose(batch: Sequence[tuple[list[int], list[int]]]) -> list[int]:
            return choose_batch(self.model, batch, self.tokenizer.bos)

        return self._batched(items, lambda item: len(item[0]), choose)

    def answer(self, prompts: Sequence[list[int]], max_tokens: int) -> list[str]:
        """The model's answer to each prompt at temperature 0, in at most `max_tokens` tokens."""
        max_prompt = max(self.context - max_tokens, self.context // 2)
        items = [prompt[-max_prompt:] for prompt in prompts]

        def generate(batch: Sequence[list[int]]) -> list[str]:
            answers = self.engine.complete(batch, max_tokens=max_tokens, temperature=0.0, batch_size=len(batch))
            return [answer_text(self.tokenizer, ids) for ids in answers]

        return self._batched(items, lambda item: len(item) + max_tokens, generate)

    def _batched(
        self, items: Sequence[Item], length: Callable[[Item], int], work: Callable[[Sequence[Item]], Sequence[Result]]
    ) -> list[Result]:
        """`work`'s results for `items`, in batches of items of like length. Raises OutOfMemoryError if one item does not fit."""
        order = sorted(
            range(len(items)), key=lambda index: -length(items[index])
        )  # the longest first, because a batch size that fits it fits all
        ordered = [items[index] for index in order]
        results, self.batch_tokens = map_with_oom_backoff(ordered, self.batch_tokens, work, self.device, "reading texts", length)
        return [result for _, result in sorted(zip(order, results, strict=True), key=lambda found: found[0])]


@torch.inference_mode()
def score_batch(model: Transformer, spans: Sequence[Span], padding: int) -> list[tuple[float, bool]]:
    """(mean loss of the scored ids in nats, whether each was the most likely id) of every span, by one forward pass."""
    hidden = _hidden_states(model, [span.ids for span in spans], padding)
    before = [hidden[row, span.start - 1 : span.end - 1] for row, span in enumerate(spans)]  # each predicts the id after it
    targets = torch.tensor([id for span in spans for id in span.ids[span.start : span.end]], dtype=torch.int64, device=hidden.device)
    nats, likeliest = [], []
    for part, wanted in zip(torch.cat(before).split(LOGIT_ROWS), targets.split(LOGIT_ROWS), strict=True):
        logits = model.logits(part)
        nats.append(F.cross_entropy(logits, wanted, reduction="none"))
        likeliest.append(logits.argmax(dim=-1) == wanted)
    counts = [span.end - span.start for span in spans]
    return [
        (one.mean().item() if len(one) else math.inf, bool(hit.all()))
        for one, hit in zip(torch.cat(nats).cpu().split(counts), torch.cat(likeliest).cpu().split(counts), strict=True)
    ]


@torch.inference_mode()
def choose_batch(model: Transformer, items: Sequence[tuple[list[int], list[int]]], padding: int) -> list[int]:
    """Index of the most likely candidate after the prompt, for each (prompt, candidate ids), by one forward pass."""
    hidden = _hidden_states(model, [prompt for prompt, _ in items], padding)
    last = torch.tensor([len(prompt) - 1 for prompt, _ in items], device=hidden.device)
    logits = model.logits(hidden[torch.arange(len(items), device=hidden.device), last]).cpu()  # (B, V)
    return [int(row[candidates].argmax()) for row, (_, candidates) in zip(logits, items, strict=True)]


def _hidden_states(model: Transformer, rows: list[list[int]], padding: int) -> Tensor:
    """Hidden states (B, T, D) of rows padded on the right, to which the ids before it do not attend."""
    longest = max(map(len, rows))
    padded = torch.tensor([row + [padding] * (longest - len(row)) for row in rows])
    return model(padded.to(next(model.parameters()).device))
