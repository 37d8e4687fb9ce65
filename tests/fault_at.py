"""`python tests/fault_at.py N ARGUMENTS`: the command line, killed (SIGKILL) instead of its N-th fsync.

Every file that must survive is synced, then renamed, then its folder is synced: each N is a moment between two of these.
"""

import os
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))


def main() -> None:
    left, sync = [int(sys.argv.pop(1))], os.fsync

    def fsync(descriptor: int) -> None:
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        sync(descriptor)

    os.fsync = fsync  # type: ignore[assignment]
    from nanochat.cli.app import main as command

    command()


if __name__ == "__main__":
    main()
