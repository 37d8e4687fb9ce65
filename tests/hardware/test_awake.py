"""Suspensions of a process are left out of its times, and said once; a busy interpreter is none."""

import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from nanochat.hardware import awake
from nanochat.hardware.awake import AwakeClock


@pytest.fixture
def clock() -> Iterator[AwakeClock]:
    clock = AwakeClock(interval=0.05, late=1.0)
    yield clock
    clock.unwatch()


def test_without_suspension_it_is_the_monotonic_clock(clock: AwakeClock) -> None:
    clock.watch()
    time.sleep(0.2)
    assert abs(clock() - time.monotonic()) < 0.01


STOPPED = """
import time
from nanochat.hardware.awake import AwakeClock
clock = AwakeClock(interval=0.05, late=1.0)
clock.watch()
began, real = clock(), time.monotonic()
print("began", flush=True)
while time.monotonic() < real + 2.5:
    time.sleep(0.01)
print(clock() - began, time.monotonic() - real, flush=True)
time.sleep(0.3)
"""


def test_a_stopped_process_leaves_the_time_out_and_says_it_once() -> None:
    process = subprocess.Popen([sys.executable, "-c", STOPPED], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout and process.stdout.readline() == "began\n"
    process.send_signal(signal.SIGSTOP)
    time.sleep(2.2)
    process.send_signal(signal.SIGCONT)
    said, lines = process.communicate(timeout=60)
    awake, real = map(float, said.split())
    assert real - awake > 2 and awake < 0.5 + real - 2.2
    assert lines.count("\n") == 1 and lines.startswith("this machine or process was suspended for 2 s")


@pytest.mark.parametrize("thread", ["1", "2"], ids=["this one", "another, which holds the interpreter"])
def test_a_crowded_machine_is_not_suspended(thread: str, clock: AwakeClock, monkeypatch: pytest.MonkeyPatch) -> None:
    """A late look, but a thread was running or waiting for a processor meanwhile."""
    seconds = {"1": 1.0, "2": 2.0}
    monkeypatch.setattr(awake, "_active", lambda: dict(seconds))
    clock._look(10.0)
    seconds[thread] += 11.5
    clock._look(22.0)
    assert clock.suspended == 0.0
    seconds[thread] += 0.5
    clock._look(34.0)
    assert clock.suspended == 11.5


def test_threads_that_wait_for_a_processor_are_active() -> None:
    """Where the kernel tells: a busy loop's thread was running or waiting all the time."""
    before, began = awake._active(), time.monotonic()
    while time.monotonic() < began + 0.3:
        pass
    most = max(seconds - before.get(thread, 0.0) for thread, seconds in awake._active().items())
    assert most > 0.25 or "" in before


def test_a_machine_that_slept_is_said_but_takes_nothing_from_the_clock(
    clock: AwakeClock, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """CLOCK_MONOTONIC does not count a laptop's sleep."""
    slept = [0.0]
    monkeypatch.setattr(awake, "_slept", lambda: slept[0])
    clock.watch()
    time.sleep(0.15)
    slept[0] = 600.0
    time.sleep(0.3)
    assert "suspended for 10 min" in capsys.readouterr().err and clock.suspended == 0.0


@pytest.mark.parametrize(("moved", "said"), [(3600.0, "set forward by 1 h 00 min"), (-86400.0, "set back by 24 h 00 min"), (2.0, "")])
def test_a_clock_that_is_set_is_said_once(
    moved: float, said: str, clock: AwakeClock, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """And no time follows it; a correction of a few seconds is no news."""
    clock.late = 8.0
    real, offset = time.time, [0.0]
    monkeypatch.setattr(time, "time", lambda: real() + offset[0])
    clock.watch()
    time.sleep(0.15)
    offset[0] = moved
    time.sleep(0.3)
    lines = capsys.readouterr().err
    assert lines.count("the system's clock was") == bool(said) and said in lines
    assert clock.suspended == 0.0 and abs(clock() - time.monotonic()) < 0.01
