"""Main memory available to this process, within a container's limit."""

import os

from nanochat.console import quantity
from nanochat.errors import PreflightError
from nanochat.hardware import procfs

FALLBACK = 8 << 30  # bytes, if the system does not report its memory


def available_bytes() -> int:
    """Bytes of memory that this process can still allocate."""
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else FALLBACK
    lines = procfs.read("/proc/meminfo").splitlines()
    available = [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable")]
    limit, used = procfs.read("/sys/fs/cgroup/memory.max").strip(), procfs.read("/sys/fs/cgroup/memory.current").strip()
    contained = [int(limit) - int(used)] if limit.isdigit() and used.isdigit() else []
    return min([total, *available, *contained])


def require_memory(what: str, needed: int) -> None:
    """Raise PreflightError unless this process can still allocate `needed` bytes of memory."""
    free = available_bytes()
    if needed > free:
        raise PreflightError(
            f"{what} needs {quantity(needed)}B of memory; {quantity(free)}B are free",
            "close other programs, or use a machine with more memory",
        )
