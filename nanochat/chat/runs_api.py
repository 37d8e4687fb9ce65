"""The runs on disk for the page and for programs: the list, one run's report, its page, and the checkpoints that can be asked for."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from fastapi import APIRouter, Request
from fastapi.responses import Response

from nanochat.chat.api_errors import RESPONSES, ApiError, shown
from nanochat.chat.training import read_samples
from nanochat.console import printable
from nanochat.errors import NanochatError
from nanochat.report.collect import collect
from nanochat.report.html import page
from nanochat.runs.listing import list_runs, summary
from nanochat.runs.metrics import SAMPLES
from nanochat.runs.names import plain_name

router = APIRouter(prefix="/api", responses=RESPONSES)
Value = TypeVar("Value")
AT_ONCE = 2  # threads that read runs: many tabs must not take all threads


class Readers:
    """Reads of the disk, a few at once, each of them one for all who ask for the same meanwhile."""

    def __init__(self) -> None:
        self._free = asyncio.Semaphore(AT_ONCE)
        self._tasks: dict[str, asyncio.Task[Any]] = {}

    async def read(self, key: str, function: Callable[[], Value]) -> Value:
        """The result of `function`, called in a thread."""
        if key not in self._tasks:
            task = asyncio.create_task(self._call(function))
            task.add_done_callback(lambda _: self._tasks.pop(key, None))
            self._tasks[key] = task
        found: Value = await asyncio.shield(self._tasks[key])
        return found

    async def _call(self, function: Callable[[], Value]) -> Value:
        async with self._free:
            return await asyncio.to_thread(function)


def _services(request: Request) -> Any:
    return request.app.state.services


def _run(request: Request, name: str) -> Path:
    """The directory of a run. Raises ApiError where there is none of that name."""
    runs = _services(request).runs
    try:
        folder = runs / plain_name(name) if runs else None
        if folder and folder.is_dir() and not folder.is_symlink():
            return Path(folder)
    except (NanochatError, OSError, ValueError):
        pass
    raise ApiError(404, f"there is no run {shown(name)}", "run_not_found")


@router.get("/runs")
async def runs(request: Request) -> dict[str, Any]:
    """All runs, the newest first, as `nanochat runs --json` prints them."""
    folder = _services(request).runs
    return {"runs": await _services(request).readers.read("runs", lambda: list_runs(folder)) if folder else []}


@router.get("/runs/{name}")
async def run(request: Request, name: str) -> dict[str, Any]:
    """One run: its summary, its report as report.json has it, and what the model said while it was trained."""
    folder = _run(request, name)

    def read() -> dict[str, Any]:
        return {"run": summary(folder), "report": collect(folder), "samples": read_samples(folder / SAMPLES)}

    found: dict[str, Any] = await _services(request).readers.read(f"run {folder.name}", read)
    if found["run"] is None:
        raise ApiError(404, f"there is no run {shown(name)}", "run_not_found")
    return found


@router.get("/runs/{name}/report.html")
async def report_page(request: Request, name: str) -> Response:
    """A run's report as one file to keep. It runs nothing and loads nothing; browsers are told to save it, not to show it."""
    folder = _run(request, name)
    text = await _services(request).readers.read(f"page {folder.name}", lambda: printable(page(collect(folder))))
    return Response(text.encode("utf-8", "replace"), media_type="text/html", headers={"content-disposition": "attachment"})


@router.get("/models")
async def models(request: Request) -> dict[str, Any]:
    """The checkpoints that a request's `model` may name, and the one that answers where it names none."""
    services = _services(request)
    current = services.scheduler.current
    found = await services.readers.read("models", services.library.list) if services.library else []
    return {"models": found, "default": str(current.checkpoint) if current else None}
