"""Ids become text: one answer's tokens in, pieces of valid UTF-8 and calculator calls out, cut at a stop string.

The scheduler pushes each token. Next: delivery.py sends the pieces to the client.
"""

from collections.abc import Sequence
from typing import NamedTuple

from nanochat.generate.batching import Token
from nanochat.generate.engine import Answer
from nanochat.generate.sampling import LogProbs
from nanochat.tokenizer.tokenizer import Tokenizer


class Call(NamedTuple):
    """A call of the calculator; `result` is None where the expression has no value."""

    expression: str
    result: str | None


class TokenLogProb(NamedTuple):
    """A token of the visible text: its bytes, its log probability, and the likeliest tokens' bytes and log probabilities.

    The first token of an echoed prompt has neither, because nothing is before it.
    """

    text: bytes
    log_prob: float | None
    top: list[tuple[bytes, float]] | None


def token_log_prob(tokenizer: Tokenizer, token: int, found: LogProbs | None) -> TokenLogProb:
    """A token's id and log probabilities as a client reads them: special tokens have no text."""

    def text(id: int) -> bytes:
        return tokenizer.bytes_of(id) or b""

    if found is None:
        return TokenLogProb(text(token), None, None)
    return TokenLogProb(text(token), found.token, [(text(id), value) for id, value in found.top])


Piece = str | Call


class AnswerStream:
    """Puts an answer together as its tokens come. `finish` is "stop" or "length" once nothing more comes, None before."""

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str] = (), echoed: bool = False):
        """`echoed`: log probabilities come behind those of the prompt, one for each token, special ones too."""
        self._echoed = echoed
        self.finish: str | None = None
        self.log_probs: list[TokenLogProb] = []  # since the last take
        self._tokenizer, self._stop = tokenizer, [text for text in stop if text]
        self._answer = Answer(tokenizer)
        self._held = ""  # text that may turn out to be the beginning of a stop string
        self._expression: str | None = None  # of a call whose result is not known yet

    def push(self, token: Token) -> list[Piece]:
        """The text that `token` adds. After a stop string, or the end of the sequence, `finish` is set and nothing more may be pushed."""
        special = self._tokenizer.specials.get
        pieces: list[Piece] = self._text(self._answer.push(token.id))
        if self._expression is not None and (not token.forced or token.id == special("<|output_end|>")):
            pieces += [*self._release(), Call(self._expression, self._last("python_output") if token.forced else None)]
            self._expression = None
        if token.id == special("<|python_end|>"):
            self._expression = self._last("python")
        visible = self._tokenizer.bytes_of(token.id) is not None and not token.forced
        if token.log_probs is not None and (visible or self._echoed):
            self.log_probs.append(token_log_prob(self._tokenizer, token.id, token.log_probs))
        if token.sequence.done and self.finish is None:
            pieces += self._text(self._answer.flush())
            if self.finish is None:
                pieces += self._release()
                self.finish = "stop" if token.sequence.ended else "length"
        return [piece for piece in pieces if piece != ""]

    def _last(self, kind: str) -> str:
        part = self._answer.parts[-1] if self._answer.parts else {"type": ""}
        return str(part["text"]) if part["type"] == kind else ""

    def _release(self) -> list[Piece]:
        held, self._held = self._held, ""
        return [held] if held else []

    def _text(self, text: str) -> list[Piece]:
        """`text` as far as it is certain that no stop string begins in it."""
        if not text or self.finish:
            return []
        if not self._stop:
            return [text]
        text = self._held + text
        self._held = ""
        found = [place for place in (text.find(stop) for stop in self._stop) if place >= 0]
        if found:
            self.finish = "stop"
            return [text[: min(found)]]
        longest = max(map(len, self._stop)) - 1
        for start in range(max(len(text) - longest, 0), len(text)):
            if any(stop.startswith(text[start:]) for stop in self._stop):
                text, self._held = text[:start], text[start:]
                break
        return [text]
