"""The engine's thread: a bounded queue of requests, continuous batching over the slots, and deltas to whoever waits for them.

One thread owns every model. An HTTP request is one generation request for each of its answers. Each step of the batch gives every
running one a token; stream.py makes text of it, and one call a step hands all the deltas to the server's event loop, where
delivery.py waits for them.
"""

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from nanochat.chat.loading import LoadedModel
from nanochat.chat.metrics import ServerMetrics
from nanochat.chat.stream import AnswerStream, Piece, TokenLogProb, token_log_prob
from nanochat.console import log
from nanochat.errors import NanochatError
from nanochat.generate.batching import SequenceState, Token
from nanochat.generate.constraint import Constraint
from nanochat.generate.engine import prompt_log_probs
from nanochat.generate.sampling import Sampling


class Busy(NanochatError):
    """The queue is full."""


@dataclass(frozen=True)
class Delta:
    """One step's addition to answer `index`. `finish` is set in the last one: stop, length, or error with `error` as its reason.

    `blamed` is the field of the request that caused the error, None if the engine failed.
    """

    index: int
    pieces: Sequence[Piece] = ()
    log_probs: Sequence[TokenLogProb] = ()
    finish: str | None = None
    completion_tokens: int = 0
    error: str = ""
    blamed: str | None = None


Deliver = Callable[[Delta], None]


@dataclass(eq=False)
class GenerationRequest:
    """One answer to one prompt.

    `top` is the number of most likely tokens whose log probabilities are returned; with None, not even the token's own. `echo` is the
    index from which the prompt is repeated before the answer; only with it may `max_tokens` be 0.
    """

    loaded: LoadedModel
    prompt: Sequence[int]
    max_tokens: int
    sampling: Sampling
    deliver: Deliver
    index: int = 0
    stop: Sequence[str] = ()
    top: int | None = None
    echo: int | None = None
    constraint: Constraint | None = None  # of this answer alone
    cancelled: bool = False
    completion_tokens: int = 0
    asked_at: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        tokenizer = self.loaded.tokenizer
        max_new_tokens = min(self.max_tokens, self.loaded.context - len(self.prompt))
        self.sequence = SequenceState(tokenizer, self.prompt, max_new_tokens, self.sampling, self.index, self.top, self.constraint)
        self.stream = AnswerStream(tokenizer, self.stop, self.echo is not None)


class Scheduler:
    """Queue and slots. `publish` runs a function of no arguments where deliveries belong (an event loop's call_soon_threadsafe)."""

    def __init__(self, metrics: ServerMetrics, queue: int = 64, publish: Callable[[Callable[[], None]], Any] = lambda work: work()):
        self.current: LoadedModel | None = None
        self.most_threads: int | None = None  # while a training run shares the CPU
        self.publish = publish
        self._metrics, self._limit = metrics, queue
        self._waiting: deque[GenerationRequest] = deque()
        self._running: dict[SequenceState, GenerationRequest] = {}
        self._echoing: list[GenerationRequest] = []  # admitted, their prompts not echoed yet
        self._wake = threading.Condition()
        self._ending = False
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        metrics.watch(lambda: self.waiting, lambda: self.running, lambda: self.current.slots if self.current else 0)

    @property
    def waiting(self) -> int:
        """Requests in the queue."""
        return len(self._waiting)

    @property
    def running(self) -> int:
        """Requests that have a slot."""
        return len(self._running)

    def start(self) -> None:
        """Begin to answer."""
        self._thread.start()

    def end(self) -> None:
        """Answer no more; requests that are not complete get an error."""
        with self._wake:
            self._ending = True
            self._wake.notify()

    def stop(self) -> None:
        """`end`, and wait for the thread."""
        self.end()
        self._thread.join(timeout=30)

    def serve(self, loaded: LoadedModel) -> None:
        """Answer new requests with another model; running ones stay with theirs until they are complete."""
        self.current = loaded

    def submit(self, requests: Sequence[GenerationRequest]) -> None:
        """Put the generation requests of one HTTP request into the queue. Raises Busy, for all of them, if they do not fit."""
        with self._wake:
            if self._ending:
                raise Busy("the server is shutting down", "ask again in a moment")
            if len(self._waiting) + len(requests) > self._limit:
                raise Busy("too many requests are waiting", "ask again in a moment")
            self._waiting.extend(requests)
            self._wake.notify()

    def cancel(self, requests: Sequence[GenerationRequest]) -> None:
        """Give up requests whose client has disconnected: their slots are free before the next token."""
        with self._wake:
            for request in requests:
                request.cancelled = True
            self._wake.notify()

    # ---- in the engine's thread ---------------------------------------------------------------------------------

    def _run(self) -> None:
        threads = 0
        while self._admit():
            deltas = [self._echo(request) for request in self._echoing]
            self._echoing.clear()
            for loaded in dict.fromkeys(request.loaded for request in self._running.values()):
                if (wanted := min(loaded.threads, self.most_threads or loaded.threads)) != threads:
                    threads = wanted
                    torch.set_num_threads(threads)
                deltas += self._step(loaded)
            if deltas:
                self.publish(lambda deltas=deltas: _deliver(deltas))  # type: ignore[misc]
        unfinished = [*self._running.values(), *self._waiting]
        self._running.clear()
        self._waiting.clear()
        ended = [_error(request, "the server is shutting down") for request in unfinished]
        with contextlib.suppress(RuntimeError):  # the event loop has ended
            self.publish(lambda: _deliver(ended))

    def _admit(self) -> bool:
        """Wait for work, drop what was cancelled, fill the free slots, first come, first served. False once the end was asked for."""
        with self._wake:
            while not (self._ending or self._waiting or self._running):
                self._wake.wait()
            if self._ending:
                return False
            for request in [request for request in self._running.values() if request.cancelled]:
                self._finish(request)
                request.loaded.batch.leave(request.sequence)
            if any(request.cancelled for request in self._waiting):
                self._waiting = deque(request for request in self._waiting if not request.cancelled)
            while self._waiting and self._waiting[0].loaded.batch.free:
                request = self._waiting.popleft()
                if request.echo is not None:
                    self._echoing.append(request)
                if not request.max_tokens:
                    continue
                self._running[request.sequence] = request
                self._metrics.prompt(len(request.prompt), request.loaded.batch.join(request.sequence))
            return True

    def _echo(self, request: GenerationRequest) -> tuple[Deliver, Delta]:
        """The prompt of a request that wants it before its answer, with the log probabilities of its tokens if those are wanted."""
        assert request.echo is not None
        tokenizer, shown = request.loaded.tokenizer, list(request.prompt)[request.echo :]
        values: list[TokenLogProb] = []
        try:
            if request.top is not None and shown:
                every = [None, *prompt_log_probs(request.loaded.model, request.prompt, request.top)][request.echo :]
                values = [token_log_prob(tokenizer, id, found) for id, found in zip(shown, [None, *every[1:]], strict=True)]
        except Exception as error:  # out of memory, for one: this answer is lost, the server is not
            log(f"error: the engine failed: {type(error).__name__}: {error}; an answer was given up")
            self._metrics.failures.inc()
            if self._running.pop(request.sequence, None):
                request.loaded.batch.leave(request.sequence)
            return _error(request, "the engine failed; the server's log says why")
        return request.deliver, Delta(request.index, [tokenizer.decode(shown)], values, None if request.max_tokens else "length")

    def _step(self, loaded: LoadedModel) -> list[tuple[Deliver, Delta]]:
        """One step of a model's batch, as deltas."""
        began = time.monotonic()
        try:
            tokens = loaded.batch.step()
        except Exception as error:  # out of memory, for one: these answers are lost, the server is not
            return self._give_up(loaded, error)
        now = time.monotonic()
        deltas = []
        for token in tokens:
            request = self._running[token.sequence]
            request.completion_tokens += 1
            if request.completion_tokens == 1:
                self._metrics.first_token.observe(now - request.asked_at)
            deltas.append((request.deliver, self._delta(request, token)))
        self._metrics.step(len(tokens), now - began)
        return deltas

    def _delta(self, request: GenerationRequest, token: Token) -> Delta:
        """Add a token to an answer's text; the slot is freed after the last one."""
        stream = request.stream
        pieces = stream.push(token)
        log_probs, stream.log_probs = stream.log_probs, []
        if request.constraint and request.constraint.fault:
            self._finish(request)
            if not token.sequence.done:
                request.loaded.batch.leave(token.sequence)
            return Delta(request.index, finish="error", error=request.constraint.fault, blamed="response_format")
        if stream.finish:
            self._finish(request)
            if not token.sequence.done:  # a stop string ended it
                request.loaded.batch.leave(token.sequence)
        return Delta(request.index, pieces, log_probs, stream.finish, request.completion_tokens)

    def _finish(self, request: GenerationRequest) -> None:
        del self._running[request.sequence]

    def _give_up(self, loaded: LoadedModel, error: Exception) -> list[tuple[Deliver, Delta]]:
        """Errors for every running answer of a model whose step failed."""
        lost = [request for request in self._running.values() if request.loaded is loaded]
        log(f"error: the engine failed: {type(error).__name__}: {error}; {len(lost)} answers were given up")
        self._metrics.failures.inc()
        for request in lost:
            self._finish(request)
        loaded.reset()
        return [_error(request, "the engine failed; the server's log says why") for request in lost]


def _error(request: GenerationRequest, why: str) -> tuple[Deliver, Delta]:
    return request.deliver, Delta(request.index, finish="error", error=why)


def _deliver(deltas: Sequence[tuple[Deliver, Delta]]) -> None:
    for deliver, delta in deltas:
        deliver(delta)
