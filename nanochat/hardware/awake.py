"""A clock without the time in which this process was suspended, and a line about each suspension.

A laptop that sleeps stops CLOCK_MONOTONIC on Linux, so only CLOCK_BOOTTIME tells. Ctrl-Z, `docker pause` and a stopped virtual machine
suspend the process while that clock runs on: a thread that looks once a second was late, and the process used no CPU time meanwhile.
"""

import os
import threading
import time

from nanochat.console import duration, log

INTERVAL = 1.0  # seconds between two looks
LATE = 8.0  # seconds between two looks from which the process was suspended; a crowded machine delays a thread by a few seconds
IDLE = 0.2  # CPU seconds per second below which it was; a thread may also be late because another one holds the interpreter


class AwakeClock:
    """Seconds as time.monotonic() counts them, minus the suspended ones."""

    def __init__(self, interval: float = INTERVAL, late: float = LATE):
        self.suspended = 0.0  # seconds that the clock leaves out
        self.interval, self.late = interval, late
        self._lock = threading.Lock()
        self._looked, self._used, self._slept = self._read()
        self._unsaid = 0.0
        self._watched, self._ended = False, threading.Event()

    @staticmethod
    def _read() -> tuple[float, float, float]:
        """(seconds, CPU seconds of this process, seconds since boot in which the machine slept)."""
        now = time.monotonic()
        boot = time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else now
        return now, time.process_time(), boot - now

    def __call__(self) -> float:
        """The clock's time in seconds."""
        with self._lock:
            return self._look() - self.suspended if self._watched else time.monotonic()

    def _look(self) -> float:
        """Notice a suspension since the last look, whichever thread is the first to run after it; returns time.monotonic()."""
        now, used, slept = self._read()
        gap, asleep = now - self._looked, slept - self._slept
        if gap > self.late and used - self._used < IDLE * gap:
            self.suspended += gap
            self._unsaid += gap
        if asleep > self.late:
            self._unsaid += asleep
        self._looked, self._used, self._slept = now, used, slept
        return now

    def watch(self) -> None:
        """Look every `interval` seconds from now on, in a thread, and log each suspension once."""
        with self._lock:
            if self._watched:
                return
            self._watched = True
            self._looked, self._used, self._slept = self._read()
        threading.Thread(target=self._run, name="suspensions", daemon=True).start()

    def unwatch(self) -> None:
        """Look no more."""
        self._ended.set()

    def _run(self) -> None:
        process = os.getpid()
        while not self._ended.wait(self.interval) and os.getpid() == process:
            with self._lock:
                self._look()
                unsaid, self._unsaid = self._unsaid, 0.0
            if unsaid:
                log(f"this machine or process was suspended for {duration(unsaid)}; the time is not counted")


clock = AwakeClock()


def monotonic() -> float:
    """Seconds as time.monotonic() counts them, without those that this process was suspended since `watch`."""
    return clock()


def watch() -> None:
    """Notice and log suspensions of this process from now on."""
    clock.watch()
