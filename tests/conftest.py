"""Shared fixtures: every test that touches the data directory gets one of its own."""

import getpass
import os
import signal
import sys
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

os.environ.setdefault("OMP_NUM_THREADS", "1")  # the tests run side by side: threads would only fight over the cores
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # and where several wait for each other, they sleep
# What a run compiles at its start is the same for all: it is compiled once.
os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(Path(tempfile.gettempdir(), f"nanochat-tests-{getpass.getuser()}")))
# How long an example takes says how busy the machine is, not whether the code is right.
settings.register_profile("nanochat", deadline=None)
settings.load_profile("nanochat")
# A job that a shell put in the background ignores Ctrl-C, and so would every process that the tests start and interrupt.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def as_before_training() -> Iterator[None]:
    """Each test has denormal numbers and torch's own operations, also after one that has trained in this process.

    A command that ended in this process ignores SIGTERM from then on, as would every process that the next tests start and stop.
    """
    terminate = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, terminate)
    if "torch" in sys.modules:
        sys.modules["torch"].set_flush_denormal(False)
    if "nanochat.kernels.selection" in sys.modules:
        sys.modules["nanochat.kernels.selection"].forget()


@pytest.fixture
def fused_operations() -> None:
    """A CPU's fused operations in this process, for one test."""
    from nanochat.kernels import build as kernels

    for dtype in kernels.TYPES:
        if why := kernels.load(dtype, Path(os.environ["TORCHINDUCTOR_CACHE_DIR"])):
            pytest.skip(f"fused operations: {why}")


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty data directory, set as NANOCHAT_BASE_DIR."""
    folder = tmp_path / "base"
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(folder))
    return folder


def control_group(controller: str, limits: dict[str, str]) -> Iterator[Path]:
    """A real control group of this machine with the first file of `limits` that it has, of version 1 or 2; none: the test is skipped."""
    for root in (Path("/sys/fs/cgroup", controller), Path("/sys/fs/cgroup")):
        folder = root / f"nanochat-test-{uuid.uuid4().hex}"
        try:
            folder.mkdir()
        except OSError:
            continue
        try:
            limit = next(path for name in limits if (path := folder / name).exists())
            limit.write_text(limits[limit.name])
            yield folder
            return
        except (OSError, StopIteration):
            continue
        finally:
            folder.rmdir()
    pytest.skip("no control group can be made here")


@pytest.fixture
def memory_group() -> Iterator[Path]:
    """A real control group with 256 MB of memory."""
    yield from control_group("memory", {"memory.limit_in_bytes": str(256 << 20), "memory.max": str(256 << 20)})


@pytest.fixture
def processor_group() -> Iterator[Path]:
    """A real control group with half a processor, of a period of 0.1 s, as by Docker's `--cpus 0.5`."""
    yield from control_group("cpu", {"cpu.cfs_quota_us": "50000", "cpu.max": "50000 100000"})
