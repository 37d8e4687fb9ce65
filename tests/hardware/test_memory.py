"""Memory within the limits of containers, services and shells: trees of files as the kernel writes them, and this machine's own."""

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from nanochat.errors import PreflightError
from nanochat.hardware import cpu, memory
from tests.hardware.conftest import Plant

GB = 1 << 30
V1 = "/sys/fs/cgroup/memory"


@pytest.fixture(autouse=True)
def _machine(plant: Plant, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine of 16 GB, 12 of them free, without limits."""
    plant({"/proc/meminfo": f"MemTotal: {16 * GB >> 10} kB\nMemFree: 1 kB\nMemAvailable:    {12 * GB >> 10} kB"})
    sizes = {"SC_PHYS_PAGES": 16 * GB >> 12, "SC_PAGE_SIZE": 1 << 12}
    monkeypatch.setattr(memory.os, "sysconf", sizes.__getitem__)


def test_without_limits() -> None:
    assert memory.available() == memory.Memory(12 * GB)


def test_a_containers_limit_is_at_the_mounted_root(plant: Plant) -> None:
    """Docker with its own cgroup namespace: the path is "/". Cached files count as used, and are given up."""
    plant({"/proc/self/cgroup": "0::/", "/sys/fs/cgroup/memory.max": 4 * GB, "/sys/fs/cgroup/memory.current": 3 * GB})
    assert memory.available_bytes() == GB
    plant({"/sys/fs/cgroup/memory.stat": f"anon 5\nfile 9\ninactive_file {2 * GB}"})
    assert memory.available() == memory.Memory(3 * GB, "a container's or service's limit (memory.max) of 4.3 GB")


@pytest.mark.parametrize("limited", ["/user.slice/run.scope", "/user.slice", ""])
def test_every_group_above_counts(limited: str, plant: Plant) -> None:
    """As under `systemd-run --user -p MemoryMax=`: the groups below or above have no limit."""
    plant({"/proc/self/cgroup": "0::/user.slice/run.scope"})
    for group in ("/user.slice/run.scope", "/user.slice", ""):
        plant({f"/sys/fs/cgroup{group}/memory.max": "max", f"/sys/fs/cgroup{group}/memory.current": GB})
    plant({f"/sys/fs/cgroup{limited}/memory.max": 2 * GB})
    assert memory.available_bytes() == GB


def test_memory_above_high_is_throttled(plant: Plant) -> None:
    plant({"/proc/self/cgroup": "0::/a", "/sys/fs/cgroup/a/memory.max": "max", "/sys/fs/cgroup/a/memory.current": GB})
    plant({"/sys/fs/cgroup/a/memory.high": 3 * GB})
    assert memory.available_bytes() == 2 * GB


@pytest.mark.parametrize("path", ["/docker/abc", "/"], ids=["the host's path, which is not mounted here", "its own root"])
def test_version_1(path: str, plant: Plant) -> None:
    plant({"/proc/self/cgroup": f"5:cpu,cpuacct:/x\n4:memory:{path}\n0::/"})
    plant({f"{V1}/memory.limit_in_bytes": 2 * GB, f"{V1}/memory.usage_in_bytes": GB + 5})
    plant({f"{V1}/memory.stat": "inactive_file 1\ntotal_inactive_file 5"})
    assert memory.available_bytes() == GB
    plant({f"{V1}/memory.limit_in_bytes": 9223372036854771712})  # none
    assert memory.available_bytes() == 12 * GB


@pytest.mark.parametrize("content", ["", "nonsense", "0::", "0", "4:memory", ":::"])
def test_odd_files_are_no_limit(content: str, plant: Plant) -> None:
    plant({"/proc/self/cgroup": content, "/sys/fs/cgroup/memory.max": "-1", "/sys/fs/cgroup/memory.current": "x"})
    assert memory.available_bytes() == 12 * GB


def test_more_used_than_allowed_leaves_nothing(plant: Plant) -> None:
    plant({"/proc/self/cgroup": "0::/", "/sys/fs/cgroup/memory.max": GB, "/sys/fs/cgroup/memory.current": 2 * GB})
    assert memory.available_bytes() == 0
    with pytest.raises(PreflightError, match=r"needs 0.1 GB of memory; 0.0 GB are free within a container's or service's limit") as raised:
        memory.require_memory("this", 100_000_000)
    assert "raise that limit" in raised.value.hint


def test_a_shells_limit_of_addresses(plant: Plant, monkeypatch: pytest.MonkeyPatch) -> None:
    """`ulimit -v`. What torch, its libraries and threads take or will take of it is left out."""
    monkeypatch.setattr(resource, "getrlimit", lambda _: (9 * GB, resource.RLIM_INFINITY))
    for taken, free in ((1, 9 * GB - memory.ADDRESSES), (7, 2 * GB), (10, 0)):
        plant({"/proc/self/status": f"VmPeak: 1 kB\nVmSize:  {taken << 20} kB"})
        assert memory.available().free == free and "ulimit -v" in memory.available().limit


def test_kills_are_counted(plant: Plant) -> None:
    assert memory.oom_kills() is None
    plant({"/proc/vmstat": "nr_free_pages 5\noom_kill 3\npgfault 1"})
    assert memory.oom_kills() == 3


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({"/proc/self/cgroup": "0::/a", "/sys/fs/cgroup/a/cpu.max": "max 100000", "/sys/fs/cgroup/cpu.max": "150000 100000"}, 2),
        ({"/proc/self/cgroup": "0::/a", "/sys/fs/cgroup/a/cpu.max": "50000 100000"}, 1),
        ({"/proc/self/cgroup": "3:cpu,cpuacct:/d", "/sys/fs/cgroup/cpu,cpuacct/d/cpu.cfs_quota_us": 300000}, 3),
        ({"/proc/self/cgroup": "3:cpu:/d", "/sys/fs/cgroup/cpu/cpu.cfs_quota_us": -1}, 8),
    ],
    ids=["version 2, above", "version 2", "version 1", "version 1 without a limit"],
)
def test_a_containers_processors(files: dict[str, object], cores: int, plant: Plant, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(files | {"/sys/fs/cgroup/cpu,cpuacct/d/cpu.cfs_period_us": 100000, "/sys/fs/cgroup/cpu/cpu.cfs_period_us": 100000})
    monkeypatch.setattr(cpu.os, "sched_getaffinity", lambda _: set(range(8)))
    assert cpu.physical_cores.__wrapped__() == cores and cores - 1 < cpu.processor_limit() <= cores


# This machine's own limits

CODE = "from nanochat.hardware import memory; found = memory.available(); print(found.free, found.limit)"


def test_this_shells_limit() -> None:
    command = f"ulimit -v {7 << 20} && exec {sys.executable} -c '{CODE}'"
    said = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=True).stdout
    assert int(said.split()[0]) == 7 * GB - memory.ADDRESSES and "ulimit -v" in said


def test_a_real_groups_limit(memory_group: Path) -> None:
    command = f"echo $$ > {memory_group}/cgroup.procs && exec {sys.executable} -c '{CODE}'"
    said = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=True, env=os.environ).stdout
    assert 100 << 20 < int(said.split()[0]) <= 256 << 20 and "container's or service's limit" in said
