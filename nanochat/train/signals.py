"""SIGTERM and SIGINT during a training run: the current step is finished and saved first."""

import contextlib
import os
import signal
import sys
import time
from collections.abc import Iterator
from types import FrameType

from nanochat.console import erased
from nanochat.distributed.workers import echoed
from nanochat.errors import Preempted


class StopSignal:
    """Handler of SIGTERM and SIGINT: before the training loop they end the command, in it they set a flag read at the step's end."""

    def __init__(self) -> None:
        self.set = False
        self.came: float | None = None  # time of the first signal
        self.in_loop = False  # whether a step is running, which is finished and saved first
        self.trained = False  # whether there is a checkpoint

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        if echoed(self.came):
            return
        self.came = self.came or time.monotonic()
        if self.set:  # the second signal ends the process immediately
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        self.set = True
        if not self.in_loop:
            what = "stopped; the run's checkpoint is saved" if self.trained else "stopped before the first step, with nothing to save"
            raise Preempted(what, "run the same command again to resume")
        line = f"{erased()}stopping: saving after this step (a second signal stops at once)"
        try:
            print(line, file=sys.stderr, flush=True)
        except RuntimeError:  # the signal interrupted another print, and stderr's buffer is not reentrant
            os.write(2, f"{line}\n".encode())

    def send(self) -> None:
        """Stop this process as SIGTERM does, from any thread; ignored after a signal, or while another handler is installed."""
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
