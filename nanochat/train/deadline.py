"""A job's deadline as an absolute time, enforced by its own processes, because an orchestrator's limit may restart with each pod."""

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
LOOK_SECONDS = 10.0  # between two checks of the clock, which may be adjusted
SLACK = 30.0  # tolerated difference of the machines' clocks in seconds


class Deadline:
    """The time until which a run may train; without `end`, unlimited.

    A run that reaches it stops as after SIGTERM: the current step is finished and saved. The exit code is 3, which is final, and not 75,
    with which an orchestrator would start the job again only to be refused.
    """

    def __init__(self, end: float | None = None):
        self.end = end

    @staticmethod
    def of(environment: Mapping[str, str]) -> "Deadline":
        """The deadline in NANOCHAT_END. Raises UsageError for a value that is not a time."""
        text = environment.get(VARIABLE, "").strip()
        if not text:
            return Deadline()
        if not (text.isascii() and text.isdigit() and len(text) <= 10):
            raise UsageError(
                f"{VARIABLE} = {text[:40]!r} is not a time in seconds since 1970", "set it to a value such as 1790000000, or unset it"
            )
        return Deadline(float(text))

    @contextlib.contextmanager
    def kept(self, stop: "StopSignal") -> Iterator[None]:
        """Stop the block at the deadline, as a signal to `stop` would. Raises PreflightError then, and if the deadline has passed."""
        if self.end is None:
            yield
            return
        if time.time() >= self.end:
            raise self._reached("nothing was started")
        over = threading.Event()
        threading.Thread(target=self._wait, args=(self.end, stop, over), name="deadline", daemon=True).start()
        try:
            yield
        except Preempted as stopped:
            # All ranks stop after the same step, when the first machine's clock reaches the deadline.
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
            f"the job's deadline {at:%Y-%m-%d %H:%M:%S} UTC ({VARIABLE}) is reached: {what}",
            f"submit the job again with a higher --max-hours, or set a later {VARIABLE}; the run resumes at its newest checkpoint",
        )
