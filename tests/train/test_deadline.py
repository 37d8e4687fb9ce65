"""The absolute end of a job: the run stops there with a checkpoint and a final code, and is not started after it."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nanochat.cloud.workload import FINAL_CODES
from nanochat.errors import LAUNCHER_FINAL_CODES, Preempted, PreflightError, UsageError
from nanochat.train import deadline
from nanochat.train.deadline import VARIABLE, Deadline
from nanochat.train.signals import StopSignal
from tests import tiny

CODE = PreflightError.exit_code


@pytest.mark.parametrize("text", ["soon", "-5", "1e9", "17900000000000", "١٧٩٠٠٠٠٠٠٠", "1790000000.5"])
def test_nonsense_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match=VARIABLE):
        Deadline.of({VARIABLE: text})
    assert Deadline.of({}).end is Deadline.of({VARIABLE: " "}).end is None
    assert Deadline.of({VARIABLE: "1790000000"}).end == 1.79e9


def test_nothing_is_started_after_it() -> None:
    with pytest.raises(PreflightError, match="2001-09-09 01:46:40 UTC"), Deadline(1e9).kept(StopSignal()):
        raise AssertionError("started")


def test_before_the_loop_it_ends_the_command() -> None:
    stop = StopSignal()
    with pytest.raises(PreflightError, match="before the first step") as caught, stop.installed(), Deadline(time.time() + 0.1).kept(stop):
        time.sleep(30)
    assert "--max-hours" in caught.value.hint and caught.value.exit_code in set(FINAL_CODES) & set(LAUNCHER_FINAL_CODES)


def test_in_the_loop_it_sets_the_flag_once(capsys: pytest.CaptureFixture[str]) -> None:
    """And a signal that came before it is not followed by a second, which would end the process in the midst of its save."""
    for earlier in (False, True):
        with StopSignal().installed() as stop, Deadline(time.time() + 0.1).kept(stop):
            stop.in_loop = True
            if earlier:
                os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.3)
            assert stop.set
    assert capsys.readouterr().err.count("saving after this step") == 2


def test_a_launcher_leaves_it_to_its_workers() -> None:
    """Whoever passes signals on would send the workers a second one."""
    seen = []
    with StopSignal().installed() as stop, Deadline(time.time() + 0.1).kept(stop):
        before = signal.signal(signal.SIGTERM, lambda number, _: seen.append(number))
        time.sleep(0.3)
        signal.signal(signal.SIGTERM, before)
    assert seen == [] and not stop.set


@pytest.mark.parametrize(("ahead", "kind"), [(3600.0, Preempted), (5.0, PreflightError)])
def test_another_machines_clock(ahead: float, kind: type[Exception]) -> None:
    """Ranks stop together, as soon as the first of their clocks has come so far; a preemption long before remains one."""
    with pytest.raises(kind), Deadline(time.time() + ahead).kept(StopSignal()):
        raise Preempted("stopped after step 5, which is saved")


def test_a_clock_that_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deadline, "LOOK_SECONDS", 0.02)
    with StopSignal().installed() as stop, Deadline(time.time() + 600).kept(stop):
        stop.in_loop = True
        real = time.time
        monkeypatch.setattr(deadline.time, "time", lambda: real() + 601)
        time.sleep(0.3)
        assert stop.set


@pytest.mark.long
@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_run_stops_saves_and_resumes(tmp_path: Path, processes: int) -> None:
    """As a container runs it: a final code, a checkpoint; started again too late it is refused, with a later end it resumes."""
    base, text = tmp_path / "data", tiny.sentences(tmp_path / "text.txt")
    flags = tiny.flags(text, num_iterations=10**6, save_every=-1, nproc_per_node=processes)
    environment = tiny.environment(base)
    began = time.monotonic()
    environment[VARIABLE] = str(int(time.time()) + 25)
    first = run(environment, *flags)
    assert first.returncode == CODE, first.stderr
    assert time.monotonic() - began < 60 and "deadline" in first.stderr and "which is saved" in first.stderr, first.stderr
    assert first.stderr.count("error: ") == 1, first.stderr
    done = tiny.losses(base)[-1][1]
    assert done > 0 and (base / "runs" / "tiny" / "base" / f"step_{done:06d}" / "manifest.json").exists()
    late = run(environment, *flags)
    assert late.returncode == CODE and "nothing was started" in late.stderr and tiny.losses(base)[-1][1] == done
    again = run(environment | {VARIABLE: str(int(time.time()) + 25)}, *flags)
    assert again.returncode == CODE and f"resuming at step {done}" in again.stderr and tiny.losses(base)[-1][1] > done, again.stderr


def run(environment: dict[str, str], *arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "entrypoint.py", *arguments]
    return subprocess.run(command, cwd=tiny.ROOT, env=environment, capture_output=True, text=True, timeout=180, check=False)
