"""The lowest priority for CPU and disk, with which a run leaves the machine to whoever uses it (`--background`)."""

import contextlib
import ctypes
import os
import platform
from collections.abc import Iterator
from pathlib import Path

LOWEST = 19  # nice value
AUTOGROUP = Path("/proc/self/autogroup")  # on desktops the kernel shares the CPU between sessions first, and nice counts within one
IOPRIO_SET = {"x86_64": 251, "aarch64": 30}  # system call numbers of ioprio_set(2), for which the C library has no function
IDLE_CLASS, OF_A_PROCESS = 3 << 13, 1


@contextlib.contextmanager
def lowered() -> Iterator[list[str]]:
    """Lower the priority of this process, its threads and its later processes; yields the names of what was lowered.

    The priority of the session is restored at the end, because the shell is part of it. The process's own stays low: only root can raise
    it.
    """
    lowers = []
    if hasattr(os, "nice"):
        os.nice(LOWEST)
        lowers.append("CPU")
    if _idle_disk():
        lowers.append("disk")
    before = _session(LOWEST)
    try:
        yield lowers
    finally:
        if before is not None:
            _session(before)


def _idle_disk() -> bool:
    """Use the disk only while no other program does; False where the system has no such class."""
    number = IOPRIO_SET.get(platform.machine()) if platform.system() == "Linux" else None
    if number is None:
        return False
    return int(ctypes.CDLL(None).syscall(number, OF_A_PROCESS, 0, IDLE_CLASS)) == 0


def _session(nice: int) -> int | None:
    """Set the nice value of this session's share of the CPU; returns the one before, None if there are no such shares or it is refused."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        before = int(AUTOGROUP.read_text().split()[-1])
        AUTOGROUP.write_text(str(nice))
        return before
    return None
