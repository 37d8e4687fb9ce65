"""Chat in the terminal: one answer for a prompt, or a conversation with history and commands."""

import dataclasses
import io
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from nanochat.chat.typing import Typist, valid
from nanochat.console import log, show
from nanochat.errors import NanochatError, UsageError, did_you_mean
from nanochat.generate.engine import Answer, Engine
from nanochat.generate.sampling import Sampling
from nanochat.tokenizer.conversation import Conversation
from nanochat.tokenizer.tokenizer import Tokenizer

HELP = (
    "Type a message and press Enter. Ctrl-C stops an answer, /quit or Ctrl-D leaves.",
    'A line that ends with \\ continues in the next one; a line of """ begins and ends a message of several lines.',
    "/clear           forget the conversation",
    "/model [RUN]     show the model, or change to RUN, RUN:STAGE or RUN:STAGE:STEP",
    "/set             show the settings",
    "/set NAME VALUE  change temperature, top_k, top_p, max_tokens or seed",
    "/stats           speed of the last answer, and how much of the context is used",
    "/help            this list",
)
COMMANDS = ("/clear", "/help", "/model", "/quit", "/set", "/stats")
SETTINGS = {"temperature": float, "top_k": int, "top_p": float, "max_tokens": int, "seed": int}
COMPLETER = "this model has not been taught to chat: it continues your text instead"
DIM = "2"  # SGR code


@dataclass(frozen=True)
class Speaker:
    """A model that answers, and its name."""

    engine: Engine
    tokenizer: Tokenizer
    chats: bool = True
    name: str = "this model"


def chat(
    engine: Engine,
    tokenizer: Tokenizer,
    *,
    prompt: str | None = None,
    temperature: float = 0.8,
    top_k: int | None = 50,
    max_tokens: int = 512,
    seed: int | None = None,
    chat_model: bool = True,
    name: str = "this model",
    open_model: Callable[[str], Speaker] | None = None,
) -> None:
    """Answer `prompt` on stdout and return; without one, chat until the user leaves or the input ends.

    With chat_model=False, a model without fine-tuning continues the user's text as a document, with a note on stderr. `open_model` opens
    the model that /model names. All messages go to stderr; stdout has only the answers. Raises UsageError for a prompt that does not
    fit and for invalid sampling values.
    """
    for stream in (sys.stdin, sys.stdout):
        if isinstance(stream, io.TextIOWrapper):  # a terminal of another encoding shows ? for what it cannot show
            stream.reconfigure(errors="replace")
    speaker = Speaker(engine, tokenizer, chat_model, name)
    talk = _Talk(speaker, Sampling(temperature, top_k, seed=seed), max_tokens, shows_calls=prompt is None and sys.stdout.isatty())
    if not chat_model:
        log(COMPLETER)
    if prompt is not None:
        talk.say(valid(prompt))
        return
    _help()
    typist = Typist()
    try:
        while (line := typist.read()) is not None and line != "/quit":
            try:
                if line.startswith("/"):
                    _command(line, talk, open_model)
                elif line:
                    talk.say(line)
            except KeyboardInterrupt:
                log("(interrupted)")
            except NanochatError as error:  # for example, the message is too long
                log(f"error: {error.message}")
                if error.hint:
                    log(f"hint: {error.hint}")
    finally:
        typist.close()


def _help() -> None:
    for line in HELP:
        log(line)


def _command(line: str, talk: "_Talk", open_model: Callable[[str], Speaker] | None) -> None:
    """Do what a line that begins with a slash asks for. Raises UsageError for what is no command."""
    name, *values = line.split()
    if name == "/clear":
        talk.history.clear()
        log("the conversation is forgotten")
    elif name == "/help":
        _help()
    elif name == "/model" and values:
        if open_model is None:
            raise UsageError("no other model can be opened here", "start the chat with --run NAME")
        talk.change(open_model(" ".join(values)))
        log(f"model: {talk.speaker.name}; the conversation continues" if talk.speaker.chats else f"model: {talk.speaker.name}; {COMPLETER}")
    elif name == "/model":
        log(f"model: {talk.speaker.name}, context length {talk.speaker.engine.context:,} tokens")
    elif name == "/set":
        talk.set(values)
    elif name == "/stats":
        talk.show_stats()
    else:
        raise UsageError(f"unknown command {name}", did_you_mean(name, COMMANDS))


class _Talk:
    """A conversation: its history, and how answers are made."""

    def __init__(self, speaker: Speaker, sampling: Sampling, max_tokens: int, shows_calls: bool):
        self.sampling, self.max_tokens, self.shows_calls = sampling, max_tokens, shows_calls
        self.history: Conversation = []
        self.stats = ""  # of the last answer
        self.change(speaker)

    def change(self, speaker: Speaker) -> None:
        """Let another model answer from now on."""
        self.speaker, self.engine, self.tokenizer = speaker, speaker.engine, speaker.tokenizer

    @property
    def prompt_tokens(self) -> int:
        """Largest number of prompt tokens; the rest of the context, at most half of it, is for the answer."""
        return max(self.engine.context - self.max_tokens, self.engine.context // 2)

    def set(self, values: Sequence[str]) -> None:
        """Change a setting, given as its name and value; without them, show all. Raises UsageError for what cannot be."""
        current = {name: getattr(self.sampling, name) for name in SETTINGS if name != "max_tokens"} | {"max_tokens": self.max_tokens}
        if not values:
            log(", ".join(f"{name} {'random' if value is None else value}" for name, value in current.items()))
            return
        name = values[0]
        if name not in SETTINGS or len(values) != 2:
            raise UsageError(f"/set {' '.join(values)} is not possible", f"use /set NAME VALUE with one of: {', '.join(SETTINGS)}")
        try:
            value = SETTINGS[name](values[1])
        except ValueError as error:
            raise UsageError(f"{name} = {values[1]} is not a number", "give a number") from error
        if name == "max_tokens":
            if value < 1:
                raise UsageError(f"max_tokens = {value} is not valid", "give a positive number of tokens")
            self.max_tokens = int(value)
        else:
            changes: dict[str, Any] = {name: value or None if name == "top_k" else value}
            self.sampling = dataclasses.replace(self.sampling, **changes)
        log(f"{name} {value}")

    def show_stats(self) -> None:
        """Print the figures of the last answer."""
        asked: Conversation = [*self.history, {"role": "user", "content": ""}]
        used = len(self.tokenizer.render_prompt(asked, 1 << 62)[0]) if self.history and self.speaker.chats else 0
        log(self.stats or "there is no answer yet")
        log(f"context: {used:,} of {self.engine.context:,} tokens used by the conversation")

    def say(self, text: str) -> None:
        """Print the answer to `text` as it comes, and a newline. An interrupted answer enters the history as far as it came."""
        ids = self._ask(text) if self.speaker.chats else self._document(text)
        answer = Answer(self.tokenizer)
        try:
            self._stream(ids, answer)
        finally:
            show(answer.flush(), end="")
            show("" if answer.text.endswith("\n") else "\n", end="")
            if self.speaker.chats and answer.parts:
                self.history += [{"role": "user", "content": text}, {"role": "assistant", "content": answer.parts}]

    def _ask(self, text: str) -> list[int]:
        """The conversation with `text` as ids; turns that no longer fit are dropped from the history."""
        ids, dropped = self.tokenizer.render_prompt([*self.history, {"role": "user", "content": text}], self.prompt_tokens)
        if dropped:
            del self.history[: 2 * dropped]
            log(f"the conversation has grown too long: its oldest {'turn is' if dropped == 1 else f'{dropped} turns are'} forgotten")
        return ids

    def _document(self, text: str) -> list[int]:
        """BOS and the text, of which only the end is read where it is too long."""
        ids = self.tokenizer.encode(text)
        limit = self.prompt_tokens - 1
        if len(ids) > limit:
            log(f"the text is {len(ids):,} tokens long: only its last {limit:,} are read")
        return [self.tokenizer.bos, *ids[max(len(ids) - limit, 0) :]]

    def _stream(self, ids: Sequence[int], answer: Answer) -> None:
        sampling = self.sampling
        steps = self.engine.generate(
            [ids],
            max_tokens=self.max_tokens,
            temperature=sampling.temperature,
            top_k=sampling.top_k,
            top_p=sampling.top_p,
            seed=sampling.seed,
        )
        count, began, calls = 0, time.monotonic(), 0
        ended = False
        try:
            for step in steps:
                for emitted in step:
                    count += 1
                    ended = emitted.token in self.tokenizer.ends
                    text = answer.push(emitted.token)
                    calls = self._show_call(answer, calls)
                    show(text, end="")
        finally:
            seconds = max(time.monotonic() - began, 1e-9)
            why = "ended by itself" if ended else "stopped or at its longest length"
            self.stats = f"last answer: {count:,} tokens in {seconds:.1f} s, {count / seconds:.0f} tokens/s, {why}"

    def _show_call(self, answer: Answer, shown: int) -> int:
        """Print a call of the calculator and its result, once the text after it has begun; returns how many parts have been looked at."""
        parts = answer.parts
        while shown < len(parts) - 1:
            one, after = parts[shown], parts[shown + 1]
            if self.shows_calls and (one["type"], after["type"]) == ("python", "python_output"):
                if shown + 2 > len(parts) - 1:
                    return shown  # the result is still coming
                show(f"[{one['text']} = {after['text']}] ", end="", code=DIM)
            shown += 1
        return shown
