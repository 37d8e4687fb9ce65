"""Follows a RunPod pod to its end: prints its log, enforces the time limit, and terminates it if it does not start.

The time limit is enforced by this client while it follows, and always by the guard inside the pod (guard.py).
"""

import time
from collections.abc import Callable, Iterator
from typing import Any

from nanochat.cloud.guard import ENDED, VARIABLE, Guard
from nanochat.cloud.runpod_api import LONGEST_PAUSE, Conflict, NotFound, RunPod
from nanochat.cloud.workload import GRACE_SECONDS
from nanochat.console import log
from nanochat.console import show as show_line
from nanochat.errors import NanochatError, PreflightError, UsageError

LAST_SECONDS = 5.0
START_MINUTES = 30.0  # a pod that has not started by then (a large image takes 10) is terminated
POLL_SECONDS = 15.0


def end(api: RunPod, identifier: str, action: str) -> None:
    """Stop or terminate a pod and check the result. Raises NanochatError if it did not take effect."""
    for _ in range(10):
        try:
            api.act(identifier, action)
        except NotFound:
            return
        except Conflict:
            pass  # between two states, or already in the new one
        try:
            status = api.pod(identifier)["status"]
        except NotFound:
            return
        if status == "TERMINATED" or (status == "EXITED" and action == "stop"):
            return
        time.sleep(api.pause)
    raise NanochatError(f"pod {identifier} may still run and cost money: {action} did not take effect", "terminate it on RunPod's page")


def deadline(pod: dict[str, Any]) -> float:
    """The time limit of a pod's guard, in seconds since 1970; infinity if it has none."""
    try:
        return Guard.parse(pod.get("env", {}).get(VARIABLE, "")).until
    except UsageError:
        return float("inf")


class PodWatcher:
    """A pod's polled state, and the conditions that end it."""

    def __init__(self, api: RunPod, identifier: str, until: float, start_minutes: float = START_MINUTES):
        self.started = False  # whether it was running
        self._api, self._identifier = api, identifier
        self._until, self._start_minutes = until, start_minutes
        self._grace = GRACE_SECONDS if until - time.time() > 60 else 0  # the guard acts first, because it saves a checkpoint
        self._began = self._polled = time.monotonic()

    @property
    def age(self) -> float:
        """Seconds since the last poll."""
        return time.monotonic() - self._polled

    def ended(self) -> bool:
        """Poll the pod's state; True if it has ended. Raises NanochatError after ending it at the time limit, and for a failed pod."""
        self._polled = time.monotonic()
        try:
            pod = self._api.pod(self._identifier)
        except NotFound:
            log(f"pod {self._identifier} is terminated and costs nothing more")
            return True
        status = pod["status"]
        if status in ("EXITED", "TERMINATED"):
            kept = "" if status == "TERMINATED" else "; its disk is kept and billed until `nanochat submit terminate NAME`"
            log(f"pod {self._identifier} has ended ({status}){kept}")
            return True
        if status == "ERROR":
            self._fail(pod)
        if time.time() > self._until + self._grace:
            self._enforce_ceiling(pod)
        self.started = self.started or status == "RUNNING"
        if not self.started and time.monotonic() - self._began > 60 * self._start_minutes:
            end(self._api, self._identifier, "terminate")
            raise PreflightError(
                f"pod {self._identifier} did not start in {self._start_minutes:g} minutes and was terminated",
                "choose another GPU or data centre",
            )
        return False

    def _fail(self, pod: dict[str, Any]) -> None:
        """Raise for a pod in an error state; one that never ran has no checkpoints and is terminated."""
        if not self.started:
            end(self._api, self._identifier, "terminate")
            raise PreflightError(
                f"pod {self._identifier} failed before it ran and was terminated",
                "check the image, and --registry for a private one",
            )
        raise NanochatError(
            f"pod {self._identifier} is in an error state (${pod.get('cost') or 0:.2f} an hour); its disk is kept",
            "see its state on RunPod's page; `nanochat submit terminate NAME` removes it with its disk",
        )

    def _enforce_ceiling(self, pod: dict[str, Any]) -> None:
        """End a pod that its guard has not ended, and raise."""
        log("the time limit is reached, and the pod's guard has not ended it")
        end(self._api, self._identifier, "terminate" if pod.get("mounts", {}).get("network") else "stop")
        raise NanochatError(
            f"pod {self._identifier} was ended at the time limit",
            "set a higher --max-hours or --max-cost to resume from the checkpoint",
        )


def watch(
    api: RunPod,
    identifier: str,
    until: float,
    poll: float = POLL_SECONDS,
    start_minutes: float = START_MINUTES,
    show: Callable[[str], None] = show_line,
) -> int:
    """Follow a pod to its end, polling its state every `poll` seconds; `until` is the time limit in seconds since 1970.

    Returns the run's exit code from the guard's last line; 0 if the log has no such line.
    """
    pod = PodWatcher(api, identifier, until, start_minutes)
    cursor, code, ended = "", 0, pod.ended()
    while True:
        last = time.monotonic() + LAST_SECONDS  # for the rest of an ended pod's log
        for at, line in _lines(api, identifier, cursor, LAST_SECONDS if ended else LONGEST_PAUSE) if pod.started else ():
            cursor = at or cursor
            if at or line:
                show(line)
            if said := ENDED.search(line):
                code = int(said[1])
            if not ended and pod.age > poll:
                ended, last = pod.ended(), time.monotonic() + LAST_SECONDS
            if ended and time.monotonic() > last:
                break
        if ended:
            return code
        time.sleep(min(poll, 1.0) if pod.started else poll)
        ended = pod.ended()


def _lines(api: RunPod, identifier: str, cursor: str, silence: float) -> Iterator[tuple[str, str]]:
    """One connection's log lines; it may end at any time."""
    try:
        yield from api.events(identifier, cursor, silence)
    except NotFound:
        return
    except NanochatError as error:
        log(f"the log is not available now: {error.message}")
