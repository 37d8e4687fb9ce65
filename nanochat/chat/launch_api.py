"""The routes that plan, start, stop and resume a training run. A server has them with `--allow-training` alone."""

import asyncio
import contextlib
import json
import subprocess
import sys
import threading
from collections import OrderedDict
from typing import Annotated, Any

from fastapi import APIRouter, Body, Request

from nanochat.chat.api_errors import RESPONSES, ApiError
from nanochat.chat.launch import Launcher, TrainingRequest, last_words

router = APIRouter(prefix="/api/train", responses=RESPONSES)
PLAN_SECONDS = 240.0  # of a plan, which measures some steps: that has 180 s itself
PLANS_KEPT = 32
WAITING = 4  # plans that may wait for another one


class Planner:
    """The plan of a run, by `nanochat plan --json` in a process of its own, one at a time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting = 0
        self._process: subprocess.Popen[str] | None = None
        self._plans: OrderedDict[tuple[str, ...], dict[str, Any]] = OrderedDict()

    def plan(self, request: TrainingRequest) -> dict[str, Any]:
        """The plan. Raises ApiError (400, with the command's error and hint) where there is none."""
        arguments = request.plan_arguments
        if self._waiting >= WAITING:
            raise ApiError(429, "other plans are being made", "too_many_requests", retry_after=2)
        self._waiting += 1
        try:
            with self._lock:
                found = self._plans.get(tuple(arguments)) or self._run(arguments)
        finally:
            self._waiting -= 1
        self._plans[tuple(arguments)] = found
        while len(self._plans) > PLANS_KEPT:
            self._plans.popitem(last=False)
        return found

    def end(self) -> None:
        """End the plan that is being made: its measurement and a run would slow each other."""
        if (process := self._process) is not None:
            process.kill()

    def _run(self, arguments: list[str]) -> dict[str, Any]:
        command = [sys.executable, "-m", "nanochat", *arguments]
        with subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, errors="replace"
        ) as process:
            self._process = process
            try:
                out, messages = process.communicate(timeout=PLAN_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                raise ApiError(503, f"the plan took more than {PLAN_SECONDS:g} s", "plan_failed") from None
            finally:
                self._process = None
        with contextlib.suppress(ValueError):
            found = json.loads(out)
            if process.returncode == 0 and isinstance(found, dict):
                return found
        error, hint = last_words(messages.splitlines())
        raise ApiError(400, "; ".join(filter(None, (error or "the plan was interrupted", hint))), "plan_failed")


def _launcher(request: Request) -> Launcher:
    found: Launcher = request.app.state.services.launcher
    return found


def _planner(request: Request) -> Planner:
    found: Planner = request.app.state.services.planner
    return found


@router.post("/plan")
async def plan(request: Request, body: Annotated[TrainingRequest, Body()]) -> dict[str, Any]:
    """What the run would need and take, as `nanochat plan --json` prints it."""

    def make() -> dict[str, Any]:
        body.require_text()
        _launcher(request).require_idle()  # the measurement and a run would slow each other
        return _planner(request).plan(body)

    return await asyncio.to_thread(make)


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


async def _after(request: Request, act: Any) -> dict[str, Any]:
    """The launch's state after `act`, which begins or ends a run."""

    def done() -> dict[str, Any]:
        act()
        return _launcher(request).state()

    _planner(request).end()
    return await asyncio.to_thread(done)
