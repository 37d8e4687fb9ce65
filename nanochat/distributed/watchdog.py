"""A thread that notices a hang: it says what this rank was doing, and ends it so that the launcher restarts it.

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

from nanochat.distributed.ranks import record_exit
from nanochat.errors import HungError

GRACE = 3.0  # seconds between the word and the end, so that every rank is heard
FRAMES = 3  # of the main thread's stack that are shown
SLOW = 0.25  # part of the planned rate below which something is wrong: a plan's own error is a factor of two at most
SHORT_STEP = 0.2  # seconds of a step below which its overhead decides, which no plan counts
RETRIES = 5  # of torch's allocator in the first steps, at its cap
FULL = 0.97  # part of a GPU's memory above which the driver has probably moved some of it


class Watchdog:
    """Ends the process with exit 7 where `heartbeat` has not been called for `timeout` seconds; 0 is never. A context manager."""

    def __init__(self, timeout: float, rank: int = 0, end: Callable[[int], object] = os._exit):
        self.timeout, self.rank, self.end = timeout, rank, end
        self.where, self.since = "at the start", time.monotonic()
        self.over = threading.Event()
        self.main = threading.get_ident()

    def heartbeat(self, where: str) -> None:
        """This rank has made progress; `where` is what begins now."""
        self.where, self.since = where, time.monotonic()

    def __enter__(self) -> "Watchdog":
        if self.timeout > 0:
            threading.Thread(target=self._watch, name="watchdog", daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.over.set()

    def _watch(self) -> None:
        interval = min(self.timeout / 10, 5.0)
        looked = time.monotonic()
        while not self.over.wait(interval):
            now = time.monotonic()
            if now - looked > 2 * interval:
                # All of the process stood still (Ctrl-Z, a paused container), before or after the last heartbeat: that is no hang.
                self.since = min(self.since + now - looked, now)
            looked, since = now, self.since
            if now - since < self.timeout:
                continue
            stack = traceback.extract_stack(sys._current_frames()[self.main])[-FRAMES:]
            places = " < ".join(f"{os.path.basename(frame.filename)}:{frame.lineno} {frame.name}" for frame in reversed(stack))
            # Not by console.log, which is mute on all ranks but the main one.
            print(f"rank {self.rank} has not moved for {now - since:.0f} s: {self.where} ({places})", file=sys.stderr, flush=True)
            if self.over.wait(GRACE):
                return
            if self.since != since:
                print(f"rank {self.rank} moves again", file=sys.stderr, flush=True)
                continue
            print("error: nothing moves any more\nhint: run the same command again: it resumes at the newest checkpoint", file=sys.stderr)
            sys.stderr.flush()
            record_exit(HungError.exit_code)
            self.end(HungError.exit_code)
            return


def slow(device: torch.device, rate: float, planned: float, tokens: int, waited: float, rows: int) -> str | None:
    """A line where training is far slower than planned, with its likely cause and what to lower; None if it is not.

    rate, planned: tokens a second; tokens: of one step; waited: the part of a step in which rows are read; rows: of a device batch.
    """
    if rate >= SLOW * planned or tokens / rate < SHORT_STEP:
        return None
    if waited > 0.5:
        cause = "the rows come too slowly: put NANOCHAT_BASE_DIR on a faster disk, or wait until no other program keeps it busy"
    elif device.type == "cuda" and _memory_short(device):
        lower = (
            f"lower --device_batch_size (now {rows}): the losses stay the same" if rows > 1 else "use a smaller --depth or --max_seq_len"
        )
        cause = f"the GPU's memory is full: {lower}"
    elif os.getloadavg()[0] > 1.5 * (cores := os.cpu_count() or 1):
        cause = (
            f"other programs keep the processors busy ({os.getloadavg()[0]:.0f} threads want {cores} cores): end them, or lower --threads"
        )
    elif device.type == "cuda":
        cause = "the GPU may be hot, capped or used by others: doctor --gpus measures it"
    else:
        cause = "the processor may be hot, capped or shared with others: doctor measures it; a smaller --depth is quicker"
    return f"warning: {rate / planned:.0%} of the planned tokens a second: {cause}"


def _memory_short(device: torch.device) -> bool:
    """Whether a GPU's memory is so full that the driver moves some of it to the system's, or torch frees and asks anew all the time."""
    free, total = torch.cuda.mem_get_info(device)
    return free < (1 - FULL) * total or torch.cuda.memory_stats(device)["num_alloc_retries"] >= RETRIES
