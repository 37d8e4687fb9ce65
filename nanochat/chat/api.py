"""OpenAI's requests as answers for the scheduler, and deltas as OpenAI's responses. No HTTP here.

https://platform.openai.com/docs/api-reference/chat and /completions describe the shapes.
"""

import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from nanochat.chat.scheduler import Answering, Deliver, Delta, Served
from nanochat.chat.schema import ChatRequest, CompletionRequest, Message, Sampled
from nanochat.chat.stream import Call, TokenLogProb
from nanochat.errors import DataError, NanochatError, UsageError
from nanochat.generate.sampling import Sampling
from nanochat.tokenizer.conversation import Conversation

DEFAULT_MAX_TOKENS = 512  # of a chat's answer
COMPLETION_MAX_TOKENS = 16  # as OpenAI's


class ApiError(NanochatError):
    """An error in OpenAI's shape: HTTP status, type, code, and the parameter that caused it."""

    def __init__(self, status: int, message: str, code: str | None = None, param: str | None = None, retry_after: int | None = None):
        super().__init__(message)
        self.status, self.code, self.param, self.retry_after = status, code, param, retry_after

    def body(self) -> dict[str, Any]:
        """The response's JSON."""
        kind = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}.get(self.status)
        kind = kind or ("server_error" if self.status >= 500 else "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


@dataclass
class Prepared:
    """A request's answers, ready for the scheduler, and what its response says of itself."""

    kind: str  # chat.completion or text_completion
    served: Served
    prompts: list[list[int]]
    max_tokens: int
    sampling: Sampling
    answers_per_prompt: int
    stop: list[str]
    top: int | None
    dropped_turns: int = 0
    id: str = field(init=False)
    created: int = field(default_factory=lambda: int(time.time()))

    def __post_init__(self) -> None:
        self.id = ("chatcmpl-" if self.chat else "cmpl-") + secrets.token_hex(12)

    @property
    def chat(self) -> bool:
        """Whether it is a chat completion."""
        return self.kind == "chat.completion"

    @property
    def prompt_tokens(self) -> int:
        """Tokens of all prompts."""
        return sum(map(len, self.prompts))

    def answers(self, deliver: Deliver) -> list[Answering]:
        """The answers, numbered as OpenAI numbers its choices."""
        prompts = [prompt for prompt in self.prompts for _ in range(self.answers_per_prompt)]
        return [
            Answering(self.served, prompt, self.max_tokens, self.sampling, deliver, index, self.stop, self.top)
            for index, prompt in enumerate(prompts)
        ]


def prepare_chat(request: ChatRequest, served: Served) -> Prepared:
    """A chat request as ids. Raises ApiError. A base model, which was not taught to chat, continues the last message's text."""
    max_tokens = request.max_completion_tokens or request.max_tokens or DEFAULT_MAX_TOKENS
    room = max(served.context - max_tokens, served.context // 2)  # for the prompt; the answer gets at most half of the context
    conversation = _conversation(request.messages)
    try:
        if served.chats:
            ids, dropped = served.tokenizer.render_prompt(conversation, room)
        else:
            ids, dropped = [served.tokenizer.bos, *served.tokenizer.encode(_text(request.messages[-1]))[1 - room :]], 0
    except UsageError as error:
        raise ApiError(400, f"{error.message}; {error.hint}", "context_length_exceeded", "messages") from error
    except DataError as error:
        raise ApiError(400, error.message, "invalid_value", "messages") from error
    top = request.top_logprobs or 0 if request.logprobs else None
    if request.top_logprobs and not request.logprobs:
        raise ApiError(400, "top_logprobs needs logprobs to be true", "invalid_value", "top_logprobs")
    return Prepared("chat.completion", served, [ids], max_tokens, _sampling(request), request.n or 1, request.stops, top, dropped)


def prepare_completion(request: CompletionRequest, served: Served) -> Prepared:
    """A completion request as ids: BOS, then the prompt. Raises ApiError."""
    prompt = request.prompt
    many: list[Any] = [prompt] if isinstance(prompt, str) or (prompt and isinstance(prompt[0], int)) else list(prompt)
    if not many:
        raise ApiError(400, "there is no prompt", "invalid_value", "prompt")
    max_tokens = request.max_tokens or COMPLETION_MAX_TOKENS
    text_tokens = len(served.tokenizer.tokens)
    prompts = []
    for one in many:
        ids = served.tokenizer.encode(one) if isinstance(one, str) else one
        if not all(0 <= id < text_tokens for id in ids):
            raise ApiError(
                400, f"the ids of a prompt are from 0 to {text_tokens - 1}: special tokens are not for clients", "invalid_value", "prompt"
            )
        if len(ids) + 1 >= served.context:
            message = f"the prompt is {len(ids) + 1:,} tokens long, and this model's context is {served.context:,}"
            raise ApiError(400, message, "context_length_exceeded", "prompt")
        prompts.append([served.tokenizer.bos, *ids])
    return Prepared("text_completion", served, prompts, max_tokens, _sampling(request), request.n or 1, request.stops, request.logprobs)


def _sampling(request: Sampled) -> Sampling:
    seed = None if request.seed is None else request.seed % 2**63
    temperature = 1.0 if request.temperature is None else request.temperature
    return Sampling(temperature, request.top_k, 1.0 if request.top_p is None else request.top_p, seed)


def _conversation(messages: Sequence[Message]) -> Conversation:
    """OpenAI's messages as the tokenizer's conversation: one system message in front, neighbours of one role put together."""
    system = [_text(message) for message in messages if message.role in ("system", "developer")]
    conversation: Conversation = [{"role": "system", "content": "\n\n".join(system)}] if system else []
    for message in messages:
        if message.role in ("system", "developer"):
            continue
        content: Any = message.content
        if message.role == "user" or isinstance(content, str):
            content = _text(message)
        else:
            content = [{"type": part.type, "text": part.text} for part in content]
        if message.role == "user" and conversation and conversation[-1]["role"] == "user":
            conversation[-1]["content"] += "\n\n" + content
        else:
            conversation.append({"role": message.role, "content": content})
    return conversation


def _text(message: Message) -> str:
    content = message.content
    return content if isinstance(content, str) else "".join(part.text for part in content if part.type == "text")


# Responses


def chunk(prepared: Prepared, delta: Delta) -> list[dict[str, Any]]:
    """The chunks of a streamed response that `delta` makes; none where it adds nothing."""
    chunks = []
    for piece in delta.pieces:
        if prepared.chat:
            value: dict[str, Any] = {"content": piece} if isinstance(piece, str) else {"calculator": piece._asdict()}
            chunks.append(_chunk(prepared, {"index": delta.index, "delta": value, "finish_reason": None}))
        elif isinstance(piece, str):
            chunks.append(_chunk(prepared, {"index": delta.index, "text": piece, "finish_reason": None}))
    if delta.finish or (delta.log_probs and not chunks):  # at least one chunk that can carry them
        nothing: dict[str, Any] = {"delta": {}} if prepared.chat else {"text": ""}
        chunks.append(_chunk(prepared, {"index": delta.index, **nothing, "finish_reason": delta.finish}))
    if delta.log_probs:
        chunks[0]["choices"][0]["logprobs"] = _log_probs(prepared, delta.log_probs)
    return chunks


def first_chunks(prepared: Prepared) -> list[dict[str, Any]]:
    """What a streamed chat begins with: each answer's role, and how many turns no longer fitted."""
    count = len(prepared.prompts) * prepared.answers_per_prompt if prepared.chat else 0
    said = {"dropped_turns": prepared.dropped_turns} if prepared.dropped_turns else {}
    delta = {"role": "assistant", "content": ""}
    return [_chunk(prepared, {"index": index, "delta": delta, "finish_reason": None}) | said for index in range(count)]


def usage_chunk(prepared: Prepared, completion_tokens: int) -> dict[str, Any]:
    """The last chunk, where stream_options.include_usage asks for it."""
    return _head(prepared, streamed=True) | {"choices": [], "usage": usage(prepared, completion_tokens)}


def _chunk(prepared: Prepared, choice: dict[str, Any]) -> dict[str, Any]:
    return _head(prepared, streamed=True) | {"choices": [choice]}


def _head(prepared: Prepared, streamed: bool = False) -> dict[str, Any]:
    kind = "chat.completion.chunk" if streamed and prepared.chat else prepared.kind
    return {"id": prepared.id, "object": kind, "created": prepared.created, "model": prepared.served.name}


def usage(prepared: Prepared, completion_tokens: int) -> dict[str, int]:
    """Tokens read and written."""
    read = prepared.prompt_tokens
    return {"prompt_tokens": read, "completion_tokens": completion_tokens, "total_tokens": read + completion_tokens}


def response(prepared: Prepared, deltas: Sequence[Delta]) -> dict[str, Any]:
    """The whole response, from all deltas of all answers."""
    choices, total = [], 0
    for index in range(len(prepared.prompts) * prepared.answers_per_prompt):
        own = [delta for delta in deltas if delta.index == index]
        pieces = [piece for delta in own for piece in delta.pieces]
        text = "".join(piece for piece in pieces if isinstance(piece, str))
        calls = [piece._asdict() for piece in pieces if isinstance(piece, Call)]
        spoken: dict[str, Any] = {"text": text}
        if prepared.chat:
            spoken = {"message": {"role": "assistant", "content": text} | ({"calculator": calls} if calls else {})}
        wanted = [value for delta in own for value in delta.log_probs]
        choices.append(
            {
                "index": index,
                **spoken,
                "finish_reason": own[-1].finish,
                "logprobs": _log_probs(prepared, wanted) if prepared.top is not None else None,
            }
        )
        total += own[-1].completion_tokens
    said = {"dropped_turns": prepared.dropped_turns} if prepared.dropped_turns else {}
    return _head(prepared) | {"choices": choices, "usage": usage(prepared, total)} | said


def _log_probs(prepared: Prepared, values: Sequence[TokenLogProb]) -> dict[str, Any]:
    """OpenAI's two shapes: a list of objects for chats, parallel lists for completions."""

    def text(token: bytes) -> str:
        return token.decode("utf-8", "replace")

    if prepared.chat:
        return {
            "content": [
                {
                    "token": text(value.text),
                    "logprob": value.log_prob,
                    "bytes": list(value.text),
                    "top_logprobs": [{"token": text(token), "logprob": number, "bytes": list(token)} for token, number in value.top],
                }
                for value in values
            ]
        }
    return {
        "tokens": [text(value.text) for value in values],
        "token_logprobs": [value.log_prob for value in values],
        "top_logprobs": [{text(token): number for token, number in value.top} for value in values],
    }
