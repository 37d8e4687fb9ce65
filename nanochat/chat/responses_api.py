"""OpenAI's Responses API, as far as it is an answer to messages: POST /v1/responses, whole and streamed, without tools or stored state.

https://platform.openai.com/docs/api-reference/responses describes the shapes. A request becomes a chat request, and its deltas the
output text of one message.
"""

import json
import secrets
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal

from fastapi import Request
from fastapi.responses import Response
from pydantic import BaseModel, ConfigDict, Field, StrictBool, model_validator

from nanochat.chat.api_errors import ApiError
from nanochat.chat.delivery import EventStream, Submission, whole
from nanochat.chat.prepare import PreparedRequest
from nanochat.chat.scheduler import Delta
from nanochat.chat.schema import MAX_MESSAGES, REFUSED, ChatRequest, Role, Text

# Fields of this API that would change the answer -> the values that ask for nothing.
STATEFUL: dict[str, tuple[Any, ...]] = {
    "previous_response_id": (None,),
    "conversation": (None,),
    "background": (None, False),
    "prompt": (None,),
    "truncation": (None, "auto", "disabled"),
}


class InputPart(BaseModel):
    """A part of a message's content."""

    type: Literal["input_text", "output_text", "text"]
    text: Text


class InputMessage(BaseModel):
    """A message of the conversation, or one that an earlier response had in its output."""

    type: Literal["message"] = "message"
    role: Role
    content: Text | Annotated[list[InputPart], Field(max_length=256)]


class TextFormat(BaseModel):
    """The form of the answer, as `response_format` of chat completions with the schema's fields beside its type."""

    type: Literal["text", "json_object", "json_schema"]
    value: dict[str, Any] | None = Field(None, alias="schema")
    strict: StrictBool | None = None

    @model_validator(mode="after")
    def _has_its_schema(self) -> "TextFormat":
        if self.type == "json_schema" and self.value is None:
            raise ValueError("the type json_schema needs the field schema")
        return self

    def as_chat(self) -> dict[str, Any]:
        """The same as `response_format`."""
        return {"type": self.type} | ({"json_schema": {"schema": self.value, "strict": self.strict}} if self.value is not None else {})


class TextOptions(BaseModel):
    """Options of the answer's text."""

    format: TextFormat | None = None


class ResponsesRequest(BaseModel):
    """POST /v1/responses."""

    model_config = ConfigDict(extra="ignore")

    model: Text | None = None
    input: Text | Annotated[list[InputMessage], Field(min_length=1, max_length=MAX_MESSAGES)]
    instructions: Text | None = None
    max_output_tokens: int | None = Field(None, ge=1, le=1_000_000)
    temperature: float | None = Field(None, ge=0, le=2, allow_inf_nan=False)
    top_p: float | None = Field(None, gt=0, le=1, allow_inf_nan=False)
    text: TextOptions | None = None
    stream: StrictBool | None = None

    @model_validator(mode="before")
    @classmethod
    def _refuse(cls, values: Any) -> Any:
        for name, nothing in (REFUSED | STATEFUL).items():
            if isinstance(values, dict) and name in values and values[name] not in nothing:
                raise ValueError(f"unsupported parameter: {name}")
        return values

    def as_chat(self) -> ChatRequest:
        """The same as a chat request."""
        messages = [{"role": "system", "content": self.instructions}] if self.instructions else []
        if isinstance(self.input, str):
            messages.append({"role": "user", "content": self.input})
        else:
            for message in self.input:
                content = message.content if isinstance(message.content, str) else "".join(part.text for part in message.content)
                messages.append({"role": message.role, "content": content})
        sampling = {"max_tokens": self.max_output_tokens, "temperature": self.temperature, "top_p": self.top_p}
        form = self.text.format.as_chat() if self.text and self.text.format else None
        return ChatRequest.model_validate({"model": self.model, "messages": messages, "response_format": form} | sampling)


class Answer:
    """The response object of one request while its text comes."""

    def __init__(self, asked: ResponsesRequest, prepared: PreparedRequest):
        self.asked, self.prepared = asked, prepared
        self.id, self.item = f"resp_{secrets.token_hex(12)}", f"msg_{secrets.token_hex(12)}"
        self.text, self.finish, self.tokens = "", "", 0

    def add(self, delta: Delta) -> str:
        """Take in a delta; returns its text."""
        new = "".join(piece for piece in delta.pieces if isinstance(piece, str))
        self.text += new
        if delta.finish:
            self.finish, self.tokens = delta.finish, delta.completion_tokens
        return new

    @property
    def status(self) -> str:
        """in_progress, completed, or incomplete where the tokens did not suffice."""
        return {"": "in_progress", "length": "incomplete"}.get(self.finish, "completed")

    def part(self, text: str) -> dict[str, Any]:
        """The message's content."""
        return {"type": "output_text", "text": text, "annotations": []}

    def message(self) -> dict[str, Any]:
        """The output's one item."""
        content = [self.part(self.text)] if self.finish else []
        return {"id": self.item, "type": "message", "status": self.status, "role": "assistant", "content": content}

    def body(self) -> dict[str, Any]:
        """The response object as it is now."""
        read = self.prepared.prompt_tokens
        usage = {
            "input_tokens": read,
            "input_tokens_details": {"cached_tokens": 0},
            "output_tokens": self.tokens,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": read + self.tokens,
        }
        return {
            "id": self.id,
            "object": "response",
            "created_at": self.prepared.created,
            "status": self.status,
            "model": self.prepared.loaded.name,
            "output": [self.message()] if self.finish else [],
            "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if self.finish == "length" else None,
            "instructions": self.asked.instructions,
            "max_output_tokens": self.asked.max_output_tokens,
            "temperature": self.prepared.sampling.temperature,
            "top_p": self.prepared.sampling.top_p,
            "parallel_tool_calls": False,
            "tool_choice": "none",
            "tools": [],
            "metadata": {},
            "usage": usage if self.finish else None,
        }

    def first_events(self) -> Iterator[dict[str, Any]]:
        """The events before the first text."""
        yield {"type": "response.created", "response": self.body()}
        yield {"type": "response.in_progress", "response": self.body()}
        yield {"type": "response.output_item.added", "output_index": 0, "item": self.message()}
        yield self._of_part("response.content_part.added", part=self.part(""))

    def text_event(self, text: str) -> dict[str, Any]:
        """The event of a piece of text."""
        return self._of_part("response.output_text.delta", delta=text, logprobs=[])

    def last_events(self) -> Iterator[dict[str, Any]]:
        """The events after the last text."""
        yield self._of_part("response.output_text.done", text=self.text, logprobs=[])
        yield self._of_part("response.content_part.done", part=self.part(self.text))
        yield {"type": "response.output_item.done", "output_index": 0, "item": self.message()}
        yield {"type": f"response.{self.status}", "response": self.body()}

    def _of_part(self, kind: str, **more: Any) -> dict[str, Any]:
        return {"type": kind, "item_id": self.item, "output_index": 0, "content_index": 0} | more


class ResponseStream(EventStream):
    """The events of a response, each with its type as the event's name and a number."""

    def __init__(self, submission: Submission, answer: Answer):
        super().__init__(submission, include_usage=False)
        self.answer, self.number = answer, 0

    async def _send_events(self, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        await self._send(send, *self.answer.first_events())
        try:
            async for delta in self.submission.deltas():
                if text := self.answer.add(delta):
                    await self._send(send, self.answer.text_event(text))
            await self._send(send, *self.answer.last_events())
        except ApiError as error:
            await self._send(send, {"type": "error", "code": error.code, "message": error.message, "param": error.param})
        await send({"type": "http.response.body", "body": b""})

    async def _send(self, send: Any, *events: dict[str, Any]) -> None:
        lines = []
        for event in events:
            data = json.dumps(event | {"sequence_number": self.number}, ensure_ascii=False)
            lines.append(f"event: {event['type']}\ndata: {data}\n\n")
            self.number += 1
        await send({"type": "http.response.body", "body": "".join(lines).encode("utf-8", "replace"), "more_body": True})


async def respond(asked: ResponsesRequest, prepared: PreparedRequest, submission: Submission, request: Request) -> Response:
    """The response to a prepared request, streamed or whole."""
    answer = Answer(asked, prepared)
    if asked.stream:
        return ResponseStream(submission, answer)

    def body(deltas: Sequence[Delta]) -> dict[str, Any]:
        for delta in deltas:
            answer.add(delta)
        return answer.body()

    return await whole(submission, request, body)
