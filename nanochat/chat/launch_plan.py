"""The plan of a run that the page asks for: `nanochat plan --json` in a process of its own, one at a time."""

import contextlib
import json
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from typing import Any

from nanochat.chat.api_errors import ApiError

PLAN_SECONDS = 240.0  # of a plan, which measures some steps: that has 180 s itself
AT_ONCE = 2  # requests that are answered or wait; each takes one of the server's few threads


class Planner:
    """Makes plans. A plan measures some training steps the first time, so it does not run beside a run."""

    def __init__(self) -> None:
        self._free, self._lock = threading.Semaphore(AT_ONCE), threading.Lock()
        self._process: subprocess.Popen[str] | None = None

    def plan(self, arguments: Sequence[str], environment: Mapping[str, str]) -> dict[str, Any] | None:
        """The result of the command `arguments`; None if it was ended, because a run has begun or the server stops.

        Raises ApiError: 400 with the command's error and hint, 429 if other plans wait, 503 after PLAN_SECONDS.
        """
        if not self._free.acquire(blocking=False):
            raise ApiError(429, "other plans are being made", "too_many_requests", retry_after=2)
        try:
            with self._lock:
                return self._run(arguments, environment)
        finally:
            self._free.release()

    def end(self) -> None:
        """End the plan that is being made."""
        if (process := self._process) is not None:
            process.kill()

    def _run(self, arguments: Sequence[str], environment: Mapping[str, str]) -> dict[str, Any] | None:
        command = [sys.executable, "-m", "nanochat", *arguments]
        pipes: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        with subprocess.Popen(command, env=environment, text=True, errors="replace", **pipes) as process:
            self._process = process
            try:
                out, messages = process.communicate(timeout=PLAN_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                raise ApiError(503, f"the plan took more than {PLAN_SECONDS:g} s", "plan_failed") from None
            finally:
                self._process = None
        if process.returncode == -signal.SIGKILL:
            return None
        with contextlib.suppress(ValueError):
            found = json.loads(out)
            if process.returncode == 0 and isinstance(found, dict):
                return found
        error, hint = error_and_hint(messages.splitlines())
        raise ApiError(400, "; ".join(filter(None, (error or "the plan failed", hint))), "plan_failed")


def error_and_hint(lines: Sequence[str]) -> tuple[str, str]:
    """The error and the hint at the end of a command's messages, each "" if it printed none."""
    for number in range(len(lines) - 1, -1, -1):
        if lines[number].startswith(("error: ", "stopped")):
            hint = lines[number + 1] if number + 1 < len(lines) else ""
            return lines[number].removeprefix("error: "), hint.removeprefix("hint: ") if hint.startswith("hint: ") else ""
    return "", ""
