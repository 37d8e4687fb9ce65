"""Ollama's API as far as it is a chat: GET /api/tags and /api/version, POST /api/chat, whole and streamed as lines of JSON.

https://github.com/ollama/ollama/blob/main/docs/api.md describes the shapes. A request becomes a chat request, without tools and images.
"""

import asyncio
import datetime
import json
import time
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Body, Request
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, ConfigDict, Field, StrictBool, model_validator

from nanochat.chat.api_errors import RESPONSES, ApiError
from nanochat.chat.delivery import EventStream, Submission, whole
from nanochat.chat.loading import LoadedModel
from nanochat.chat.prepare import PreparedRequest, prepare_chat
from nanochat.chat.scheduler import Delta
from nanochat.chat.schema import MAX_MESSAGES, MAX_STOPS, ChatRequest, Role, Text

VERSION = "0.5.0"  # of the API: clients ask for it to choose its shapes
ALL_TOKENS = 1_000_000  # num_predict of -1 and -2: until the answer ends or the context is full
# Fields that would change the answer -> the values that ask for nothing.
NOTHING: dict[str, tuple[Any, ...]] = {"tools": (None, []), "think": (None, False)}

router = APIRouter(prefix="/api", responses=RESPONSES)


class OllamaMessage(BaseModel):
    """A message; images and calls of tools are refused."""

    role: Role
    content: Text = ""
    images: Annotated[list[Any], Field(max_length=0)] | None = None
    tool_calls: Annotated[list[Any], Field(max_length=0)] | None = None


class Options(BaseModel):
    """Sampling options; others, which tune Ollama's own engine, are ignored."""

    model_config = ConfigDict(extra="ignore")

    temperature: float | None = Field(None, ge=0, le=2, allow_inf_nan=False)
    top_k: int | None = Field(None, ge=0, le=1_000_000)
    top_p: float | None = Field(None, gt=0, le=1, allow_inf_nan=False)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    num_predict: int | None = Field(None, ge=-2, le=ALL_TOKENS)
    stop: Annotated[list[Annotated[Text, Field(max_length=256)]], Field(max_length=MAX_STOPS)] | None = None


class OllamaRequest(BaseModel):
    """POST /api/chat."""

    model_config = ConfigDict(extra="ignore")

    model: Text
    messages: list[OllamaMessage] = Field(default=[], max_length=MAX_MESSAGES)
    options: Options | None = None
    format: Literal["", "json"] | dict[str, Any] | None = None  # a JSON schema, or any JSON object
    stream: StrictBool | None = None  # by default true, unlike OpenAI's

    @model_validator(mode="before")
    @classmethod
    def _refuse(cls, values: Any) -> Any:
        for name, nothing in NOTHING.items():
            if isinstance(values, dict) and name in values and values[name] not in nothing:
                raise ValueError(f"unsupported parameter: {name}")
        return values

    def as_chat(self) -> ChatRequest:
        """The same as a chat request."""
        options = self.options or Options.model_validate({})
        messages = [{"role": message.role, "content": message.content} for message in self.messages]
        count = ALL_TOKENS if options.num_predict in (-1, -2) else options.num_predict or None
        sampling = {"temperature": options.temperature, "top_k": options.top_k, "top_p": options.top_p, "seed": options.seed}
        form: dict[str, Any] | None = {"type": "json_object"} if self.format == "json" else None
        if isinstance(self.format, dict):
            form = {"type": "json_schema", "json_schema": {"schema": self.format}}
        return ChatRequest.model_validate(
            {"messages": messages, "max_tokens": count, "stop": options.stop, "response_format": form} | sampling
        )


class Lines(EventStream):
    """The deltas of an answer, a line of JSON each."""

    media_type = "application/x-ndjson"

    def __init__(self, submission: Submission, began: float):
        super().__init__(submission, include_usage=False)
        self.began = began

    async def _send_events(self, send: Any) -> None:
        prepared = self.submission.prepared
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        last: dict[str, Any] = {}
        try:
            async for delta in self.submission.deltas():
                if text := _text(delta):
                    await _line(send, _message(prepared.loaded, text))
                if delta.finish:
                    last = _message(prepared.loaded, "") | _end(prepared, delta, self.began)
        except ApiError as error:
            last = {"error": error.message}
        await _line(send, last)
        await send({"type": "http.response.body", "body": b""})


async def _line(send: Any, value: dict[str, Any]) -> None:
    data = json.dumps(value, ensure_ascii=False).encode("utf-8", "replace") + b"\n"
    await send({"type": "http.response.body", "body": data, "more_body": True})


@router.get("/version")
async def version() -> dict[str, str]:
    """The version of the API."""
    return {"version": VERSION}


@router.get("/tags")
async def tags(request: Request) -> dict[str, Any]:
    """The model that is served, if there is one."""
    current = request.app.state.services.scheduler.current
    return {"models": [_model(current)] if current else []}


@router.post("/chat")
async def chat(request: Request, body: Annotated[OllamaRequest, Body()]) -> Response:
    """Answer a conversation; without messages, say that the model is loaded."""
    services, began = request.app.state.services, time.monotonic()
    loaded = await services.asked(body.model)
    if not body.messages:
        return JSONResponse(_message(loaded, "") | {"done": True, "done_reason": "load"})
    prepared = await asyncio.to_thread(prepare_chat, body.as_chat(), loaded)
    submission = Submission(services.scheduler, prepared)
    if body.stream is not False:
        return Lines(submission, began)

    def answer(deltas: Sequence[Delta]) -> dict[str, Any]:
        return _message(loaded, "".join(map(_text, deltas))) | _end(prepared, deltas[-1], began)

    return await whole(submission, request, answer)


def _text(delta: Delta) -> str:
    return "".join(piece for piece in delta.pieces if isinstance(piece, str))


def _message(loaded: LoadedModel, text: str) -> dict[str, Any]:
    """A part of an answer."""
    now = datetime.datetime.now(datetime.UTC).isoformat()
    return {"model": loaded.name, "created_at": now, "message": {"role": "assistant", "content": text}, "done": False}


def _end(prepared: PreparedRequest, delta: Delta, began: float) -> dict[str, Any]:
    """The end of an answer: its reason and token counts; times in nanoseconds."""
    total = int((time.monotonic() - began) * 1e9)
    counts = {"prompt_eval_count": prepared.prompt_tokens, "eval_count": delta.completion_tokens}
    times = {"total_duration": total, "load_duration": 0, "prompt_eval_duration": 0, "eval_duration": total}
    return {"done": True, "done_reason": delta.finish or "stop"} | counts | times


def _model(loaded: LoadedModel) -> dict[str, Any]:
    """Ollama's model object."""
    modified = datetime.datetime.fromtimestamp(loaded.created, datetime.UTC).isoformat()
    details = {"format": "safetensors", "family": "nanochat", "families": ["nanochat"]}
    details |= {"parameter_size": f"{loaded.parameters / 1e6:.1f}M", "quantization_level": "F32"}
    about = {"name": loaded.name, "model": loaded.name, "modified_at": modified, "size": 4 * loaded.parameters, "digest": ""}
    return about | {"details": details}
