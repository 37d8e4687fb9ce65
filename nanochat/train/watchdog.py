"""A thread that notices when nothing moves any more: it says where this rank stands, and ends it so that the launcher restarts it.

A rank that is lost or stuck leaves the others waiting in a collective for as long as they are let. Each rank has its own
watchdog, so that all of them say where they stand before the first one ends.
"""

import os
import sys
import threading
import time
import traceback
from collections.abc import Callable
from types import TracebackType

import torch

from nanochat.errors import HungError
from nanochat.train.ranks import Ranks, record_exit

GRACE = 3.0  # seconds between the word and the end, so that every rank is heard
FRAMES = 3  # of the main thread's stack that are shown
IDLE = 0.03  # part of the card's peak below which ...
FULL = 0.9  # ... and part of its memory above which it has probably spilled into the system's


class Watchdog:
    """Ends the process with exit 7 where `beat` has not been called for `timeout` seconds; 0 is never. A context manager."""

    def __init__(self, timeout: float, rank: int = 0, end: Callable[[int], object] = os._exit):
        self.timeout, self.rank, self.end = timeout, rank, end
        self.where, self.since = "at the start", time.monotonic()
        self.over = threading.Event()
        self.main = threading.get_ident()

    def beat(self, where: str) -> None:
        """Something has moved; what begins now."""
        self.where, self.since = where, time.monotonic()

    def __enter__(self) -> "Watchdog":
        if self.timeout > 0:
            threading.Thread(target=self._watch, name="watchdog", daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.over.set()

    def _watch(self) -> None:
        while not self.over.wait(min(self.timeout / 10, 5.0)):
            still = time.monotonic() - self.since
            if still < self.timeout:
                continue
            stack = traceback.extract_stack(sys._current_frames()[self.main])[-FRAMES:]
            places = " < ".join(f"{os.path.basename(frame.filename)}:{frame.lineno} {frame.name}" for frame in reversed(stack))
            # Not by console.log, which is mute on all ranks but the main one.
            print(f"rank {self.rank} has not moved for {still:.0f} s: {self.where} ({places})", file=sys.stderr, flush=True)
            if self.over.wait(GRACE):
                return
            print("error: nothing moves any more\nhint: run the same command again: it resumes at the newest checkpoint", file=sys.stderr)
            sys.stderr.flush()
            record_exit(HungError.exit_code)
            self.end(HungError.exit_code)
            return


def spilled(ranks: Ranks, mfu: float, rows: int) -> str | None:
    """A line where the card hardly works and its memory is full: what does not fit was moved to system memory, as Windows' driver does."""
    if ranks.device.type != "cuda" or mfu >= IDLE:
        return None
    total = torch.cuda.get_device_properties(ranks.device).total_memory
    if torch.cuda.max_memory_reserved(ranks.device) < FULL * total:
        return None
    lower = f"lower --device_batch_size (now {rows}): the losses stay the same" if rows > 1 else "use a smaller --depth or --max_seq_len"
    return f"warning: the GPU's use is {mfu:.0%} and its memory is full: it has probably spilled into system memory; {lower}"
