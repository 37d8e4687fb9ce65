"""A training run's heartbeat file for the chat server on the same machine: device, and steps of each stage.

runs/<run>/heartbeat.json    written every two seconds during training, removed at the end
"""

import contextlib
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from nanochat.hardware.memory import oom_kills

HEARTBEAT = "heartbeat.json"
SECONDS = 2.0
ALIVE_SECONDS = 15.0  # a file that is older was left by a killed process


@contextlib.contextmanager
def heartbeat(folder: Path, about: Callable[[], dict[str, Any]]) -> Iterator[None]:
    """Write the result of `about` and the time into the run's directory every SECONDS, until the block ends."""
    path, ended = folder / HEARTBEAT, threading.Event()
    temporary = folder / f".{HEARTBEAT}"

    def write() -> None:
        while True:
            with contextlib.suppress(OSError):  # a full disk must not end the run here
                temporary.write_text(
                    json.dumps(about() | {"pid": os.getpid(), "time": time.time(), "oom_kills": oom_kills()}), encoding="utf-8"
                )
                temporary.replace(path)
            if ended.wait(SECONDS):
                return

    thread = threading.Thread(target=write, name="heartbeat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        path.unlink(missing_ok=True)


def why_killed(folder: Path) -> str:
    """A line about a process of this run that was killed, which leaves its heartbeat, with the likely reason; "" if none was."""
    last, kills = read_heartbeat(folder), oom_kills()
    if last is None:
        return ""
    before = last.get("oom_kills")
    if kills is not None and isinstance(before, int) and kills > before:
        return (
            f"the last process of this run was killed, probably because memory ran out ({kills - before} killed by the system since then); "
            "close other programs, or lower --device_batch_size, which keeps the losses"
        )
    return "the last process of this run was killed, or the machine was switched off"


def read_heartbeat(folder: Path) -> dict[str, Any] | None:
    """A run's last heartbeat, None if there is none; its field `alive` is False if the run was killed."""
    try:
        about: dict[str, Any] = json.loads((folder / HEARTBEAT).read_text(encoding="utf-8"))
        # A time in the future is from before the system's clock was set back.
        return about | {"alive": abs(time.time() - about["time"]) < ALIVE_SECONDS}
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
