"""The routes that plan, start, stop and resume a training run. A server has them with `--allow-training` alone."""

import asyncio
from collections.abc import Callable
from typing import Annotated, Any

from fastapi import APIRouter, Body, Request

from nanochat.chat.api_errors import RESPONSES
from nanochat.chat.launch import Launcher
from nanochat.chat.launch_request import TrainingRequest

router = APIRouter(prefix="/api/train", responses=RESPONSES)


def _launcher(request: Request) -> Launcher:
    found: Launcher = request.app.state.services.launcher
    return found


@router.post("/plan")
async def plan(request: Request, body: Annotated[TrainingRequest, Body()]) -> dict[str, Any] | None:
    """The plan of a run, as `nanochat plan --json` prints it; null if a run began before it was made."""
    return await asyncio.to_thread(_launcher(request).plan, body)


@router.post("", status_code=202)
async def start(request: Request, body: Annotated[TrainingRequest, Body()]) -> dict[str, Any]:
    """Start a run."""
    return await _after(request, lambda: _launcher(request).start(body))


@router.post("/resume", status_code=202)
async def resume(request: Request) -> dict[str, Any]:
    """Run the last command again."""
    return await _after(request, _launcher(request).resume)


@router.post("/stop", status_code=202)
async def stop(request: Request) -> dict[str, Any]:
    """Ask the run to save a checkpoint and end."""
    return await _after(request, _launcher(request).stop)


async def _after(request: Request, act: Callable[[], None]) -> dict[str, Any]:
    """The launch's state after `act`."""

    def done() -> dict[str, Any]:
        act()
        return _launcher(request).state()

    return await asyncio.to_thread(done)
