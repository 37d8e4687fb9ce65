"""Notices within a minute that another process of the training run is gone: killed, its machine lost, the network cut.

A collective would wait on: a cut connection says nothing, and the limits of gloo and NCCL are many minutes. So each rank's heartbeat
is a number in the launcher's store that it counts up, and it looks at the others' numbers. Unlike the watchdog, which waits for
progress, this may be quick: a rank counts whatever else it does.
"""

import os
import sys
import threading
import time
from collections.abc import Callable
from types import TracebackType

import torch.distributed as dist

from nanochat.errors import HungError, NanochatError

HEARTBEAT_SECONDS = 3.0  # between two heartbeats, and between two looks at the others'
LOST = 40.0  # seconds without a heartbeat after which a rank is lost
START = 300.0  # seconds until a rank's first heartbeat: machines differ in how long they take to load torch
LAST_WORD = 5.0  # seconds in which the code of a rank that failed reaches the others
LEFT = 1 << 40  # a rank that has left stands at this and its exit code


class Liveness:
    """Ends this process where another rank is lost (exit 7), or has failed (with that one's code). A context manager.

    `store` is a connection of its own: one that waits for a key takes no second request. `end` gets the exit code. `lost` and `start`
    are the seconds without a heartbeat that are too many, of a rank that has given one and of one that never has.
    """

    def __init__(
        self, store: dist.Store, rank: int, world_size: int, end: Callable[[int], object], lost: float = LOST, start: float = START
    ):
        self.store, self.rank, self.end, self.lost, self.start = store, rank, end, lost, start
        self.interval = min(HEARTBEAT_SECONDS, lost / 5)
        self.attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")  # torchrun's own restarts keep the store
        self.counts = dict.fromkeys((other for other in range(world_size) if other != rank), 0)
        self.moved = dict.fromkeys(self.counts, time.monotonic())
        self.over, self.look = threading.Event(), threading.Event()
        self.code = 0
        self.talking = threading.Thread(target=self._talk, name="liveness", daemon=True)

    def __enter__(self) -> "Liveness":
        self.talking.start()
        threading.Thread(target=self._watch, name="liveness watch", daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if error is not None:
            self.code = error.exit_code if isinstance(error, NanochatError) else 1
        self.over.set()
        self.look.set()
        self.talking.join(LAST_WORD)  # not for ever: the network may be gone

    def failed(self, wait: float = 0.0) -> int:
        """The exit code that another rank has failed with; 0 if none has within `wait` seconds."""
        end = time.monotonic() + wait
        while not (code := max((count - LEFT for count in self.counts.values()), default=0)) > 0:
            if time.monotonic() >= end:
                return 0
            self.look.set()
            time.sleep(0.1)
        return code

    def _add(self, rank: int, count: int) -> int:
        return int(self.store.add(f"nanochat/alive/{self.attempt}/{rank}", count))

    def _talk(self) -> None:
        """Count, and look at the others. A request waits as long as the network lets it."""
        own = 0
        try:
            while not self.over.is_set():
                own = self._add(self.rank, 1)
                for other, before in self.counts.items():
                    if (count := self._add(other, 0)) != before:
                        self.counts[other], self.moved[other] = count, time.monotonic()
                self.look.wait(self.interval)
                self.look.clear()
            self._add(self.rank, LEFT + self.code - own)
        except RuntimeError:  # the store has gone with the main rank's machine: nobody is heard of from here on
            return

    def _silent(self) -> dict[int, float]:
        """Ranks that are lost, and seconds since the last heartbeat of each."""
        now = time.monotonic()
        silence = {rank: now - at for rank, at in self.moved.items() if self.counts[rank] < LEFT}
        return {rank: seconds for rank, seconds in silence.items() if seconds > (self.lost if self.counts[rank] else self.start)}

    def _watch(self) -> None:
        """Asks the store nothing: it might never answer."""
        while not self.over.wait(self.interval):
            silent = self._silent()
            code = self.failed()
            if not silent and not code:
                continue
            if self.over.wait(LAST_WORD if code else 0):  # the main thread's own error is likely on its way
                return
            unheard = f"nothing was heard of rank {', '.join(map(str, silent))} for {max(silent.values(), default=0):.0f} s"
            what = unheard if silent else "another rank has failed"
            again = "run the same command again: it resumes at the newest checkpoint"
            print(f"error: rank {self.rank}: {what}\nhint: {again}", file=sys.stderr, flush=True)
            self.end(code if code > 1 else HungError.exit_code)
            return
