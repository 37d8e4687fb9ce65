"""Detection, within a minute, of a lost process of the training run: killed, its machine lost, or the network cut.

A collective would keep waiting: a cut connection raises no error, and the timeouts of gloo and NCCL are many minutes. So each rank
increments a counter in the launcher's store, its heartbeat, and reads the others'. The timeout can be short, unlike the watchdog's,
because a thread sends heartbeats regardless of the training step's progress.
"""

import os
import sys
import threading
import time
from collections.abc import Callable
from types import TracebackType

import torch.distributed as dist

from nanochat.errors import HungError, NanochatError

HEARTBEAT_SECONDS = 3.0  # between two heartbeats, and between two checks of the others'
LOST = 40.0  # seconds without a heartbeat after which a rank is lost
START = 300.0  # seconds until a rank's first heartbeat, because loading torch takes long on some machines
LAST_WORD = 5.0  # seconds for a failed rank's exit code to reach the others
LEFT = 1 << 40  # counter of a rank that has exited: this plus its exit code


class Liveness:
    """Ends this process if another rank is lost (exit code 7) or has failed (with that rank's code). A context manager.

    `store` must be a separate connection, because one that waits for a key accepts no second request. `end` receives the exit code.
    `lost` is the timeout in seconds between heartbeats, `start` that before the first one.
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
        self.publisher = threading.Thread(target=self._publish, name="liveness", daemon=True)

    def __enter__(self) -> "Liveness":
        self.publisher.start()
        threading.Thread(target=self._watch, name="liveness watch", daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if error is not None:
            self.code = error.exit_code if isinstance(error, NanochatError) else 1
        self.over.set()
        self.look.set()
        self.publisher.join(LAST_WORD)  # with a timeout, because the network may be down

    def failed(self, wait: float = 0.0) -> int:
        """The exit code of a failed rank; 0 if none fails within `wait` seconds."""
        end = time.monotonic() + wait
        while not (code := max((count - LEFT for count in self.counts.values()), default=0)) > 0:
            if time.monotonic() >= end:
                return 0
            self.look.set()
            time.sleep(0.1)
        return code

    def _add(self, rank: int, count: int) -> int:
        return int(self.store.add(f"nanochat/alive/{self.attempt}/{rank}", count))

    def _publish(self) -> None:
        """Send heartbeats and read the others'. A request may block for as long as the network does."""
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
        except RuntimeError:  # the store is lost with the main rank's machine; `_watch` sees no more heartbeats
            return

    def _silent(self) -> dict[int, float]:
        """Lost ranks -> seconds since their last heartbeat."""
        now = time.monotonic()
        silence = {rank: now - at for rank, at in self.moved.items() if self.counts[rank] < LEFT}
        return {rank: seconds for rank, seconds in silence.items() if seconds > (self.lost if self.counts[rank] else self.start)}

    def _watch(self) -> None:
        """End the process when a rank is lost or has failed. Makes no request to the store, which might block."""
        looked = time.monotonic()
        while not self.over.wait(self.interval):
            late, looked = time.monotonic() - looked - self.interval, time.monotonic()
            if late > self.interval:  # this process was suspended, probably with the others: heartbeats were neither sent nor read
                for rank in self.moved:
                    self.moved[rank] += late
            silent = self._silent()
            code = self.failed()
            if not silent and not code:
                continue
            if self.over.wait(LAST_WORD if code else 0):  # the main thread will probably raise its own error first
                return
            timeout = f"no heartbeat from rank {', '.join(map(str, silent))} for {max(silent.values(), default=0):.0f} s"
            what = timeout if silent else "another rank has failed"
            again = "run the same command again: it resumes at the newest checkpoint"
            print(f"error: rank {self.rank}: {what}\nhint: {again}", file=sys.stderr, flush=True)
            self.end(code if code > 1 else HungError.exit_code)
            return
