"""The absolute end of a job, which its own processes keep: an orchestrator's limit may count anew with every restart."""

import contextlib
import datetime
import threading
import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from nanochat.errors import Preempted, PreflightError, UsageError

if TYPE_CHECKING:
    from nanochat.train.signals import StopSignal

VARIABLE = "NANOCHAT_END"  # seconds since 1970, fixed when the job is submitted
LOOK_SECONDS = 10.0  # between two looks at the clock, which may be set meanwhile
SLACK = 30.0  # seconds by which the clocks of a job's machines may differ


class Deadline:
    """Until when a run may be trained; without an end, always.

    A run that reaches it stops as after SIGTERM: the step under way is finished and saved. The exit code is not 75, which an
    orchestrator starts again, but 3, which is final for all: whatever is started again would be refused at once.
    """

    def __init__(self, end: float | None = None):
        self.end = end

    @staticmethod
    def of(environment: Mapping[str, str]) -> "Deadline":
        """The deadline that NANOCHAT_END sets. Raises UsageError for a value that is no time."""
        text = environment.get(VARIABLE, "").strip()
        if not text:
            return Deadline()
        if not (text.isascii() and text.isdigit() and len(text) <= 10):
            raise UsageError(f"{VARIABLE} = {text[:40]!r} is not a time in seconds since 1970", "as in 1790000000, or leave it unset")
        return Deadline(float(text))

    @contextlib.contextmanager
    def kept(self, stop: "StopSignal") -> Iterator[None]:
        """Stop what runs inside the block at the end, as a signal to `stop` would. Raises PreflightError then, and if it is past."""
        if self.end is None:
            yield
            return
        if time.time() >= self.end:
            raise self._reached("nothing is started any more")
        over = threading.Event()
        threading.Thread(target=self._wait, args=(self.end, stop, over), name="deadline", daemon=True).start()
        try:
            yield
        except Preempted as stopped:
            # All ranks stop after the same step, as soon as the first clock says so.
            if time.time() < self.end - SLACK:
                raise
            raise self._reached(stopped.message) from stopped
        finally:
            over.set()

    @staticmethod
    def _wait(end: float, stop: "StopSignal", over: threading.Event) -> None:
        while (left := end - time.time()) > 0:
            if over.wait(min(left, LOOK_SECONDS)):
                return
        stop.send()

    def _reached(self, what: str) -> PreflightError:
        at = datetime.datetime.fromtimestamp(self.end or 0, datetime.UTC)
        return PreflightError(
            f"the job's deadline, {at:%Y-%m-%d %H:%M:%S} UTC ({VARIABLE}), is reached: {what}",
            f"submit the job again with a higher --max-hours, or set a later {VARIABLE}: the run resumes at its newest checkpoint",
        )
