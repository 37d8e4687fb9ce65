"""The share of the CPU that other programs use: of this process's processors, without its own time."""

import os
from collections.abc import Callable

import pytest

from nanochat.hardware import load
from nanochat.hardware.load import Busy, FreeProcessors, OtherLoad

Machine = Callable[..., None]


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    """Sets the ticks since boot of three processors, the first two ours, and the CPU seconds of this process."""

    def set_to(second: float, used: int, idle: int, steal: int = 0, own: float = 0.0) -> None:
        row = f"{used} 0 0 {idle} 0 0 0 {steal} 0 0"
        text = f"cpu  1 1 1 1 1 1 1 1 0 0\ncpu0 {row}\ncpu1 {row}\ncpu2 {10 * used} 0 0 0 0 0 0 0 0 0\nintr 1 2 3\n"
        monkeypatch.setattr(load.procfs, "read", lambda path: text)
        monkeypatch.setattr(load.time, "monotonic", lambda: second)
        monkeypatch.setattr(os, "times", lambda: (own, 0.0, 0.0, 0.0, second))

    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1}, raising=False)
    monkeypatch.setattr(os, "sysconf", lambda name: 100)
    set_to(0.0, 0, 0)
    return set_to


def test_others_use_what_is_used_beside_this_process(machine: Machine) -> None:
    found = OtherLoad()
    machine(10.0, used=800, idle=200, own=3.6)  # of two processors 1600 of 2000 ticks, 360 of them ours
    assert found.sample() == Busy(others=0.62) and found.busy.reason == "other programs use 62% of the CPU"
    machine(11.0, used=900, idle=200)
    assert found.sample() == Busy(others=0.62)  # too soon for another reading


def test_only_the_last_readings_count(machine: Machine) -> None:
    found = OtherLoad()
    for number in range(1, 9):
        machine(10.0 * number, used=min(number, 3) * 1000, idle=max(number - 3, 0) * 1000)
        found.sample()
    assert found.busy.others == 0.0 and found.busy.reason == ""


def test_several_processes_of_a_run_are_its_own(machine: Machine) -> None:
    found = OtherLoad(processes=2)
    machine(10.0, used=1000, idle=0, own=5.0)
    assert found.sample().others == pytest.approx(0.5)


def test_the_host_of_a_virtual_machine(machine: Machine) -> None:
    found = OtherLoad()
    machine(10.0, used=100, idle=500, steal=400, own=1.0)
    assert found.sample().stolen == pytest.approx(0.4) and "the host of this virtual machine takes 40%" in found.busy.reason


def test_a_system_that_does_not_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load.procfs, "read", lambda path: "")
    assert OtherLoad(every=0).sample() == Busy()


def test_processors_that_others_leave(machine: Machine) -> None:
    free = FreeProcessors()
    assert free() is None  # no time has passed
    machine(2.0, used=100, idle=100, own=2.0)
    assert free() == pytest.approx(2.0)  # idle, or this process's own
    machine(4.0, used=300, idle=100, own=4.0)
    assert free() == pytest.approx(1.0)
    machine(4.5, used=350, idle=100, own=4.5)
    assert free() == pytest.approx(1.0)  # too short to say anything new
    machine(6.5, used=500, idle=100, own=4.0)
    assert free() == pytest.approx(0.0)
    machine(8.5, used=600, idle=100, steal=50, own=6.0)
    assert free() == pytest.approx(2 - 2 * 150 / 150 + 1.0)  # the host of a virtual machine took half a processor


def test_free_processors_are_unknown_where_the_system_does_not_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load.procfs, "read", lambda path: "")
    monkeypatch.setattr(load, "WINDOW", 0.0)
    assert FreeProcessors()() is None
