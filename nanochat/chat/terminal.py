"""Chat in the terminal: one answer for a prompt, or a conversation with history."""

import contextlib
import io
import sys
from collections.abc import Sequence

from nanochat.console import log, show
from nanochat.errors import UsageError
from nanochat.generate.engine import Answer, Engine
from nanochat.generate.sampling import Sampling
from nanochat.tokenizer.conversation import Conversation
from nanochat.tokenizer.tokenizer import Tokenizer

HELP = "Type a message and press Enter. /clear forgets the conversation, /quit or Ctrl-D leaves, Ctrl-C stops an answer."
COMPLETER = "this model has not been taught to chat: it continues your text instead"


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
) -> None:
    """Answer `prompt` on stdout and return; without one, converse until the user leaves or the input ends.

    chat_model=False, a model without fine-tuning, continues the user's text as a document, and says so on stderr.
    All messages go to stderr: stdout has the answers alone. Raises UsageError for a prompt that does not fit and for
    sampling values that cannot be.
    """
    for stream in (sys.stdin, sys.stdout):
        if isinstance(stream, io.TextIOWrapper):  # a terminal of another encoding shows ? for what it cannot show
            stream.reconfigure(errors="replace")
    talk = _Talk(engine, tokenizer, Sampling(temperature, top_k, seed=seed), max_tokens, chat_model)
    if not chat_model:
        log(COMPLETER)
    if prompt is not None:
        talk.say(_valid(prompt))
        return
    log(HELP)
    while (line := _read()) is not None:
        if line == "/quit":
            return
        if line == "/clear":
            talk.history.clear()
            log("the conversation is forgotten")
        elif line == "/help":
            log(HELP)
        elif line:
            try:
                talk.say(line)
            except KeyboardInterrupt:
                log("(interrupted)")
            except UsageError as error:  # too long a message: the conversation goes on
                log(f"error: {error.message}")
                log(f"hint: {error.hint}")


class _Talk:
    """A conversation: its history, and how answers are made."""

    def __init__(self, engine: Engine, tokenizer: Tokenizer, sampling: Sampling, max_tokens: int, chat_model: bool):
        self.engine, self.tokenizer, self.sampling = engine, tokenizer, sampling
        self.max_tokens, self.chat_model = max_tokens, chat_model
        self.history: Conversation = []
        # The rest of the context is the answer's, but never more than half of it.
        self.prompt_tokens = max(engine.context - max_tokens, engine.context // 2)

    def say(self, text: str) -> None:
        """Print the answer to `text` as it comes, and a newline. An interrupted answer enters the history as far as it came."""
        ids = self._ask(text) if self.chat_model else self._document(text)
        answer = Answer(self.tokenizer)
        try:
            self._stream(ids, answer)
        finally:
            show(answer.flush(), end="")
            show("" if answer.text.endswith("\n") else "\n", end="")
            if self.chat_model and answer.parts:
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
        for step in steps:
            for emitted in step:
                show(answer.push(emitted.token), end="")


def _valid(text: str) -> str:
    """`text` with U+FFFD for what UTF-8 cannot hold: bytes of another encoding may arrive as lone surrogates."""
    return text.encode("utf-8", "surrogatepass").decode("utf-8", "replace")


def _read() -> str | None:
    """The next line without its ends, or None at the end of the input. '> ' invites where a person types."""
    if not sys.stdin.isatty():
        line = sys.stdin.readline()
        return _valid(line).strip() if line else None
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  (gives input() editing and a history)
    while True:
        try:
            return _valid(input("> ")).strip()
        except EOFError:
            log()
            return None
        except KeyboardInterrupt:
            log()
            log("(/quit or Ctrl-D leaves)")
