"""A clock without the time in which this process was suspended, and a line about each suspension and each change of the system's clock.

A laptop that sleeps stops CLOCK_MONOTONIC on Linux, so only CLOCK_BOOTTIME tells. Ctrl-Z, `docker pause` and a stopped virtual machine
suspend the process while that clock runs on: a thread that looks once a second is late, and meanwhile no thread of the process was
running or waiting for a processor, as threads of a crowded machine are.
"""

import contextlib
import os
import threading
import time

from nanochat.console import duration, log

INTERVAL = 1.0  # seconds between two looks
LATE = 8.0  # seconds without any running or waiting thread from which the process was suspended
TASKS = "/proc/self/task"


class AwakeClock:
    """Seconds as time.monotonic() counts them, minus the suspended ones."""

    def __init__(self, interval: float = INTERVAL, late: float = LATE):
        self.suspended = 0.0  # seconds that the clock leaves out
        self.interval, self.late = interval, late
        self._lock = threading.Lock()
        self._looked, self._slept, self._active = time.monotonic(), _slept(), _active()
        self._offset = _offset()
        self._unsaid = self._moved = 0.0  # seconds of suspension, and of the system's clock's change, that are not logged yet
        self._watched, self._ended = False, threading.Event()

    def __call__(self) -> float:
        """The clock's time in seconds."""
        with self._lock:
            now = time.monotonic()
            if self._watched and now - self._looked > self.late:  # this thread may be the first to run after a suspension
                self._look(now)
            return now - self.suspended

    def _look(self, now: float) -> None:
        """Notice a suspension since the last look."""
        slept, active = _slept(), _active()
        most = max((seconds - self._active.get(thread, 0.0) for thread, seconds in active.items()), default=0.0)
        stopped = now - self._looked - max(most, 0.0)
        if stopped > self.late:
            self.suspended += stopped
            self._unsaid += stopped
        if slept - self._slept > self.late:
            self._unsaid += slept - self._slept
        self._looked, self._slept, self._active = now, slept, active
        offset = _offset()
        if abs(offset - self._offset) > self.late:
            self._moved += offset - self._offset
        self._offset = offset

    def watch(self) -> None:
        """Look every `interval` seconds from now on, in a thread, and log each suspension once."""
        with self._lock:
            if self._watched:
                return
            self._watched = True
            self._looked, self._slept, self._active, self._offset = time.monotonic(), _slept(), _active(), _offset()
        threading.Thread(target=self._run, name="suspensions", daemon=True).start()

    def unwatch(self) -> None:
        """Look no more."""
        self._ended.set()

    def _run(self) -> None:
        process = os.getpid()
        while not self._ended.wait(self.interval) and os.getpid() == process:
            with self._lock:
                self._look(time.monotonic())
                unsaid, moved, self._unsaid, self._moved = self._unsaid, self._moved, 0.0, 0.0
            if unsaid:
                log(f"this machine or process was suspended for {duration(unsaid)}; the time is not counted")
            if moved:
                log(f"the system's clock was set {'forward' if moved > 0 else 'back'} by {duration(abs(moved))}; no duration follows it")


def _slept() -> float:
    """Seconds since boot in which the machine slept."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) - time.monotonic() if hasattr(time, "CLOCK_BOOTTIME") else 0.0


def _offset() -> float:
    """The system's clock minus seconds since boot, sleep included: only a clock that is set changes it. 0 where sleep is not counted."""
    return time.time() - time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else 0.0


def _active() -> dict[str, float]:
    """Seconds that each thread of this process was running or waiting for a processor; of the whole process, if unknown."""
    found: dict[str, float] = {}
    with contextlib.suppress(OSError):
        for thread in os.listdir(TASKS):
            with contextlib.suppress(OSError, ValueError, IndexError), open(f"{TASKS}/{thread}/schedstat", encoding="ascii") as file:
                running, waiting = file.read().split()[:2]
                found[thread] = (int(running) + int(waiting)) / 1e9
    return found or {"": time.process_time()}


clock = AwakeClock()


def monotonic() -> float:
    """Seconds as time.monotonic() counts them, without those that this process was suspended since `watch`."""
    return clock()


def watch() -> None:
    """Notice and log suspensions of this process from now on."""
    clock.watch()
