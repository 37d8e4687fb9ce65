"""Main memory available to this process, within the limits of its control groups and of its address space (`ulimit -v`)."""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass

from nanochat.errors import PreflightError
from nanochat.hardware import cgroups, procfs

FALLBACK = 8 << 30  # bytes, if the system does not report its memory
NO_LIMIT = 1 << 60  # bytes of a version 1 group without a limit, at least
# Bytes of addresses that torch, its libraries, the threads' stacks and the C library's heaps for them take, without using them as memory:
# 3.0 GiB at the import, 5.2 GiB before the first step, measured on two cores.
ADDRESSES = 11 << 29


@dataclass(frozen=True)
class Memory:
    """Bytes that this process can still allocate, and the name of the limit that ends them; "" for the machine's own memory."""

    free: int
    limit: str = ""


def available() -> Memory:
    """The memory that this process can still allocate."""
    return min(_limits(), key=lambda memory: memory.free)


def available_bytes() -> int:
    """Bytes of memory that this process can still allocate."""
    return available().free


def _limits() -> Iterator[Memory]:
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else FALLBACK
    yield Memory(total)
    if (free := _kilobytes("/proc/meminfo", "MemAvailable")) is not None:
        yield Memory(free)
    for folder in cgroups.folders("memory"):
        for limit, used, name in (
            ("memory.max", "memory.current", "a container's or service's limit (memory.max)"),
            ("memory.high", "memory.current", "a container's or service's limit (memory.high)"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "a container's or service's limit (memory.limit_in_bytes)"),
        ):
            most, taken = cgroups.number(f"{folder}/{limit}"), cgroups.number(f"{folder}/{used}")
            if most is not None and taken is not None and most < NO_LIMIT:
                # Cached files are counted as used, and given up before the limit is enforced.
                cached = cgroups.stat(f"{folder}/memory.stat", "total_inactive_file", "inactive_file")
                yield Memory(max(most - max(taken - cached, 0), 0), f"{name} of {most / 1e9:.1f} GB")
    with contextlib.suppress(ImportError, OSError, ValueError):  # Unix only
        import resource

        most = resource.getrlimit(resource.RLIMIT_AS)[0]
        if most != resource.RLIM_INFINITY:
            taken = _kilobytes("/proc/self/status", "VmSize") or 0
            yield Memory(max(most - max(taken, ADDRESSES), 0), f"the limit of addresses (ulimit -v) of {most / 1e9:.1f} GB")


def _kilobytes(path: str, name: str) -> int | None:
    """The value of a line `name: N kB` of a file, in bytes."""
    for line in procfs.read(path).splitlines():
        words = line.split()
        if len(words) >= 2 and words[0] == f"{name}:" and words[1].isdigit():
            return int(words[1]) * 1024
    return None


def oom_kills() -> int | None:
    """Processes that the kernel has ended since boot because memory ran out, in any group; None if unknown."""
    text = procfs.read("/proc/vmstat")
    return cgroups.stat("/proc/vmstat", "oom_kill") if "oom_kill" in text else None


def require_memory(what: str, needed: int) -> None:
    """Raise PreflightError unless this process can still allocate `needed` bytes of memory."""
    memory = available()
    if needed > memory.free:
        within = f" within {memory.limit}" if memory.limit else ""
        more = "raise that limit" if memory.limit else "close other programs"
        what = f"{what} needs {needed / 1e9:.1f} GB of memory; {memory.free / 1e9:.1f} GB are free{within}"
        raise PreflightError(what, f"{more}, or use a machine with more memory")
