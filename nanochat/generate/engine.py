"""Generation of answers from prompts, and the visible text of an answer.

The decoding itself, with its KV cache, is `batching.py`.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch

from nanochat.errors import UsageError
from nanochat.generate.batching import Batch, SequenceState
from nanochat.generate.sampling import LogProbs, Sampling, row_log_probs
from nanochat.model.transformer import Transformer
from nanochat.tokenizer.tokenizer import Tokenizer

SCORED_ROWS = 256  # positions of a prompt whose logits, each of the vocabulary's size, are in memory at once
PROMPT_TOKENS = 16_384  # prompt tokens of one step, if no user waits for a running answer


class Emitted(NamedTuple):
    """A new token of the answer to prompt `row`; `forced` if it is a calculator result and not sampled."""

    row: int
    token: int
    forced: bool


class Engine:
    """Generates with a model and its tokenizer, on the model's device."""

    def __init__(self, model: Transformer, tokenizer: Tokenizer):
        self.model, self.tokenizer = model, tokenizer
        self.context = model.config.max_seq_len

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        max_tokens: int,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float = 1.0,
        seed: int | None = None,
        batch_size: int | None = None,
    ) -> Iterator[list[Emitted]]:
        """Answer `prompts` (lists of ids) in batches of `batch_size` (None: all); yields each step's new tokens, at most one per row.

        An answer ends with assistant_end or bos (which is yielded), after `max_tokens`, or when the context is full. It does not
        depend on the other prompts. Raises UsageError, before the first step, for invalid sampling values and for a prompt that is
        empty or longer than the context.
        """
        sampling = Sampling(temperature, top_k, top_p, seed)
        if max_tokens < 1:
            raise UsageError(f"max_tokens = {max_tokens} is not a positive number", "set it to 1 or more, such as 512")
        for prompt in prompts:
            if not 1 <= len(prompt) <= self.context:
                raise UsageError(f"the prompt has {len(prompt):,} tokens", f"give it 1 to {self.context:,} tokens, the model's context")
        return self._decode(prompts, max_tokens, sampling, batch_size or max(len(prompts), 1))

    def complete(self, prompts: Sequence[Sequence[int]], *, max_tokens: int, batch_size: int = 64, **options: Any) -> list[list[int]]:
        """The new ids for each of `prompts`, with forced ones and the ending special token; options as of `generate`.

        The default temperature is 0.
        """
        answers: list[list[int]] = [[] for _ in prompts]
        for step in self.generate(prompts, max_tokens=max_tokens, batch_size=batch_size, **{"temperature": 0.0} | options):
            for row, token, _ in step:
                answers[row].append(token)
        return answers

    def _decode(self, prompts: Sequence[Sequence[int]], max_tokens: int, sampling: Sampling, batch_size: int) -> Iterator[list[Emitted]]:
        # Longest prompts first, so that prompts of a batch have similar lengths and little padding.
        order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
        max_new_tokens = {index: min(max_tokens, self.context - len(prompts[index])) for index in order}
        waiting = [index for index in order if max_new_tokens[index]]
        if not waiting:
            return
        longest = max(len(prompts[index]) + max_new_tokens[index] for index in waiting)
        batch = Batch(self.model, self.tokenizer, min(batch_size, len(waiting)), longest, PROMPT_TOKENS)
        while waiting or batch.sequences:
            if batch.free * 4 >= batch.slots:  # several at a time, because each reading of prompts costs a forward pass
                for _ in range(min(batch.free, len(waiting))):
                    index = waiting.pop()
                    batch.join(SequenceState(self.tokenizer, prompts[index], max_new_tokens[index], sampling, index))
            yield [Emitted(token.sequence.index, token.id, token.forced) for token in batch.step()]


@torch.inference_mode()
def prompt_log_probs(model: Transformer, ids: Sequence[int], top: int) -> list[LogProbs]:
    """Log probabilities of each of `ids` but the first, given those before it, and of the `top` most likely tokens in its place."""
    device = next(model.parameters()).device
    found: list[LogProbs] = []
    if len(ids) < 2:
        return found
    hidden = model(torch.tensor([ids[:-1]], dtype=torch.int64, device=device))[0]  # (T - 1, D)
    for first in range(0, len(hidden), SCORED_ROWS):
        part = hidden[first : first + SCORED_ROWS]
        found += row_log_probs(model.logits(part), ids[first + 1 : first + 1 + len(part)], top)
    return found


# Special token -> kind of the part that follows it.
_OPENS = {
    "<|python_start|>": "python",
    "<|python_end|>": "text",
    "<|output_start|>": "python_output",
    "<|output_end|>": "text",
}


class Answer:
    """Assembles an answer from its tokens: the visible text, and the parts for the conversation's history.

    The visible text is the assistant's, without calculator calls and results.
    """

    def __init__(self, tokenizer: Tokenizer):
        self.parts: list[dict[str, Any]] = []  # {"type": text|python|python_output, "text": str}, as in a Message
        self._decoder = tokenizer.stream_decoder()
        self._kinds = {tokenizer.specials[name]: kind for name, kind in _OPENS.items() if name in tokenizer.specials}
        self._kind = "text"

    @property
    def text(self) -> str:
        """The visible text so far."""
        return "".join(part["text"] for part in self.parts if part["type"] == "text")

    def push(self, token: int) -> str:
        """The visible text that this token adds, in whole code points."""
        visible = self._add(self._decoder.push(token))
        self._kind = self._kinds.get(token, self._kind)
        return visible

    def flush(self) -> str:
        """The rest of the visible text, at the end."""
        return self._add(self._decoder.flush())

    def _add(self, text: str) -> str:
        if not text:
            return ""
        if not self.parts or self.parts[-1]["type"] != self._kind:
            self.parts.append({"type": self._kind, "text": ""})
        self.parts[-1]["text"] += text
        return text if self._kind == "text" else ""


def prompt_ids(tokenizer: Tokenizer, text: str) -> list[int]:
    """A user message of any length as ids that end with assistant_start."""
    return tokenizer.render_prompt([{"role": "user", "content": text}], 1 << 62)[0]


def answer_text(tokenizer: Tokenizer, ids: Sequence[int]) -> str:
    """The visible text of an answer's ids."""
    answer = Answer(tokenizer)
    for token in ids:
        answer.push(token)
    answer.flush()
    return answer.text
