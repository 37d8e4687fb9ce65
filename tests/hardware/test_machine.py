"""Whether a machine has cores to spare."""

from pathlib import Path

import pytest

from nanochat.hardware import machine as hardware

STAT = "cpu  {user} 0 0 {idle} 0 0 0 0 0 0\ncpu0 1 2 3 4\n"


@pytest.mark.parametrize(
    ("busy", "quiet"), [([0], True), ([3], True), ([8, 8, 8, 8, 8], False), ([20] * 5, False), ([20, 9, 0], True)], ids=str
)
def test_quiet(busy: list[int], quiet: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 20 ticks of two processors, as many as others took, span after span; this process has both."""
    texts = [text for taken in busy for text in (STAT.format(user=100, idle=1000), STAT.format(user=100 + taken, idle=1020 - taken))]
    found = iter(texts)
    monkeypatch.setattr(hardware, "_read", lambda _: next(found))
    monkeypatch.setattr(hardware, "physical_cores", lambda: 2)
    monkeypatch.setattr(hardware.os, "cpu_count", lambda: 2)
    assert hardware.quiet(0.0) is quiet and next(found, None) is None


def test_where_nothing_tells(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "_read", lambda _: "")
    assert not hardware.quiet(0.0)


@pytest.mark.skipif(not Path("/proc/stat").exists(), reason="only Linux tells")
def test_the_real_ticks_go_on() -> None:
    idle, total = hardware._processor_ticks()
    assert 0 < idle <= total <= hardware._processor_ticks()[1]
