"""A run whose system clock is set forward or back in its midst: nothing is lost or ended by it, no duration follows it, and it is said."""

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests import tiny

LINE = "the system's clock was set"
STEPS = 300
JUMPS = {"forward by 1 h 00 min": 3600, "back by 1 h 00 min": -3600, "forward by 24 h 00 min": 86400}


class Clock:
    """The system clock of processes that are started with its `environment` (tests/clock.c)."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch):
        self.file, library = folder / "moved", folder / "clock.so"
        flags = ["-O1", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC"]
        subprocess.run(["cc", *flags, "-o", library, tiny.ROOT / "tests" / "clock.c"], check=True)
        self.set(0)
        self.environment = {"LD_PRELOAD": str(library), "SET_CLOCK": str(self.file)}
        for name, value in self.environment.items():
            monkeypatch.setenv(name, value)

    def set(self, seconds: int) -> None:
        """Set it to so many seconds after the real time."""
        with self.file.open("r+b" if self.file.exists() else "wb") as file:  # the same file: it is mapped
            file.write(seconds.to_bytes(8, sys.byteorder, signed=True))


@pytest.fixture
def clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Clock:
    if sys.platform != "linux" or not shutil.which("cc"):
        pytest.skip("a clock that a test can set needs Linux and a C compiler")
    return Clock(tmp_path, monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("jump", JUMPS)
def test_a_run_whose_clock_is_set(jump: str, processes: int, clock: Clock, base: Path, tmp_path: Path) -> None:
    options = {"num_iterations": STEPS, "nproc_per_node": processes, "save_minutes": 30, "hang_timeout": 10.0}
    began, folder = time.monotonic(), base / "runs" / "tiny"
    process = tiny.start(base, "entrypoint.py", *tiny.flags(tiny.sentences(tmp_path / "text.txt"), **options))
    while not ((folder / "metrics.jsonl").exists() and (folder / "metrics.jsonl").read_text().count("\n") > 50):
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.05)
    clock.set(JUMPS[jump])
    said = process.communicate(timeout=300)[1]
    assert process.returncode == 0, said
    whole = time.monotonic() - began
    assert said.count(LINE) == 1 and f"{LINE} {jump}" in said and "suspended" not in said and "no progress" not in said, said
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    elapsed = [line["elapsed_seconds"] for line in lines]
    assert elapsed == sorted(elapsed) and elapsed[0] >= 0 and elapsed[-1] < whole
    assert min(line["step_seconds"] for line in lines) >= 0 and sum(line["step_seconds"] for line in lines) < whole
    assert json.loads((folder / "report.json").read_text())["seconds"] < whole
    assert [path.name for path in (folder / "base").glob("step_*")] == [f"step_{STEPS:06d}"]  # no save was due
