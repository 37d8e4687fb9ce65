"""The share of the CPU that other programs use, from the processors' ticks in /proc/stat and this process's own CPU time."""

import os
import time
from collections import deque
from dataclasses import dataclass

from nanochat.hardware import procfs
from nanochat.hardware.cpu import usable_processors

STAT = "/proc/stat"
EVERY = 2.0  # seconds between two readings
SPAN = 5  # readings over which a share is taken, so that a short burst says little
WINDOW = 1.0  # seconds over which FreeProcessors averages, at least
NOTICED = 0.15  # a smaller share is not named as a reason
# Columns of a processor's line: user, nice, system, idle, iowait, irq, softirq, steal. The guests' columns after them are part of user.
IDLE, IOWAIT, STEAL, COLUMNS = 3, 4, 7, 8


@dataclass(frozen=True)
class Busy:
    """Shares (0 to 1) of the processors that this process may use: taken by other programs, and by the host of a virtual machine."""

    others: float = 0.0
    stolen: float = 0.0

    @property
    def reason(self) -> str:
        """A clause that names the larger one, "" if neither is large."""
        if max(self.others, self.stolen) < NOTICED:
            return ""
        if self.stolen > self.others:
            return f"the host of this virtual machine takes {self.stolen:.0%} of its CPU"
        return f"other programs use {self.others:.0%} of the CPU"


class OtherLoad:
    """Samples what other programs use of the CPU, over the last seconds.

    `processes` is the number of equal processes of this run on the machine, whose CPU time is its own.
    """

    def __init__(self, processes: int = 1, every: float = EVERY):
        self.processes, self.every = processes, every
        self.readings: deque[tuple[float, float, float, float, float]] = deque(maxlen=SPAN + 1)
        self.busy = Busy()
        self.sample()

    def sample(self) -> Busy:
        """The shares over the last SPAN readings; a new reading is taken if the newest is `every` seconds old.

        Both are 0 where the system does not tell, as on others than Linux.
        """
        now = time.monotonic()
        if self.readings and now - self.readings[-1][0] < self.every:
            return self.busy
        total, used, stolen = _ticks()
        own = self.processes * sum(os.times()[:4]) * os.sysconf("SC_CLK_TCK")  # children that have ended included
        self.readings.append((now, total, used, stolen, own))
        _, all_ticks, used, stolen, own = (new - old for new, old in zip(self.readings[-1], self.readings[0], strict=True))
        if all_ticks > 0:
            self.busy = Busy(min(max((used - own) / all_ticks, 0.0), 1.0), min(max(stolen / all_ticks, 0.0), 1.0))
        return self.busy


class FreeProcessors:
    """Average number of processors that other programs leave to this process, those that it uses itself included.

    Called again and again; each call has the average since the call that is WINDOW or more seconds before it, so that load that begins
    or ends is seen within seconds, unlike by OtherLoad.
    """

    def __init__(self) -> None:
        self._count = len(usable_processors())
        self._value: float | None = None
        self._before = self._read()

    def __call__(self) -> float | None:
        """The number of processors; None if unknown, as on systems other than Linux, and before the first WINDOW has passed."""
        if time.monotonic() - self._before[0] < WINDOW:
            return self._value
        now = self._read()
        seconds, total, taken, own = (after - first for after, first in zip(now, self._before, strict=True))
        if total > 0:
            self._value, self._before = max(self._count * (1 - taken / total) + own / seconds, 0.0), now
        return self._value

    def _read(self) -> tuple[float, float, float, float]:
        """(seconds, all ticks, ticks used by programs or stolen, this process's processor seconds)."""
        total, used, stolen = _ticks()
        return time.monotonic(), total, used + stolen, sum(os.times()[:2])


def _ticks() -> tuple[float, float, float]:
    """(all, used by programs, stolen) ticks since boot of the processors that this process may use; zeros if unknown."""
    allowed = {f"cpu{number}" for number in usable_processors()}
    total = used = stolen = 0.0
    for line in procfs.read(STAT).splitlines():
        name, *columns = line.split()
        if name in allowed and len(columns) >= COLUMNS:
            ticks = [int(column) for column in columns[:COLUMNS]]
            total, stolen = total + sum(ticks), stolen + ticks[STEAL]
            used += sum(ticks) - ticks[IDLE] - ticks[IOWAIT] - ticks[STEAL]
    return total, used, stolen
