"""Suspensions of a process are left out of its times, and said once; a busy interpreter is none."""

import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

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


def test_an_interpreter_that_is_held_is_not_suspended(clock: AwakeClock, monkeypatch: pytest.MonkeyPatch) -> None:
    """A late look with CPU time used meanwhile: another thread did not let go of the interpreter."""
    reads = iter([(10.0, 5.0, 0.0), (22.0, 16.0, 0.0), (34.0, 16.5, 0.0)])
    monkeypatch.setattr(clock, "_read", lambda: next(reads))
    clock._look()
    assert clock._look() == 22.0 and clock.suspended == 0.0
    clock._look()
    assert clock.suspended == 12.0


def test_a_machine_that_slept_is_said_but_takes_nothing_from_the_clock(
    clock: AwakeClock, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """CLOCK_MONOTONIC does not count a laptop's sleep."""
    slept = 0.0
    monkeypatch.setattr(clock, "_read", lambda: (time.monotonic(), time.process_time(), slept))
    clock.watch()
    time.sleep(0.15)
    slept = 600.0
    time.sleep(0.3)
    assert "suspended for 10 min" in capsys.readouterr().err and clock.suspended == 0.0
