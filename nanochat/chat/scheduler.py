"""The engine's thread: a bounded queue of answers, continuous batching over the slots, and deltas to whoever asked.

One thread owns every model. A request is one or more answers; each gets its tokens as deltas, through one call a step into the
server's event loop.
"""

import contextlib
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from nanochat.chat.metrics import Meters
from nanochat.chat.stream import AnswerStream, Piece, TokenLogProb
from nanochat.console import log
from nanochat.errors import NanochatError
from nanochat.generate.batching import Batch, Row, Token
from nanochat.generate.sampling import Sampling
from nanochat.model.transformer import Transformer
from nanochat.tokenizer.tokenizer import Tokenizer

ONE_THREAD_PARAMETERS = 2_000_000  # of the matrices: docs/EXPERIMENTS.md


class Busy(NanochatError):
    """The queue is full."""


@dataclass(eq=False)
class Served:
    """A model that answers, and what a client may know of it."""

    name: str
    stage: str
    step: int
    model: Transformer
    tokenizer: Tokenizer
    chats: bool  # it was taught to converse; else it continues text
    trial: bool
    parameters: int
    slots: int
    created: int = field(default_factory=lambda: int(time.time()))
    batch: Batch = field(init=False)

    def __post_init__(self) -> None:
        self.context = self.model.config.max_seq_len
        self.device = next(self.model.parameters()).device.type
        # The matrices of a small model are multiplied in less time than a second thread takes to wake up.
        small = sum(parameter.numel() for block in self.model.blocks for parameter in block.parameters()) < ONE_THREAD_PARAMETERS
        self.threads = 1 if small else os.cpu_count() or 1
        self.batch = Batch(self.model, self.tokenizer, self.slots)


@dataclass(frozen=True)
class Delta:
    """What one step adds to answer `index`. `finish` is set in its last one: stop, length, or error with `error` as its reason."""

    index: int
    pieces: Sequence[Piece] = ()
    log_probs: Sequence[TokenLogProb] = ()
    finish: str | None = None
    completion_tokens: int = 0
    error: str = ""


Deliver = Callable[[Delta], None]


@dataclass(eq=False)
class Answering:
    """One answer to one prompt. `top`: how many likeliest tokens' log probabilities are wanted (None: not even the token's own)."""

    served: Served
    prompt: Sequence[int]
    max_tokens: int
    sampling: Sampling
    deliver: Deliver
    index: int = 0
    stop: Sequence[str] = ()
    top: int | None = None
    cancelled: bool = False
    completion_tokens: int = 0
    asked_at: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        room = min(self.max_tokens, self.served.context - len(self.prompt))
        self.row = Row(self.served.tokenizer, self.prompt, room, self.sampling, self.index, self.top)
        self.stream = AnswerStream(self.served.tokenizer, self.stop)


class Scheduler:
    """Queue and slots. `publish` runs a function of no arguments where deliveries belong (an event loop's call_soon_threadsafe)."""

    def __init__(self, meters: Meters, queue: int = 64, publish: Callable[[Callable[[], None]], Any] = lambda work: work()):
        self.current: Served | None = None
        self.publish = publish
        self._meters, self._limit = meters, queue
        self._waiting: deque[Answering] = deque()
        self._running: dict[Row, Answering] = {}
        self._wake = threading.Condition()
        self._ending = False
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        meters.watch(lambda: len(self._waiting), lambda: len(self._running), lambda: self.current.slots if self.current else 0)

    def start(self) -> None:
        """Begin to answer."""
        self._thread.start()

    def end(self) -> None:
        """Answer no more; whoever still waits gets an error."""
        with self._wake:
            self._ending = True
            self._wake.notify()

    def stop(self) -> None:
        """`end`, and wait for the thread."""
        self.end()
        self._thread.join(timeout=30)

    def serve(self, served: Served) -> None:
        """Answer what comes from now on with another model; what is under way stays with its own until it is done."""
        self.current = served

    def submit(self, answers: Sequence[Answering]) -> None:
        """Put a request's answers into the queue. Raises Busy, for all of them, where there is no room."""
        with self._wake:
            if self._ending:
                raise Busy("the server is shutting down", "ask again in a moment")
            if len(self._waiting) + len(answers) > self._limit:
                raise Busy("too many requests are waiting", "ask again in a moment")
            self._waiting.extend(answers)
            self._wake.notify()

    def cancel(self, answers: Sequence[Answering]) -> None:
        """Give up answers whose client has left: their slots are free before the next token."""
        with self._wake:
            for answer in answers:
                answer.cancelled = True
            self._wake.notify()

    def _run(self) -> None:
        threads = 0
        while True:
            with self._wake:
                while not (self._ending or self._waiting or self._running):
                    self._wake.wait()
                if self._ending:
                    break
                self._admit()
            deltas: list[tuple[Deliver, Delta]] = []
            for served in dict.fromkeys(answer.served for answer in self._running.values()):
                if served.threads != threads:
                    threads = served.threads
                    torch.set_num_threads(threads)
                deltas += self._step(served)
            if deltas:
                self.publish(lambda deltas=deltas: _deliver(deltas))  # type: ignore[misc]
        gone = [*self._running.values(), *self._waiting]
        self._running.clear()
        self._waiting.clear()
        ended = [(one.deliver, Delta(one.index, finish="error", error="the server is shutting down")) for one in gone]
        with contextlib.suppress(RuntimeError):  # the event loop has ended
            self.publish(lambda: _deliver(ended))

    def _admit(self) -> None:
        """Drop what was given up, then fill the free slots, first come, first served."""
        for row, answer in [(row, answer) for row, answer in self._running.items() if answer.cancelled]:
            self._finish(row)
            answer.served.batch.leave(row)
        if any(answer.cancelled for answer in self._waiting):
            self._waiting = deque(answer for answer in self._waiting if not answer.cancelled)
        while self._waiting and self._waiting[0].served.batch.free:
            answer = self._waiting.popleft()
            self._running[answer.row] = answer
            self._meters.prompt(len(answer.prompt), answer.served.batch.join(answer.row))

    def _step(self, served: Served) -> list[tuple[Deliver, Delta]]:
        began = time.monotonic()
        try:
            tokens = served.batch.step()
        except Exception as error:  # out of memory, for one: these answers are lost, the server is not
            return self._give_up(served, error)
        now = time.monotonic()
        deltas = []
        for token in tokens:
            answer = self._running[token.row]
            answer.completion_tokens += 1
            if answer.completion_tokens == 1:
                self._meters.first_token.observe(now - answer.asked_at)
            deltas.append((answer.deliver, self._delta(answer, token)))
        self._meters.step(len(tokens), now - began)
        return deltas

    def _delta(self, answer: Answering, token: Token) -> Delta:
        stream = answer.stream
        pieces = stream.push(token)
        log_probs, stream.log_probs = stream.log_probs, []
        if stream.finish:
            self._finish(token.row)
            if not token.row.done:  # a stop string ended it
                answer.served.batch.leave(token.row)
        return Delta(answer.index, pieces, log_probs, stream.finish, answer.completion_tokens)

    def _finish(self, row: Row) -> None:
        del self._running[row]

    def _give_up(self, served: Served, error: Exception) -> list[tuple[Deliver, Delta]]:
        lost = [answer for answer in self._running.values() if answer.served is served]
        log(f"error: the engine failed: {type(error).__name__}: {error}; {len(lost)} answers were given up")
        self._meters.failures.inc()
        for answer in lost:
            self._finish(answer.row)
        served.batch = Batch(served.model, served.tokenizer, served.slots)  # the old one's cache may hold half a step
        return [(one.deliver, Delta(one.index, finish="error", error="the engine failed; the server's log says why")) for one in lost]


def _deliver(deltas: Sequence[tuple[Deliver, Delta]]) -> None:
    for deliver, delta in deltas:
        deliver(delta)
