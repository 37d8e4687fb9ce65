"""This machine's CPU: its cores, and what other programs leave of them."""

import os
import time
from pathlib import Path

import pytest

from nanochat.hardware import cpu
from nanochat.hardware.cpu import FreeProcessors

LINE = "cpu{number} {user} {nice} 0 {idle} 0 0 0 {steal} 0 0\n"


class Stat:
    """A /proc/stat of processors 0 to 3, of which this process may use 0 and 1, and its own CPU time."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch):
        self.path, self.own, self.now, self.niceness = folder / "stat", 0.0, 100.0, 0
        self.ticks = {number: dict.fromkeys(("user", "nice", "idle", "steal"), 0) for number in range(4)}
        monkeypatch.setattr(cpu, "STAT", str(self.path))
        monkeypatch.setattr(cpu.os, "sched_getaffinity", lambda _: {0, 1})
        monkeypatch.setattr(cpu.os, "times", lambda: os.times_result((self.own, 0.0, 0.0, 0.0, 0.0)))
        monkeypatch.setattr(cpu.os, "nice", lambda _: self.niceness)
        monkeypatch.setattr(cpu.time, "monotonic", lambda: self.now)
        self.passes(1.0)

    def passes(self, seconds: float, own: float = 0.0, **taken: tuple[int, int]) -> None:
        """Time passes, of which this process took `own` seconds, included in what was `taken` of processors 0 and 1, in ticks."""
        self.now, self.own = self.now + seconds, self.own + own
        for number, ticks in self.ticks.items():
            for name, both in taken.items():
                ticks[name] += both[number] if number < 2 else round(100 * seconds)
            ticks["idle"] += round(100 * seconds) - sum(both[number] for both in taken.values()) if number < 2 else 0
        self.path.write_text("cpu 1 2 3 4\n" + "".join(LINE.format(number=number, **ticks) for number, ticks in self.ticks.items()))


@pytest.fixture
def stat(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stat:
    return Stat(tmp_path, monkeypatch)


def test_processors_that_others_leave(stat: Stat) -> None:
    free = FreeProcessors()
    assert free() is None  # no time has passed
    stat.passes(2.0, own=2.0, user=(200, 0))
    assert free() == pytest.approx(2.0)  # idle, or this process's own
    stat.passes(2.0, own=2.0, user=(200, 200))
    assert free() == pytest.approx(1.0)
    stat.passes(0.5, user=(50, 50))
    assert free() == pytest.approx(1.0)  # too short to say anything new
    stat.passes(2.0, user=(200, 200), steal=(0, 0))
    assert free() == pytest.approx(0.0)
    stat.passes(2.0, own=2.0, user=(200, 0), steal=(0, 100))
    assert free() == pytest.approx(1.5)  # the host of a virtual machine took half a processor


def test_programs_of_low_priority_leave_the_processors_to_others_but_not_to_their_like(stat: Stat) -> None:
    free = FreeProcessors()
    stat.passes(2.0, own=0.0, nice=(200, 0))
    assert free() == pytest.approx(2.0)
    stat.niceness = 10
    free = FreeProcessors()
    stat.passes(2.0, own=1.0, nice=(200, 0))
    assert free() == pytest.approx(1.5)


@pytest.mark.parametrize("text", [None, "", "cpu0 1 2\n", "cpux 1 2 3 4 5 6 7 8\n\n"], ids=["no file", "empty", "short", "odd"])
def test_where_nothing_tells(text: str | None, stat: Stat) -> None:
    stat.path.unlink()
    if text is not None:
        stat.path.write_text(text)
    free = FreeProcessors()
    stat.now += 5
    assert free() is None


@pytest.mark.skipif(not Path(cpu.STAT).exists(), reason="only Linux tells")
def test_this_machine_tells(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "WINDOW", 0.1)
    free = FreeProcessors()
    time.sleep(0.2)
    value = free()
    assert value is not None and 0 <= value <= len(os.sched_getaffinity(0)) + 0.5


def test_this_machines_cores_and_speed() -> None:
    assert 1 <= cpu.physical_cores() <= 4096
    assert cpu.measure_flops(0.01) > 1e8
