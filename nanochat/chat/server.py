"""The HTTP application: OpenAI's routes, probes, metrics, the page, and the run in training that the page shows.

A message goes through this package in this order:

    middleware.py   host, origin, API key, size and time of the body, concurrent requests
    server.py       the route, with schema.py checking the body's fields
    prepare.py      the conversation rendered to ids
    scheduler.py    a bounded queue, and one thread that generates by continuous batching (generate/batching.py)
    stream.py       ids to text, never half a character, with calculator calls and stop strings
    delivery.py     text to the client, as JSON or server-sent events in the shapes of responses.py
"""

import asyncio
import mimetypes
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Body, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException

from nanochat.chat import launch_api, ollama_api, responses_api, runs_api
from nanochat.chat.api_errors import RESPONSES, ApiError, shown
from nanochat.chat.complaints import complaint
from nanochat.chat.delivery import EventStream, Submission, whole
from nanochat.chat.launch import Launcher
from nanochat.chat.library import ModelLibrary
from nanochat.chat.loading import LoadedModel
from nanochat.chat.metrics import ServerMetrics
from nanochat.chat.middleware import MAY_KNOW, Limits, SecurityMiddleware
from nanochat.chat.prepare import PreparedRequest, prepare_chat, prepare_completion
from nanochat.chat.scheduler import Scheduler
from nanochat.chat.schema import REASONS, BaseRequest, ChatRequest, CompletionRequest
from nanochat.chat.suggestions import suggestions
from nanochat.chat.training import last_trained
from nanochat.console import command
from nanochat.runs.names import CheckpointName

WEB = Path(__file__).resolve().parent / "web"
ALIAS = "nanochat"  # a model's name that always means the one that is served
LATEST = ":latest"  # behind a model's name: Ollama's clients add it
# In the metrics: a bounded set, whatever is asked for.
COUNTED_PATHS = ("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/models")
SHOWN = ("stage", "step", "chats", "trial", "context", "parameters", "device")  # of the model, on the page


def _page_files() -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(WEB.iterdir()) if path.is_file()} if WEB.is_dir() else {}


@dataclass
class Services:
    """State of the routes. `look` returns {training, last, suggestions, launch} for the page."""

    scheduler: Scheduler
    metrics: ServerMetrics
    look: Callable[[], dict[str, Any]]
    runs: Path | None = None  # the directory of the runs
    library: ModelLibrary | None = None
    launcher: Launcher | None = None  # if runs may be started here
    readers: runs_api.Readers = field(default_factory=runs_api.Readers)
    page_files: dict[str, bytes] = field(default_factory=_page_files)
    _reading: "asyncio.Task[dict[str, Any]] | None" = None

    async def looked(self) -> dict[str, Any]:
        """The result of `look`, read in one thread for all concurrent requests, so that many tabs do not occupy all threads."""
        if self._reading is None or self._reading.done():
            self._reading = asyncio.create_task(asyncio.to_thread(self.look))
        return await asyncio.shield(self._reading)

    async def asked(self, name: str | None) -> LoadedModel:
        """The model that a request names: the one that answers, or another checkpoint. Raises ApiError."""
        name = name and name.removesuffix(LATEST)
        current = self.scheduler.current
        if self.library is None or name is None or name in ("", ALIAS):
            return self.loaded(name)
        return current if current and CheckpointName.parse(name).matches(current.checkpoint) else await self.library.get(name)

    def loaded(self, name: str | None = None) -> LoadedModel:
        """The model that answers. Raises ApiError if there is none, or if `name` is another."""
        current = self.scheduler.current
        if current is None:
            raise ApiError(503, f"there is no model yet; train one in minutes: {command()} quickstart", "model_not_ready", retry_after=5)
        if name and name.removesuffix(LATEST) not in (ALIAS, current.name):
            raise ApiError(404, f"the model {shown(str(name))} is not served here, {shown(current.name)} is", "model_not_found", "model")
        return current


def services(request: Request) -> Services:
    """The services of the application that received `request`."""
    found: Services = request.app.state.services
    return found


# ---- OpenAI's routes --------------------------------------------------------------------------------------------

openai = APIRouter(prefix="/v1", responses=RESPONSES)


@openai.post("/chat/completions")
async def chat_completions(request: Request, body: Annotated[ChatRequest, Body()]) -> Response:
    """Answer a conversation."""
    # In a thread: encoding a long text takes its time, without the interpreter's lock, and the event loop must not wait.
    prepared = await asyncio.to_thread(prepare_chat, body, await services(request).asked(body.model))
    return await respond(prepared, request, body)


@openai.post("/completions")
async def completions(request: Request, body: Annotated[CompletionRequest, Body()]) -> Response:
    """Continue a text."""
    prepared = await asyncio.to_thread(prepare_completion, body, await services(request).asked(body.model))
    return await respond(prepared, request, body)


@openai.post("/responses")
async def responses(request: Request, body: Annotated[responses_api.ResponsesRequest, Body()]) -> Response:
    """Answer messages in the shape of OpenAI's newer API."""
    prepared = await asyncio.to_thread(prepare_chat, body.as_chat(), await services(request).asked(body.model))
    return await responses_api.respond(body, prepared, Submission(services(request).scheduler, prepared), request)


async def respond(prepared: PreparedRequest, request: Request, body: BaseRequest) -> Response:
    """Submit a prepared request, and stream its answers or wait for all of them."""
    submission = Submission(services(request).scheduler, prepared)
    usage = body.stream_options is not None and bool(body.stream_options.include_usage)
    return EventStream(submission, usage) if body.stream else await whole(submission, request)


@openai.get("/models")
async def models(request: Request) -> dict[str, Any]:
    """The model that is served, if there is one."""
    current = services(request).scheduler.current
    return {"object": "list", "data": [_model(current)] if current else []}


@openai.get("/models/{name:path}")
async def model(request: Request, name: str) -> dict[str, Any]:
    """The model of that name."""
    return _model(services(request).loaded(name))


def _model(loaded: LoadedModel) -> dict[str, Any]:
    """OpenAI's model object, with what else is known."""
    about = {"id": loaded.name, "object": "model", "created": loaded.created, "owned_by": "nanochat"}
    return about | {"stage": loaded.stage, "step": loaded.step, "context_length": loaded.context, "trial": loaded.trial}


# ---- probes, metrics, page --------------------------------------------------------------------------------------

pages = APIRouter()


@pages.get("/healthz")
async def healthz() -> dict[str, str]:
    """Whether the server lives."""
    return {"status": "ok"}


@pages.get("/readyz", responses={503: RESPONSES[503]})
async def readyz(request: Request) -> dict[str, str]:
    """Whether there is a model to answer; its name only for those whom other paths would tell it."""
    name = services(request).loaded().name
    return {"status": "ready"} | ({"model": name} if request.scope.get(MAY_KNOW) else {})


@pages.get("/metrics", responses=RESPONSES)
async def metrics(request: Request) -> Response:
    """Prometheus' text format."""
    return Response(services(request).metrics.text(), media_type="text/plain; version=0.0.4")


@pages.get("/api/training", responses=RESPONSES)
async def training_view(request: Request) -> dict[str, Any]:
    """State for the page: the model that answers, the run in training, and a hint if there is neither."""
    found = await services(request).looked()
    current = services(request).scheduler.current
    about = {"run": current.name} | {name: getattr(current, name) for name in SHOWN} if current else None
    if about:
        about["suggestions"] = found["suggestions"]
    return {"model": about, **{name: found[name] for name in ("training", "last", "launch")}, "hint": f"{command()} quickstart"}


@pages.get("/", include_in_schema=False)
@pages.get("/web/{name}", include_in_schema=False)
async def page(request: Request, name: str = "index.html") -> Response:
    """A file of the page."""
    files = services(request).page_files
    if name not in files:
        raise HTTPException(404)
    return Response(files[name], media_type=mimetypes.guess_type(name)[0] or "application/octet-stream")


# ---- the application --------------------------------------------------------------------------------------------


def create_app(
    scheduler: Scheduler,
    metrics: ServerMetrics,
    limits: Limits,
    training: Callable[[], dict[str, Any] | None] = lambda: None,
    runs: Path | None = None,
    library: ModelLibrary | None = None,
    launcher: Launcher | None = None,
) -> SecurityMiddleware:
    """The ASGI application around a scheduler. `training` returns the run in training as the page shows it, None if there is none.

    `runs` is the directory of the runs; None: nothing is shown of them. `library` has the other checkpoints that may be asked for.
    `launcher` starts training runs; None: nobody may.
    """

    def look() -> dict[str, Any]:
        current = scheduler.current
        tries = suggestions(runs / current.name) if runs and current else []
        last = last_trained(runs) if runs else None
        return {"training": training(), "last": last, "suggestions": tries, "launch": launcher.state() if launcher else None}

    app = FastAPI(title="NanoChat Appliance", docs_url=None, redoc_url=None, lifespan=_lifespan)
    app.state.services = Services(scheduler, metrics, look, runs, library, launcher)
    app.include_router(openai)
    app.include_router(pages)
    app.include_router(runs_api.router)
    app.include_router(ollama_api.router)
    if launcher:
        app.include_router(launch_api.router)
    for kind in (ApiError, RequestValidationError, HTTPException):
        app.add_exception_handler(kind, _answer_error)

    def count(path: str, status: int) -> None:
        metrics.requests.labels(path if path in COUNTED_PATHS else "other", str(status)).inc()

    return SecurityMiddleware(app, limits, count)


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Run the engine's thread as long as the server; its deltas are delivered in the server's event loop."""
    scheduler: Scheduler = app.state.services.scheduler
    scheduler.publish = asyncio.get_running_loop().call_soon_threadsafe
    scheduler.start()
    yield
    await asyncio.to_thread(scheduler.stop)


async def _answer_error(_request: Request, error: Exception) -> Response:
    found = _as_api_error(error)
    return JSONResponse(found.body(), found.status, found.headers())


def _as_api_error(error: Exception) -> ApiError:
    """An exception of a route, of FastAPI or of the middleware in OpenAI's shape."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, RequestValidationError):
        return _explained(error)
    assert isinstance(error, HTTPException)
    cause = error.__cause__  # what the middleware raised while the body was read
    return cause if isinstance(cause, ApiError) else ApiError(error.status_code, str(error.detail))


def _explained(error: RequestValidationError) -> ApiError:
    """pydantic's complaint about a request in OpenAI's shape."""
    where, message = complaint(error.errors())
    if message.startswith("unsupported parameter: "):
        name = message.removeprefix("unsupported parameter: ")
        why = REASONS.get(name, "it changes the answer, and this server does not have it")
        return ApiError(400, f"{message}: {why} (docs/guides/chat-and-api.md)", "unsupported_parameter", name)
    return ApiError(400, f"{where}: {message}" if where else message, "invalid_value", re.split(r"[.[]", where)[0] or None)
