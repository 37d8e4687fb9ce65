"""A watchdog thread: when training hangs, it prints what this rank was doing and ends the process, so that the launcher restarts it.

A lost or stuck rank leaves the others waiting in a collective. Each rank has its own watchdog, so that all print their position before
the first one ends.
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
from nanochat.hardware import power

GRACE = 3.0  # seconds between the message and the end, so that every rank prints its own
FRAMES = 3  # frames of the main thread's stack in the message
SLOW = 0.25  # fraction of the planned tokens per second below which a warning is due; a plan is within a factor of two
SHORT_STEP = 0.2  # seconds of a step below which overhead dominates, which a plan does not include
RETRIES = 5  # of torch's allocator in the first steps, at its limit
FULL = 0.97  # fraction of a GPU's memory above which the driver has probably moved some of it to system memory


class Watchdog:
    """Ends the process with exit code 7 if `heartbeat` is not called for `timeout` seconds (0: never). A context manager."""

    def __init__(self, timeout: float, rank: int = 0, end: Callable[[int], object] = os._exit):
        self.timeout, self.rank, self.end = timeout, rank, end
        self.where, self.since = "at the start", time.monotonic()
        self.over = threading.Event()
        self.main = threading.get_ident()

    def heartbeat(self, where: str) -> None:
        """Record progress; `where` names the work that begins now."""
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
                # The whole process was suspended (Ctrl-Z, a paused container), before or after the last heartbeat: not a hang.
                self.since = min(self.since + now - looked, now)
            looked, since = now, self.since
            if now - since < self.timeout:
                continue
            stack = traceback.extract_stack(sys._current_frames()[self.main])[-FRAMES:]
            places = " < ".join(f"{os.path.basename(frame.filename)}:{frame.lineno} {frame.name}" for frame in reversed(stack))
            # Not with console.log, which is muted on all ranks but the main one.
            print(f"rank {self.rank} has made no progress for {now - since:.0f} s: {self.where} ({places})", file=sys.stderr, flush=True)
            if self.over.wait(GRACE):
                return
            if self.since != since:
                print(f"rank {self.rank} makes progress again", file=sys.stderr, flush=True)
                continue
            what = f"error: no progress for {now - since:.0f} s (--hang_timeout)"
            print(f"{what}\nhint: run the same command again: it resumes at the newest checkpoint", file=sys.stderr)
            sys.stderr.flush()
            record_exit(HungError.exit_code)
            self.end(HungError.exit_code)
            return


def slow(device: torch.device, rate: float, planned: float, tokens: int, waited: float, rows: int) -> str | None:
    """A warning if training is far slower than planned, with the likely cause and what to change; else None.

    `rate` and `planned` are measured and planned tokens per second.
    tokens: number of tokens per step.
    waited: fraction of a step spent reading rows.
    rows: micro-batch size.
    """
    if rate >= SLOW * planned or tokens / rate < SHORT_STEP:
        return None
    if waited > 0.5:
        cause = "reading data is slow; put NANOCHAT_BASE_DIR on a faster disk, or stop other programs that use it"
    elif device.type == "cuda" and _memory_short(device):
        lower = f"lower --device_batch_size (now {rows}), which keeps the losses" if rows > 1 else "use a smaller --depth or --max_seq_len"
        cause = f"the GPU's memory is full; {lower}"
    elif os.getloadavg()[0] > 1.5 * (cores := os.cpu_count() or 1):
        cause = f"other programs use the CPU ({os.getloadavg()[0]:.0f} threads for {cores} cores); stop them, or lower --threads"
    elif (state := power.read_power()).throttled:
        cause = f"{state.throttled}; let it cool down, or choose another power mode"
    elif state.battery is not None:
        cause = f"this machine runs on battery ({state.battery}% left); connect the charger"
    elif device.type == "cuda":
        cause = "the GPU may be hot, power-limited or shared; run `nanochat doctor --gpus` to measure it"
    else:
        cause = "the CPU may be hot, power-limited or shared; run `nanochat doctor` to measure it"
    return f"warning: {rate / planned:.0%} of the planned tokens per second: {cause}"


def _memory_short(device: torch.device) -> bool:
    """Whether a GPU's memory is so full that the driver moves some of it to system memory, or torch's allocator retries constantly."""
    free, total = torch.cuda.mem_get_info(device)
    return free < (1 - FULL) * total or torch.cuda.memory_stats(device)["num_alloc_retries"] >= RETRIES
