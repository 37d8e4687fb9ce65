"""The control groups of this process, by which a container, systemd or a batch system limits it: versions 1 and 2.

A limit holds for a group and all groups below it, so that the smallest one from this process's own group up to the root counts. In a
container the root that is mounted is often the container's own group, and the path that the kernel names does not exist there.
"""

from collections.abc import Iterator
from pathlib import PurePosixPath

from nanochat.hardware import procfs

MOUNT = "/sys/fs/cgroup"


def folders(controller: str) -> Iterator[str]:
    """Directories in which limits of `controller` ("memory", "cpu") may be, from this process's own group up to the root."""
    for line in procfs.read("/proc/self/cgroup").splitlines():
        number, controllers, path = (*line.split(":", 2), "", "")[:3]
        if number == "0" and not controllers:
            roots = [MOUNT, f"{MOUNT}/unified"]
        elif controller in controllers.split(","):
            roots = [f"{MOUNT}/{controller}", f"{MOUNT}/{controllers}"]
        else:
            continue
        own = PurePosixPath("/", path)
        yield from (f"{root}{group}".rstrip("/") for root in dict.fromkeys(roots) for group in map(str, (own, *own.parents)))


def number(path: str) -> int | None:
    """The number in a group's file; None if there is none: "max", no file."""
    text = procfs.read(path).strip()
    return int(text) if text.isdigit() else None


def stat(path: str, *names: str) -> int:
    """The first of the counters `names` in a group's file of counters; 0 if there is none."""
    counters = dict(line.rpartition(" ")[::2] for line in procfs.read(path).splitlines())
    return next((int(counters[name]) for name in names if counters.get(name, "").isdigit()), 0)
