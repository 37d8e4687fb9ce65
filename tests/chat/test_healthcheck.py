"""The health check, on a /proc of its own: what it makes of servers, trainings and everything else."""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from nanochat.chat import healthcheck
from nanochat.runs.heartbeat import HEARTBEAT

Start = Callable[..., None]
STARTED = 1_000_000  # seconds since the epoch


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Start:
    """Adds a process with a command line, and a state, to the /proc that is read."""
    monkeypatch.setattr(healthcheck, "PROCESSES", tmp_path / "proc")
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc" / "stat").write_text(f"cpu 1 2 3\nbtime {STARTED - 10}\n")

    def add(pid: int, *words: str, state: str = "S") -> None:
        folder = tmp_path / "proc" / str(pid)
        folder.mkdir()
        (folder / "cmdline").write_bytes("\0".join(words).encode() + b"\0")
        ticks = 10 * os.sysconf("SC_CLK_TCK")
        (folder / "stat").write_text(f"{pid} (a ) name) {state} {' '.join(['0'] * 18)} {ticks} 0 0\n")

    return add


@pytest.fixture
def metrics(base: Path) -> Callable[[float], None]:
    """Gives a run a step and a checkpoint's folder at some moment."""

    def step(when: float) -> None:
        folder = base / "runs" / "some"
        (folder / "base").mkdir(parents=True, exist_ok=True)
        (folder / "metrics.jsonl").write_text("{}\n")
        os.utime(folder / "metrics.jsonl", (when, when))
        os.utime(folder / "base", (when, when))

    return step


@pytest.fixture
def server() -> Iterator[tuple[int, list[str]]]:
    """The port of a server, and the paths it was asked for."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as http:
        threading.Thread(target=http.serve_forever, daemon=True).start()
        yield http.server_port, asked
        http.shutdown()


@pytest.mark.parametrize("form", ["--port={}", "--port {}"])
def test_a_server_that_answers(start: Start, server: tuple[int, list[str]], form: str) -> None:
    start(1, "tini", "--", "nanochat", "serve")
    start(7, "/opt/venv/bin/python", "/opt/venv/bin/nanochat", "serve", "--host", "0.0.0.0", *form.format(server[0]).split())
    assert healthcheck.check() is None
    assert server[1] == ["/healthz"]


def test_a_server_that_does_not(start: Start) -> None:
    start(7, "python3", "entrypoint.py", "serve", "--port", "9")
    assert "does not answer" in (healthcheck.check() or "")


def test_a_training_that_prepares_steps_and_hangs(start: Start, metrics: Callable[[float], None], base: Path) -> None:
    start(1, "docker-init", "--", "tini", "--", "nanochat", "train")
    start(8, "/opt/venv/bin/python", "/opt/venv/bin/nanochat", "train", "--profile", "rtx4050")
    hours = STARTED + 36_000
    assert healthcheck.check(now=hours) is None  # it downloads
    metrics(STARTED - 60)
    assert healthcheck.check(now=hours) is None  # that line is of an earlier call
    metrics(hours - 60)
    assert healthcheck.check(now=hours) is None
    assert healthcheck.check(now=hours + 3600) == "no step for 3660 seconds"


def test_a_training_whose_clock_was_set_or_that_was_suspended(start: Start, metrics: Callable[[float], None], base: Path) -> None:
    """Two hours after the last step by the clock: the run itself tells how long ago that was."""
    start(8, "/opt/venv/bin/python", "/opt/venv/bin/nanochat", "train")
    metrics(STARTED + 60)
    for idle, said in ((40.0, None), (1900.0, "no step for 1900 seconds"), ("odd", "no step for 7200 seconds")):
        beat = {"time": time.time(), "idle_seconds": idle}
        (base / "runs" / "some" / HEARTBEAT).write_text(json.dumps(beat))
        assert healthcheck.check(now=STARTED + 7260) == said


@pytest.mark.parametrize("command", [("/opt/venv/bin/nanochat", "quickstart"), ("-m", "scripts.base_train")])
def test_a_stopped_training(start: Start, base: Path, command: tuple[str, ...]) -> None:
    start(8, "/opt/venv/bin/python", *command, state="T")
    assert healthcheck.check() == "the run is stopped"


def test_any_other_command(start: Start, base: Path) -> None:
    start(8, "/opt/venv/bin/python", "/opt/venv/bin/nanochat", "chat", "--run", "train", state="T")
    assert healthcheck.check() is None


def test_something_else(start: Start) -> None:
    start(1, "tini", "--", "nanochat", "train")
    start(9, "python", "-m", "nanochat.chat.healthcheck")
    assert healthcheck.check() is None


def test_it_is_quick() -> None:
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-X", "importtime", "-m", "nanochat.chat.healthcheck"], capture_output=True, text=True)
    print(f"{time.monotonic() - began:.2f} s")
    assert done.stdout.count("\n") == 1
    assert not any(name in done.stderr for name in ("torch", "numpy", "typer"))
