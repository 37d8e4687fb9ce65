"""Deltas become OpenAI's JSON: the chunks of a stream, or one whole response. delivery.py sends them to the client.

https://platform.openai.com/docs/api-reference/chat and /completions describe the shapes.
"""

from collections.abc import Sequence
from typing import Any

from nanochat.chat.prepare import PreparedRequest
from nanochat.chat.scheduler import Delta
from nanochat.chat.stream import Call, TokenLogProb


def chunks_of(prepared: PreparedRequest, delta: Delta) -> list[dict[str, Any]]:
    """The chunks of a streamed response for `delta`; none if it adds nothing."""
    chunks = []
    for piece in delta.pieces:
        if prepared.chat:
            value: dict[str, Any] = {"content": piece} if isinstance(piece, str) else {"calculator": piece._asdict()}
            if prepared.tool:
                value = {"tool_calls": [{"index": 0, "function": {"arguments": piece}}]}
            chunks.append(_chunk(prepared, {"index": delta.index, "delta": value, "finish_reason": None}))
        elif isinstance(piece, str):
            chunks.append(_chunk(prepared, {"index": delta.index, "text": piece, "finish_reason": None}))
    if delta.finish or (delta.log_probs and not chunks):  # at least one chunk that can carry them
        nothing: dict[str, Any] = {"delta": {}} if prepared.chat else {"text": ""}
        chunks.append(_chunk(prepared, {"index": delta.index, **nothing, "finish_reason": _finish(prepared, delta)}))
    if delta.log_probs:
        chunks[0]["choices"][0]["logprobs"] = _log_probs(prepared, delta.log_probs)
    return chunks


def first_chunks(prepared: PreparedRequest) -> list[dict[str, Any]]:
    """The first chunks of a streamed chat: each answer's role, which checkpoint answers, how many turns of the history were dropped."""
    count = prepared.choices if prepared.chat else 0
    more: dict[str, Any] = {"checkpoint": {"stage": prepared.loaded.stage, "step": prepared.loaded.step}}
    if prepared.dropped_turns:
        more["dropped_turns"] = prepared.dropped_turns
    deltas = [_call(prepared, index, "") if prepared.tool else {"role": "assistant", "content": ""} for index in range(count)]
    return [_chunk(prepared, {"index": index, "delta": delta, "finish_reason": None}) | more for index, delta in enumerate(deltas)]


def _call(prepared: PreparedRequest, index: int, arguments: str) -> dict[str, Any]:
    """The message of answer `index` that calls the request's tool."""
    call = {"id": f"call_{prepared.id[-24:]}{index}", "type": "function", "function": {"name": prepared.tool, "arguments": arguments}}
    return {"role": "assistant", "content": None, "tool_calls": [{"index": 0} | call]}


def _finish(prepared: PreparedRequest, delta: Delta) -> str | None:
    """OpenAI's word for the reason why an answer ended."""
    return "tool_calls" if prepared.tool and delta.finish == "stop" else delta.finish


def usage_chunk(prepared: PreparedRequest, completion_tokens: int) -> dict[str, Any]:
    """The last chunk, if stream_options.include_usage asks for it."""
    return _head(prepared, streamed=True) | {"choices": [], "usage": usage(prepared, completion_tokens)}


def _chunk(prepared: PreparedRequest, choice: dict[str, Any]) -> dict[str, Any]:
    return _head(prepared, streamed=True) | {"choices": [choice]}


def _head(prepared: PreparedRequest, streamed: bool = False) -> dict[str, Any]:
    kind = "chat.completion.chunk" if streamed and prepared.chat else prepared.kind
    return {"id": prepared.id, "object": kind, "created": prepared.created, "model": prepared.loaded.name}


def usage(prepared: PreparedRequest, completion_tokens: int) -> dict[str, int]:
    """The tokens of prompts and answers."""
    read = prepared.prompt_tokens
    return {"prompt_tokens": read, "completion_tokens": completion_tokens, "total_tokens": read + completion_tokens}


def whole_response(prepared: PreparedRequest, deltas: Sequence[Delta]) -> dict[str, Any]:
    """The whole response, from all deltas of all answers."""
    choices, total = [], 0
    for index in range(prepared.choices):
        own = [delta for delta in deltas if delta.index == index]
        pieces = [piece for delta in own for piece in delta.pieces]
        text = "".join(piece for piece in pieces if isinstance(piece, str))
        calls = [piece._asdict() for piece in pieces if isinstance(piece, Call)]
        spoken: dict[str, Any] = {"text": text}
        if prepared.tool:
            spoken = {"message": _call(prepared, index, text)}
        elif prepared.chat:
            spoken = {"message": {"role": "assistant", "content": text} | ({"calculator": calls} if calls else {})}
        wanted = [value for delta in own for value in delta.log_probs]
        choices.append(
            {
                "index": index,
                **spoken,
                "finish_reason": _finish(prepared, own[-1]),
                "logprobs": _log_probs(prepared, wanted) if prepared.top is not None else None,
            }
        )
        total += own[-1].completion_tokens
    dropped = {"dropped_turns": prepared.dropped_turns} if prepared.dropped_turns else {}
    return _head(prepared) | {"choices": choices, "usage": usage(prepared, total)} | dropped


def _log_probs(prepared: PreparedRequest, values: Sequence[TokenLogProb]) -> dict[str, Any]:
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
                    "top_logprobs": [{"token": text(token), "logprob": number, "bytes": list(token)} for token, number in value.top or []],
                }
                for value in values
            ]
        }
    return {
        "tokens": [text(value.text) for value in values],
        "token_logprobs": [value.log_prob for value in values],
        # Of tokens that read the same (parts of a character), the likeliest stays.
        "top_logprobs": [value.top and {text(token): number for token, number in reversed(value.top)} for value in values],
    }
