"""Main memory that is free for this process, a container's limit respected."""

import os

from nanochat.console import quantity
from nanochat.errors import PreflightError
from nanochat.hardware import procfs

FALLBACK = 8 << 30  # bytes, where the system does not say how many it has


def available_bytes() -> int:
    """Bytes of memory that this process may still take."""
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else FALLBACK
    lines = procfs.read("/proc/meminfo").splitlines()
    available = [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable")]
    limit, used = procfs.read("/sys/fs/cgroup/memory.max").strip(), procfs.read("/sys/fs/cgroup/memory.current").strip()
    contained = [int(limit) - int(used)] if limit.isdigit() and used.isdigit() else []
    return min([total, *available, *contained])


def require_memory(what: str, needed: int) -> None:
    """Raise PreflightError unless this process may still take `needed` bytes of memory."""
    free = available_bytes()
    if needed > free:
        raise PreflightError(
            f"{what} needs {quantity(needed)}B of memory, and {quantity(free)}B are free", "use a machine with more memory"
        )
