"""The device's memory: the cap, and an attempt that fails leaves it free."""

import resource
import subprocess
import sys
import weakref
from collections.abc import Sequence

import pytest
import torch

from nanochat.distributed import memory
from nanochat.distributed.memory import Attempt, cap, is_out_of_memory, map_with_oom_backoff
from nanochat.errors import OutOfMemoryError
from nanochat.hardware.gpu_specs import usable_bytes
from tests.tiny import ROOT

CPU = torch.device("cpu")


class Held:
    """Something large in a frame that fails."""


def test_what_a_failed_attempt_held_is_free() -> None:
    alive = []

    def work() -> None:
        held = Held()
        alive.append(weakref.ref(held))
        raise torch.OutOfMemoryError("CUDA out of memory")

    with Attempt(CPU) as attempt:
        work()
    assert attempt.failed and alive[0]() is None
    with Attempt(CPU) as attempt:
        pass
    assert not attempt.failed


@pytest.mark.parametrize("error", [ValueError("out of memory"), RuntimeError("shape"), KeyboardInterrupt()])
def test_other_errors_pass(error: BaseException) -> None:
    with pytest.raises(type(error)), Attempt(CPU):
        raise error


def test_the_words_are_the_systems_own() -> None:
    """Of an allocation that really fails."""
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 55, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)


def test_work_map_with_oom_backoff_halves_where_the_memory_is_short(capsys: pytest.CaptureFixture[str]) -> None:
    """Items as long as they say, of which 6 together fit."""
    parts = []

    def work(part: Sequence[int]) -> list[int]:
        parts.append(list(part))
        if max(part) * len(part) > 6:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return [10 * item for item in part]

    items = [3, 3, 3, 3, 2, 2, 2, 1]
    assert map_with_oom_backoff(items, 12, work, CPU, "counting", cost=lambda item: item) == ([10 * item for item in items], 6)
    assert parts == [[3, 3, 3, 3], [3, 3], [3, 3], [2, 2, 2], [1]]
    assert "out of memory counting; continuing with batch size 2" in capsys.readouterr().err
    with pytest.raises(OutOfMemoryError, match="counting, at batch size 1"):
        map_with_oom_backoff([7, 1], 1, work, CPU, "counting")


REFUSED = """
import resource, torch
from nanochat.distributed.memory import Attempt
torch.set_num_threads(1)
torch.ones(4, 4) @ torch.ones(4, 4)
now = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (now + (200 << 20), resource.RLIM_INFINITY))
sizes = []
rows = 64
while True:
    with Attempt(torch.device("cpu")) as attempt:
        torch.ones(rows << 20, dtype=torch.float32)
    sizes.append(rows)
    if not attempt.failed:
        break
    rows //= 2
print(sizes)
"""


def test_the_system_itself_refuses() -> None:
    """200 MB of address space are left: 64 Mi numbers of 4 bytes do not fit, 32 Mi do, after the failure too."""
    done = subprocess.run([sys.executable, "-c", REFUSED], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout.strip() == "[64, 32]", done.stderr


@pytest.mark.parametrize(
    ("total", "free", "limit"),
    [
        (6 << 30, 6 << 30, usable_bytes(6 << 30)),  # nobody else is on it: what the plan counts on, 5.2 GB
        (6 << 30, 4 << 30, (4 << 30) - memory.RESERVE),  # a desktop holds 2 GiB
        (6 << 30, 100 << 20, 0),
    ],
)
def test_the_cap_is_what_is_free_at_the_start(total: int, free: int, limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    set_to = []
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, total))
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", lambda part, device: set_to.append(part))
    assert cap(torch.device("cuda", 0)) == limit
    assert set_to == [pytest.approx(limit / total)]


def test_a_cpu_has_no_cap() -> None:
    assert cap(CPU) is None
    assert resource.getrlimit(resource.RLIMIT_AS)[0] == resource.RLIM_INFINITY


@pytest.mark.gpu
def test_over_the_cap_is_out_of_memory() -> None:
    device = torch.device("cuda", 0)
    limit = cap(device)
    assert limit is not None
    try:
        with Attempt(device) as attempt:
            torch.empty(limit + (64 << 20), dtype=torch.uint8, device=device)
        assert attempt.failed
        with Attempt(device) as attempt:
            torch.empty(limit // 2, dtype=torch.uint8, device=device)
        assert not attempt.failed
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, device)
