"""This machine's CPU: its cores, and whether they are idle."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from nanochat.hardware import cpu

TICKS = "cpu  {busy} 0 0 {idle} 0 0 0 0 0 0\ncpu0 1 2 3 4\n"


@pytest.mark.parametrize(
    ("busy", "idle"), [([0], True), ([3], True), ([8, 8, 8, 8, 8], False), ([20] * 5, False), ([20, 9, 0], True)], ids=str
)
def test_idle_cores(busy: list[int], idle: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 20 ticks of two processors, as many as others took, span after span; this process has both."""
    stat, totals = tmp_path / "stat", [100, 1000]
    stat.write_text(TICKS.format(busy=totals[0], idle=totals[1]))
    spans: Iterator[int] = iter(busy)

    def sleep(_: float) -> None:
        taken = next(spans)
        totals[:] = totals[0] + taken, totals[1] + 20 - taken
        stat.write_text(TICKS.format(busy=totals[0], idle=totals[1]))

    monkeypatch.setattr(cpu, "STAT", str(stat))
    monkeypatch.setattr(cpu.time, "sleep", sleep)
    monkeypatch.setattr(cpu, "physical_cores", lambda: 2)
    monkeypatch.setattr(cpu.os, "cpu_count", lambda: 2)
    assert cpu.has_idle_cores() is idle and next(spans, None) is None


@pytest.mark.parametrize("text", [None, "", "cpu 1 2\n", "cpu  5 0 0 5 0 0 0 0\n"], ids=["no file", "empty", "short", "no time goes by"])
def test_where_nothing_tells(text: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if text is not None:
        (tmp_path / "stat").write_text(text)
    monkeypatch.setattr(cpu, "STAT", str(tmp_path / "stat"))
    assert not cpu.has_idle_cores(0.0)


@pytest.mark.skipif(not Path(cpu.STAT).exists(), reason="only Linux tells")
def test_this_machines_ticks_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """With fewer than no cores of its own, a process has idle ones wherever the ticks can be read."""
    monkeypatch.setattr(cpu, "physical_cores", lambda: -1)
    assert cpu.has_idle_cores(0.05)


def test_this_machines_cores_and_speed() -> None:
    assert 1 <= cpu.physical_cores() <= 4096
    assert cpu.measure_flops(0.01) > 1e8
