"""The HTTP application: OpenAI's routes, probes, metrics, the page, and what the page shows of a training."""

import asyncio
import json
import mimetypes
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Annotated, Any

from fastapi import Body, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException

from nanochat.chat import api
from nanochat.chat.api import ApiError, Prepared
from nanochat.chat.metrics import Meters
from nanochat.chat.middleware import Gate, Limits, headers_of
from nanochat.chat.scheduler import Answering, Busy, Delta, Scheduler, Served
from nanochat.chat.schema import ChatRequest, CompletionRequest, Sampled

WEB = Path(__file__).resolve().parent / "web"
ALIAS = "nanochat"  # a model's name that always means the one that is served
HINT = "python entrypoint.py quickstart"  # minutes, on any machine
ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"description": text}
    for status, text in {
        400: "The request cannot be answered",
        401: "A key is needed",
        403: "Host or origin not allowed",
        404: "No such model or path",
        408: "The body came too slowly",
        413: "The body is too large",
        429: "Too many requests; Retry-After says when",
        503: "No model yet, or the engine failed",
    }.items()
}


class Job:
    """One request in the scheduler's hands: its deltas in order, and whether its client still waits."""

    def __init__(self, scheduler: Scheduler, prepared: Prepared):
        self.prepared = prepared
        self._scheduler = scheduler
        self._deltas: asyncio.Queue[Delta] = asyncio.Queue()
        self._answers: list[Answering] = prepared.answers(self._deltas.put_nowait)
        try:
            scheduler.submit(self._answers)
        except Busy as busy:
            raise ApiError(429, f"{busy.message}: {busy.hint}", "queue_full", retry_after=2) from busy

    async def deltas(self) -> AsyncIterator[Delta]:
        """Every answer's deltas as they come. Raises ApiError where the engine gave up."""
        left = len(self._answers)
        while left:
            delta = await self._deltas.get()
            if delta.finish == "error":
                raise ApiError(503, delta.error, "engine_failed", retry_after=2)
            left -= delta.finish is not None
            yield delta

    def cancel(self) -> None:
        """Free the slots of what is not done."""
        self._scheduler.cancel(self._answers)


class EventStream(Response):
    """Server-sent events of one job. The client's leaving ends the job."""

    media_type = "text/event-stream"

    def __init__(self, job: Job, include_usage: bool):
        super().__init__(headers={"x-accel-buffering": "no"})
        del self.headers["content-length"]
        self.job, self.include_usage = job, include_usage

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Send the events until the job is done or its client has left."""
        sending = asyncio.ensure_future(self._send(send))
        leaving = asyncio.ensure_future(_left(receive))
        try:
            await asyncio.wait((sending, leaving), return_when=asyncio.FIRST_COMPLETED)
            if sending.done():
                sending.result()
        finally:
            self.job.cancel()
            for task in (sending, leaving):
                task.cancel()
                with suppress(asyncio.CancelledError, Exception):
                    await task

    async def _send(self, send: Any) -> None:
        async def event(*values: dict[str, Any]) -> None:
            text = "".join(f"data: {json.dumps(value, ensure_ascii=False)}\n\n" for value in values)
            await send({"type": "http.response.body", "body": text.encode("utf-8", "replace"), "more_body": True})

        prepared, total = self.job.prepared, 0
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        if first := api.first_chunks(prepared):
            await event(*first)
        try:
            async for delta in self.job.deltas():
                if chunks := api.chunk(prepared, delta):
                    await event(*chunks)
                total += delta.completion_tokens if delta.finish else 0
            if self.include_usage:
                await event(api.usage_chunk(prepared, total))
            end = b"data: [DONE]\n\n"
        except ApiError as error:
            await event(error.body())
            end = b""
        await send({"type": "http.response.body", "body": end})


async def _left(receive: Any) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _whole(job: Job, request: Request) -> Response:
    """The response of a job that is not streamed; nothing where its client has left."""

    async def collect() -> dict[str, Any]:
        return api.response(job.prepared, [delta async for delta in job.deltas()])

    collecting, leaving = asyncio.ensure_future(collect()), asyncio.ensure_future(_left(request.receive))
    try:
        await asyncio.wait((collecting, leaving), return_when=asyncio.FIRST_COMPLETED)
        return JSONResponse(collecting.result()) if collecting.done() else Response(status_code=499)
    finally:
        job.cancel()
        for task in (collecting, leaving):
            task.cancel()


def _failed(error: ApiError) -> JSONResponse:
    return JSONResponse(error.body(), error.status, dict(headers_of(error)))


def _explained(error: RequestValidationError) -> ApiError:
    """pydantic's first complaint in OpenAI's shape."""
    first = error.errors()[0]
    where = [str(part) for part in first["loc"] if part != "body" and first["type"] != "json_invalid"]
    message = first["msg"].removeprefix("Value error, ")
    if message.startswith("unsupported parameter: "):
        name = message.removeprefix("unsupported parameter: ")
        return ApiError(400, f"{message}; see docs/API.md", "unsupported_parameter", name)
    return ApiError(400, f"{'.'.join(where)}: {message}" if where else message, "invalid_value", where[0] if where else None)


def create_app(
    scheduler: Scheduler,
    meters: Meters,
    limits: Limits,
    training: Callable[[], dict[str, Any] | None] = lambda: None,
) -> Gate:
    """The ASGI application around a scheduler. `training` tells what the page shows of a running training."""

    @asynccontextmanager
    async def life(_app: FastAPI) -> AsyncIterator[None]:
        scheduler.publish = asyncio.get_running_loop().call_soon_threadsafe
        scheduler.start()
        yield
        await asyncio.to_thread(scheduler.stop)

    app = FastAPI(title="NanoChat Appliance", docs_url=None, redoc_url=None, lifespan=life)

    def served(name: str | None = None) -> Served:
        current = scheduler.current
        if current is None:
            raise ApiError(503, f"there is no model yet; this trains one in minutes: {HINT}", "model_not_ready", retry_after=5)
        if name not in (None, "", ALIAS, current.name):
            raise ApiError(404, f"the model {name!r} is not served here, {current.name!r} is", "model_not_found", "model")
        return current

    async def respond(prepared: Prepared, request: Request, body: Sampled) -> Response:
        job = Job(scheduler, prepared)
        usage = body.stream_options is not None and bool(body.stream_options.include_usage)
        return EventStream(job, usage) if body.stream else await _whole(job, request)

    @app.post("/v1/chat/completions", responses=ERRORS)
    async def chat_completions(request: Request, body: Annotated[ChatRequest, Body()]) -> Response:
        """Answer a conversation."""
        # Encoding a long text takes its time, without the interpreter's lock: the loop goes on meanwhile.
        prepared = await asyncio.to_thread(api.prepare_chat, body, served(body.model))
        return await respond(prepared, request, body)

    @app.post("/v1/completions", responses=ERRORS)
    async def completions(request: Request, body: Annotated[CompletionRequest, Body()]) -> Response:
        """Continue a text."""
        prepared = await asyncio.to_thread(api.prepare_completion, body, served(body.model))
        return await respond(prepared, request, body)

    @app.get("/v1/models", responses=ERRORS)
    async def models() -> dict[str, Any]:
        """The model that is served, if there is one."""
        return {"object": "list", "data": [_model(scheduler.current)] if scheduler.current else []}

    @app.get("/v1/models/{name:path}", responses=ERRORS)
    async def model(name: str) -> dict[str, Any]:
        """The model of that name."""
        return _model(served(name))

    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        """Whether the server lives."""
        return {"status": "ok"}

    @app.get("/readyz", responses={503: ERRORS[503]})
    async def readyz() -> dict[str, str]:
        """Whether there is a model to answer."""
        return {"status": "ready", "model": served().name}

    @app.get("/metrics", responses=ERRORS)
    async def metrics() -> Response:
        """Prometheus' text format."""
        return Response(meters.text(), media_type="text/plain; version=0.0.4")

    @app.get("/api/training", responses=ERRORS)
    async def training_view() -> dict[str, Any]:
        """What the page shows: the model that answers, the training that runs, and what to do where there is neither."""
        current = scheduler.current
        names = ("stage", "step", "chats", "trial", "context", "parameters", "device")
        about = {"run": current.name} | {name: getattr(current, name) for name in names} if current else None
        return {"model": about, "training": await asyncio.to_thread(training), "hint": HINT}

    files = {path.name: path.read_bytes() for path in sorted(WEB.iterdir()) if path.is_file()} if WEB.is_dir() else {}

    @app.get("/", include_in_schema=False)
    @app.get("/web/{name}", include_in_schema=False)
    async def page(name: str = "index.html") -> Response:
        if name not in files:
            raise HTTPException(404)
        return Response(files[name], media_type=mimetypes.guess_type(name)[0] or "application/octet-stream")

    @app.exception_handler(ApiError)
    async def api_error(_request: Request, error: ApiError) -> Response:
        return _failed(error)

    @app.exception_handler(RequestValidationError)
    async def invalid(_request: Request, error: RequestValidationError) -> Response:
        return _failed(_explained(error))

    @app.exception_handler(HTTPException)
    async def http_error(_request: Request, error: HTTPException) -> Response:
        cause = error.__cause__  # what the gate raised while the body was read
        return _failed(cause if isinstance(cause, ApiError) else ApiError(error.status_code, str(error.detail)))

    paths = {"/v1/chat/completions", "/v1/completions", "/v1/models"}  # a bounded set, whatever is asked for
    return Gate(app, limits, lambda path, status: meters.requests.labels(path if path in paths else "other", str(status)).inc())


def _model(served: Served) -> dict[str, Any]:
    """OpenAI's model object, with what else is known."""
    about = {"id": served.name, "object": "model", "created": served.created, "owned_by": "nanochat"}
    return about | {"stage": served.stage, "step": served.step, "context_length": served.context, "trial": served.trial}
