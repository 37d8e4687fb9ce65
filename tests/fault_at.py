"""`python tests/fault_at.py kill:N|full:BYTES ARGUMENTS`: the command line, with a fault among its writes.

kill:N      killed (SIGKILL) instead of its N-th fsync. Every file that must survive is written under a temporary name and synced, then
            renamed, then its folder is synced: each N is a moment between two of these.
full:BYTES  as the first file is written atomically into a run's folder, the data directory's disk is filled but for so many bytes.
"""

import os
import re
import shutil
import signal
import sys
from pathlib import Path

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


def fill_to(room: int) -> None:
    """Have the disk filled once, before the first atomic write into a run's folder."""
    filled: list[Path] = []

    def watch(event: str, arguments: tuple[object, ...]) -> None:
        if event == "open" and not filled and re.search(r"/runs/[^/]+/\.tmp-", str(arguments[0])):
            filled.append(Path(os.environ["NANOCHAT_BASE_DIR"], "filler"))
            filled[0].write_bytes(bytes(max(shutil.disk_usage(filled[0].parent).free // 4096 * 4096 - room, 0)))

    sys.addaudithook(watch)


def main() -> None:
    kind, _, number = sys.argv.pop(1).partition(":")
    {"kill": kill_at, "full": fill_to}[kind](int(number))
    from nanochat.cli.app import main as command

    command()


if __name__ == "__main__":
    main()
