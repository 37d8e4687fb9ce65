"""SIGTERM and SIGINT during a training run: the step under way is finished and saved first."""

import contextlib
import os
import signal
import sys
import time
from collections.abc import Iterator
from types import FrameType

from nanochat.distributed.workers import echoed
from nanochat.errors import Preempted


class StopSignal:
    """SIGTERM and SIGINT: before the training loop they end the command; in it they set a flag that ranks agree on at the step's end."""

    def __init__(self) -> None:
        self.set = False
        self.came: float | None = None  # when the first one did
        self.in_loop = False  # a step is under way: it is finished and saved first
        self.trained = False  # there is a checkpoint

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        if echoed(self.came):
            return
        self.came = self.came or time.monotonic()
        if self.set:  # the second one ends at once
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        self.set = True
        if not self.in_loop:
            what = "stopped: all that was trained is saved" if self.trained else "stopped before the first step: there was nothing to save"
            raise Preempted(what, "run the same command again to go on")
        line = "stopping: saving after this step (once more to stop at once)"
        try:
            print(line, file=sys.stderr, flush=True)
        except RuntimeError:  # the signal came in the midst of another print, and stderr's buffer cannot be entered twice
            os.write(2, f"{line}\n".encode())

    def send(self) -> None:
        """Ask this process to stop as SIGTERM does, from any thread; not twice, and not where another handles its signals."""
        if self.came is None and signal.getsignal(signal.SIGTERM) == self._handle:
            os.kill(os.getpid(), signal.SIGTERM)

    @contextlib.contextmanager
    def installed(self) -> Iterator["StopSignal"]:
        """Handle the signals inside the block; only the main thread can."""
        before = {number: signal.signal(number, self._handle) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
