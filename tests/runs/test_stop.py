"""Stopping a run from another process: the one that trains it, and no other one, saves and ends."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nanochat import paths
from nanochat.errors import DataError, HungError, UsageError
from nanochat.runs import lock
from nanochat.runs.lock import LOCK, STOP, Holder, holder_of
from nanochat.runs.stop import stop_run
from tests import tiny
from tests.runs.test_lock import held, start


def test_a_run_in_training_saves_and_ends(base: Path, tmp_path: Path) -> None:
    text = tiny.sentences(tmp_path / "text.txt")
    process = tiny.start(base, "entrypoint.py", *tiny.flags(text, num_iterations=100_000, save_minutes=60))
    tiny.wait_for(process, "base step 1/")
    holder = holder_of(paths.run_dir("tiny"))
    assert holder is not None and holder.pid == process.pid and holder.doing == lock.TRAINING
    stopped = stop_run("tiny", 60)
    assert process.communicate(timeout=60) and process.returncode == 75
    assert stopped is not None and stopped.saved and stopped.stage == "base" and stopped.step >= 1
    assert stopped.step == tiny.losses(base)[-1][1]
    assert holder_of(paths.run_dir("tiny")) is None and stop_run("tiny") is None


def test_a_process_that_cannot_be_seen_is_asked_through_the_directory(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "EXPIRE", 2.0)  # this process ends without removing its lock
    process = held(start(where="another machine"))
    holder = holder_of(paths.run_dir("one"))
    assert holder is not None and not holder.visible
    stopped = stop_run("one", 30)
    assert process.wait(30) == -signal.SIGTERM and stopped is not None and stopped.step == 0
    assert not (paths.run_dir("one") / STOP).exists()


def test_a_request_for_another_process_does_nothing(base: Path) -> None:
    process = held(start())
    try:
        (paths.run_dir("one") / STOP).write_text("0" * 32)
        time.sleep(1)  # it looks every 0.3 s
        assert process.poll() is None
    finally:
        process.kill()
        process.wait()


def test_one_that_does_not_train_is_left_alone(base: Path) -> None:
    with pytest.raises(DataError, match="no run 'one'"):
        stop_run("one")
    with lock.hold("one", "removing it"), pytest.raises(UsageError, match="not being trained: removing it"):
        stop_run("one")


def test_another_process_with_the_same_id_is_not_signalled(base: Path) -> None:
    """The lock of a process that was killed names an id that another process has by now."""
    other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        folder = paths.run_dir("one")
        folder.mkdir(parents=True)
        was = dataclasses.replace(Holder.here(lock.TRAINING), pid=other.pid, started="1")
        (folder / LOCK).write_text(json.dumps(dataclasses.asdict(was)))
        assert holder_of(folder) is None and stop_run("one", 1) is None
        assert other.poll() is None
    finally:
        other.kill()
        other.wait()


def test_one_that_does_not_end_is_told(base: Path) -> None:
    process = held(
        start(
            prefix=(sys.executable, "-c", "import os, signal, sys; signal.signal(15, signal.SIG_IGN); os.execv(sys.argv[1], sys.argv[1:])")
        )
    )
    try:
        with pytest.raises(HungError, match=r"not stopped within 0\.5 s") as caught:
            stop_run("one", 0.5)
        assert "--wait 1" in caught.value.hint and os.path.exists(f"/proc/{process.pid}")
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("text", ["", "{}", "[" * 1000])
def test_a_lock_without_a_name(base: Path, text: str) -> None:
    folder = paths.run_dir("one")
    folder.mkdir(parents=True)
    (folder / LOCK).write_text(text)
    assert holder_of(folder) == lock.UNKNOWN  # it may be about to sign
    os.utime(folder / LOCK, (1, 1))
    assert holder_of(folder) is None
