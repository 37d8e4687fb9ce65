"""A suspended run: stopped in the midst of each kind of work and continued, it loses nothing, counts no time, and says it once."""

import json
import os
import re
import signal
import threading
import time
from pathlib import Path

import pytest

from tests import tiny
from tests.chat.serve_process import Serve

SECONDS = 3.0  # that a process is stopped in the quick test
LINE = "this machine or process was suspended for"


def state(process: int) -> str:
    """A process's state in /proc: T is stopped; "" if it has ended."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""


def stopped_at(base: Path, place: str, seconds: float, *arguments: str) -> tuple[str, float]:
    """(stderr of a command that was stopped at `place` for `seconds`, its own seconds)."""
    began = time.monotonic()
    process = tiny.start(base, "tests/fault_at.py", f"stop:{place}", *arguments)
    while (found := state(process.pid)) not in ("T", "Z", ""):
        time.sleep(0.02)
    assert found == "T", process.communicate()[1]
    time.sleep(seconds)
    process.send_signal(signal.SIGCONT)
    said = process.communicate(timeout=120)[1]
    assert process.returncode == 0, said
    return said, time.monotonic() - began


def check(base: Path, run: str, said: str, seconds: float, whole: float) -> None:
    """The suspension is said once, and is in no time of the run."""
    assert said.count(LINE) == 1 and "no progress" not in said, said
    report = json.loads((base / "runs" / run / "report.json").read_text())
    lines = [json.loads(line) for line in (base / "runs" / run / "metrics.jsonl").read_text().splitlines()]
    assert report["seconds"] < whole - seconds and sum(line["step_seconds"] for line in lines) < whole - seconds


def test_a_run_that_is_suspended_in_a_step(base: Path, tmp_path: Path) -> None:
    text = tiny.sentences(tmp_path / "text.txt")
    said, whole = stopped_at(base, "step,3", SECONDS, *tiny.flags(text, "stopped"))
    check(base, "stopped", said, SECONDS, whole)
    assert [step for _, step, _ in tiny.losses(base, "stopped")] == [1, 2, 3, 4, 5, 6]


@pytest.mark.slow
@pytest.mark.parametrize("place", ["packing", "step,3", "save", "save,5", "evaluation", "report"])
def test_a_run_that_is_suspended_in_any_work(place: str, base: Path, tmp_path: Path) -> None:
    """For longer than --hang_timeout, and the losses are those of a run that was not suspended."""
    text = tiny.sentences(tmp_path / "text.txt")
    alone = tiny.call(base, "entrypoint.py", *tiny.flags(text, "alone"))
    assert alone.returncode == 0, alone.stderr
    for path in base.glob("tokens/*/*"):
        for file in path.iterdir():
            file.unlink()
    said, whole = stopped_at(base, place, 12.0, *tiny.flags(text, "stopped", hang_timeout=10.0))
    check(base, "stopped", said, 12.0, whole)
    assert tiny.losses(base, "stopped") == tiny.losses(base, "alone")


@pytest.mark.slow
def test_two_processes_that_are_suspended_together(base: Path, tmp_path: Path) -> None:
    """For longer than a rank's heartbeat may be missing (40 s)."""
    flags = tiny.flags(tiny.sentences(tmp_path / "text.txt"), nproc_per_node=2, num_iterations=400)
    process = tiny.start(base, "entrypoint.py", *flags)
    metrics = base / "runs" / "tiny" / "metrics.jsonl"
    while not (metrics.exists() and metrics.read_text().count("\n") > 5):
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.1)
    workers = [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]
    assert len(workers) == 2
    for pid in (process.pid, *workers):
        os.kill(pid, signal.SIGSTOP)
    before = metrics.read_text().count("\n")
    assert before < 400
    time.sleep(50)
    assert metrics.read_text().count("\n") == before
    for pid in (*workers, process.pid):
        os.kill(pid, signal.SIGCONT)
    said = process.communicate(timeout=240)[1]
    assert process.returncode == 0 and said.count(LINE) == 1 and "a worker was lost" not in said, said
    assert re.search(rf"{LINE} (4|5)\d s", said) and len(tiny.losses(base)) == 400


@pytest.mark.slow
def test_a_server_that_is_suspended_answers_afterwards(base: Path, tmp_path: Path) -> None:
    """Also a question that came meanwhile."""
    done = tiny.call(
        base,
        "entrypoint.py",
        *tiny.flags(tiny.sentences(tmp_path / "text.txt"), sft_iterations=2, chat_data=tiny.chats(tmp_path / "c.jsonl")),
    )
    assert done.returncode == 0, done.stderr
    server, codes = Serve(base), list[int]()
    try:
        os.kill(server.process.pid, signal.SIGSTOP)
        asking = threading.Thread(target=lambda: codes.append(server.ask().status_code))
        asking.start()
        time.sleep(12)
        os.kill(server.process.pid, signal.SIGCONT)
        asking.join(60)
        assert codes == [200] and server.ask().status_code == 200
        server.wait_log(LINE)
    finally:
        server.end()
