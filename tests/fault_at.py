"""`python tests/fault_at.py kill:N|full:N|room:BYTES|stop:PLACE|brief:PLACE ARGUMENTS`: the command line, with a fault on its way.

kill:N      killed (SIGKILL) instead of its N-th fsync. Every file that must survive is written under a temporary name and synced, then
            renamed, then its folder is synced: each N is a moment between two of these.
full:N      the data directory's disk is filled after its N-th fsync, with 0 before it begins. Nothing is written after that.
room:BYTES  as the first file is written atomically into a run's folder, the disk is filled but for so many bytes.
stop:PLACE  stopped (SIGSTOP), as by Ctrl-Z, at the first call of a kind of work (PLACES), or with PLACE,N at the N-th.
brief:PLACE the same, and two seconds are noticed as a suspension.

With full:N, stderr's last line says how many fsyncs there were.
"""

import atexit
import contextlib
import functools
import importlib
import os
import re
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))


def kill_at(number: int) -> None:
    """Have this process killed at its fsync of that number."""
    left, sync = [number], os.fsync

    def fsync(descriptor: int) -> None:
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        sync(descriptor)

    os.fsync = fsync  # type: ignore[assignment]


def fill(room: int = 0) -> None:
    """Fill the data directory's disk with one file but for `room` bytes."""
    filler = Path(os.environ["NANOCHAT_BASE_DIR"], "filler")
    with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        left = shutil.disk_usage(filler.parent).free // 4096 * 4096 - room
        while left > 0:
            left -= file.write(bytes(min(left, 1 << 20)))


def fill_at(number: int) -> None:
    """Have the disk filled after the fsync of that number."""
    done, sync = [0], os.fsync

    def fsync(descriptor: int) -> None:
        sync(descriptor)
        done[0] += 1
        if done[0] == number:
            fill()

    os.fsync = fsync  # type: ignore[assignment]
    atexit.register(lambda: print(f"fsyncs: {done[0]}", file=sys.stderr, flush=True))
    if number == 0:
        fill()


def fill_to(room: int) -> None:
    """Have the disk filled once, before the first atomic write into a run's folder."""
    filled: list[bool] = []

    def watch(event: str, arguments: tuple[object, ...]) -> None:
        if event == "open" and not filled and re.search(r"/runs/[^/]+/\.tmp-", str(arguments[0])):
            filled.append(True)
            fill(room)

    sys.addaudithook(watch)


PLACES = {
    "tokenizer": ("nanochat.data.vocabulary", "Progress"),
    "packing": ("nanochat.data.rows", "Progress"),
    "step": ("nanochat.train.trainer", "accumulate_gradients"),
    "save": ("os", "fsync"),
    "evaluation": ("nanochat.train.session", "bits_per_byte"),
    "report": ("nanochat.pipeline.finish", "write_report"),
    "export": ("nanochat.export.folder", "save_file"),
    "answer": ("nanochat.chat.scheduler", "Scheduler._step"),
}


def stop_briefly_at(place: str) -> None:
    """Have this process stopped at `place`, once, and notice shorter suspensions than others do."""
    from nanochat.hardware import awake

    awake.clock.interval, awake.clock.late = 0.2, 1.5
    stop_at(place)


def stop_at(place: str) -> None:
    """Have this process stopped at `place`, once."""
    name, _, number = place.partition(",")
    module, path = PLACES[name]
    *outer, attribute = path.split(".")
    owner = functools.reduce(getattr, outer, importlib.import_module(module))
    work, left = getattr(owner, attribute), [int(number or 1)]

    def stopped(*arguments: Any, **named: Any) -> Any:
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGSTOP)
        return work(*arguments, **named)

    setattr(owner, attribute, stopped)


def main() -> None:
    kind, _, number = sys.argv.pop(1).partition(":")
    if kind in ("stop", "brief"):
        {"stop": stop_at, "brief": stop_briefly_at}[kind](number)
    else:
        {"kill": kill_at, "full": fill_at, "room": fill_to}[kind](int(number))
    from nanochat.cli.app import main as command

    command()


if __name__ == "__main__":
    main()
