"""A suspended run: stopped in the midst of each kind of work and continued, it loses nothing, counts no time, and says it once."""

import json
import os
import shutil
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests import tiny
from tests.chat.serve_process import Serve
from tests.faulty import FaultyServer

SECONDS = 3.0  # that a process is stopped in the quick test
LINE = "this machine or process was suspended for"


def state(process: int) -> str:
    """A process's state in /proc: T is stopped; "" if it has ended."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""


def stopped(base: Path, fault: str, seconds: float, *arguments: str) -> tuple[str, float]:
    """(stderr of a command that stops itself by `fault`, for `seconds`; its seconds)."""
    began = time.monotonic()
    process = tiny.start(base, "tests/fault_at.py", fault, *arguments)
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
    said, whole = stopped(base, "brief:step,3", SECONDS, *tiny.flags(text, "stopped"))
    check(base, "stopped", said, SECONDS, whole)
    assert [step for _, step, _ in tiny.losses(base, "stopped")] == [1, 2, 3, 4, 5, 6]


# Everything stopped for longer than a heartbeat may be missing, with the clock's own bounds. All at once: they mostly wait.

LONG = float(os.environ.get("NANOCHAT_STOP_SECONDS", "50"))  # 600 for the ten minutes of a closed laptop
WORKS = ("tokenizer", "packing", "step,3", "save", "save,5", "evaluation", "step,8", "report")  # the eighth step is one of fine-tuning
DOWNLOAD = """
import sys
from pathlib import Path
from nanochat.cli.app import run_and_exit
from nanochat.hub.addresses import Remote
from nanochat.hub.download import fetch_all
url, folder, size, sha256 = sys.argv[1:]
run_and_exit(fetch_all, "downloading", [Remote(url, "file", int(size), sha256)], Path(folder), print)
"""


def stop(*processes: int) -> None:
    """Stop them, and continue them after LONG seconds."""
    for process in processes:
        os.kill(process, signal.SIGSTOP)
    time.sleep(LONG)
    for process in processes:
        os.kill(process, signal.SIGCONT)


def work(place: str, base: Path, flags: list[str], alone: list[tuple[str, int, float]]) -> None:
    """A run, for longer than --hang_timeout; its losses are those of one that was not stopped."""
    said, whole = stopped(base, f"stop:{place}", LONG, *flags)
    check(base, "tiny", said, LONG, whole)
    assert tiny.losses(base) == alone


def two_processes(base: Path, flags: list[str]) -> None:
    process = tiny.start(base, "entrypoint.py", *flags, "--nproc_per_node=2", "--num_iterations=400")
    metrics = base / "runs" / "tiny" / "metrics.jsonl"
    while not (metrics.exists() and metrics.read_text().count("\n") > 5):
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.1)
    workers = [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]
    assert len(workers) == 2
    stop(process.pid, *workers)
    said = process.communicate(timeout=240)[1]
    assert process.returncode == 0 and said.count(LINE) == 1 and "a worker was lost" not in said, said
    assert [line[:2] for line in tiny.losses(base) if line[0] == "base"] == [("base", step + 1) for step in range(400)]


def export(base: Path, run: Path) -> None:
    """The files are those of an export that was not stopped."""
    shutil.copytree(run, base / "runs" / "tiny")
    shutil.copytree(run.parent.parent / "tokenizer", base / "tokenizer")
    command = ["export", "--run=tiny", "--to=hf", "--out"]
    said, _ = stopped(base, "stop:export", LONG, *command, str(base / "one"))
    assert said.count(LINE) == 1
    again = tiny.call(base, "entrypoint.py", *command, str(base / "two"))
    assert again.returncode == 0, again.stderr
    one, two = ({path.name: path.read_bytes() for path in (base / name).iterdir()} for name in ("one", "two"))
    assert one == two and "model.safetensors" in one


def download(folder: Path) -> None:
    """The server closes the connection meanwhile."""
    server = FaultyServer(1, (), 64 << 20)
    server.pace, server.patience = 16e6, 10.0
    try:
        process = tiny.start(folder, "-c", DOWNLOAD, server.url, str(folder), str(len(server.body)), server.sha256)
        while server.sent < len(server.body) // 3:
            assert process.poll() is None, process.communicate()[1]
            time.sleep(0.01)
        stop(process.pid)
        said = process.communicate(timeout=120)[1]
        assert process.returncode == 0 and said.count(LINE) == 1 and (folder / "file").read_bytes() == server.body, said
        ranges = [request["range"] for request in server.requests if "range" in request]
        assert len(ranges) == 1 and server.sent < len(server.body) + (16 << 20)  # what was in the sockets' buffers comes twice
    finally:
        server.close()


def answer(base: Path, run: Path) -> None:
    """A streamed answer goes on, and a question that comes meanwhile is answered."""
    shutil.copytree(run, base / "runs" / "tiny")
    shutil.copytree(run.parent.parent / "tokenizer", base / "tokenizer")
    server = Serve(base, program=("tests/fault_at.py", "stop:answer,3"))
    try:
        with ThreadPoolExecutor() as pool:
            streamed = pool.submit(server.ask, stream=True, timeout=None)
            while state(server.process.pid) != "T":
                assert not streamed.done() and server.process.poll() is None, server.log
                time.sleep(0.02)
            other = pool.submit(server.ask, timeout=None)
            stop(server.process.pid)
            text = server.ask().json()["choices"][0]["message"]["content"]
            events = [json.loads(line[6:]) for line in streamed.result().text.splitlines() if line.startswith("data: {")]
        assert "".join(event["choices"][0]["delta"].get("content") or "" for event in events if event["choices"]) == text
        assert other.result().json()["choices"][0]["message"]["content"] == text and server.wait_log(LINE)
    finally:
        server.end()


@pytest.mark.slow
def test_everything_that_is_stopped_for_long_goes_on(tmp_path: Path) -> None:
    text, talks = tiny.sentences(tmp_path / "text.txt"), tiny.chats(tmp_path / "chats.jsonl")
    flags = tiny.flags(text, sft_iterations=3, chat_data=talks, hang_timeout=20.0)
    first = tiny.call(tmp_path / "alone", "entrypoint.py", *flags)
    assert first.returncode == 0, first.stderr
    run, losses = tmp_path / "alone" / "runs" / "tiny", tiny.losses(tmp_path / "alone")
    with ThreadPoolExecutor(20) as pool:
        calls = {place: pool.submit(work, place, tmp_path / place, flags, losses) for place in WORKS}
        calls["two processes"] = pool.submit(two_processes, tmp_path / "two", flags)
        calls["export"] = pool.submit(export, tmp_path / "export", run)
        calls["download"] = pool.submit(download, tmp_path / "download")
        calls["answer"] = pool.submit(answer, tmp_path / "answer", run)
    failed = {name: error for name, call in calls.items() if (error := call.exception())}
    assert not failed, "\n".join(f"{name}: {type(error).__name__}: {error}" for name, error in failed.items())
