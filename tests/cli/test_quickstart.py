"""The end of `quickstart`: what it prints runs, and on a terminal it offers a chat; one default temperature everywhere."""

import fcntl
import inspect
import math
import os
import pty
import re
import select
import shlex
import struct
import subprocess
import sys
import termios
import time
from functools import partial
from pathlib import Path

import pytest

from nanochat.chat import terminal
from nanochat.chat.server import WEB
from nanochat.cli import model
from nanochat.columns import columns
from nanochat.train.steplog import small_curve
from tests.tiny import ROOT, call, chats, environment, flags, sentences

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A data directory with a finished run named quickstart, and the command line that made it."""
    folder = tmp_path_factory.mktemp("quickstart")
    text, talks = sentences(folder / "text.txt"), chats(folder / "talks.jsonl")
    options = flags(text, "quickstart", chat_data=str(talks), sft_iterations=3)[2:]
    done = call(folder / "base", "entrypoint.py", "quickstart", *options, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "[y/N]" not in done.stderr  # a pipe is not asked
    return folder / "base", options


def at_a_terminal(base: Path, arguments: list[str], answers: list[tuple[str, str]], width: int = 80) -> tuple[int, str]:
    """Run the command on a terminal; each of `answers` is (what to wait for, what to type). Returns exit code and what was shown."""
    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 24, width, 0, 0))
    command = [sys.executable, "entrypoint.py", *arguments]
    streams = {"stdin": follower, "stdout": follower, "stderr": follower}
    controls = partial(fcntl.ioctl, follower, termios.TIOCSCTTY, 0)  # so that Ctrl-C is a signal
    process = subprocess.Popen(command, cwd=ROOT, env=environment(base), start_new_session=True, preexec_fn=controls, **streams)
    os.close(follower)
    shown, end = b"", time.monotonic() + 120
    try:
        while time.monotonic() < end:
            if select.select([leader], [], [], 0.2)[0]:
                try:
                    shown += os.read(leader, 65536)
                except OSError:  # the other end is closed
                    break
            if answers and answers[0][0].encode() in shown:
                os.write(leader, answers.pop(0)[1].encode())
            if process.poll() is not None and not select.select([leader], [], [], 0)[0]:
                break
        return process.wait(60), shown.decode(errors="replace")
    finally:
        process.kill()
        os.close(leader)


def test_a_terminal_is_asked_and_yes_opens_the_chat(finished: tuple[Path, list[str]]) -> None:
    base, options = finished
    code, shown = at_a_terminal(base, ["quickstart", *options], [("[y/N]", "y\n"), ("Ctrl-C stops", "/quit\n")])
    assert code == 0 and "Chat with the model now? [y/N]" in shown and "model: run quickstart, sft" in shown, shown


@pytest.mark.parametrize("answer", ["\n", "\x04", "n\n", "\x03"])
def test_the_default_is_no(finished: tuple[Path, list[str]], answer: str) -> None:
    base, options = finished
    code, shown = at_a_terminal(base, ["quickstart", *options], [("[y/N]", answer)])
    assert code == 0 and "[y/N]" in shown and "model: run" not in shown


def test_the_commands_at_the_end_run_as_they_are_printed(finished: tuple[Path, list[str]], tmp_path: Path) -> None:
    base, options = finished
    said = call(base, "entrypoint.py", "quickstart", *options).stderr
    chat = re.search(r"^chat: +(.*)$", said, re.M)
    assert chat and re.search(r"^page: +(.* serve --run quickstart), then open", said, re.M)
    command = f"{chat[1]} --prompt cat --temperature 0"
    plain = environment(base) | {"PATH": "/usr/bin:/bin"}  # a shell opened just now, with no environment activated
    done = subprocess.run(["sh", "-c", command], cwd=ROOT, env=plain, text=True, capture_output=True, timeout=60)
    assert done.returncode == 0 and done.stdout.strip(), (command, done.stderr)
    assert shlex.split(command)[-1] == "0"


@pytest.mark.parametrize(
    ("target", "expected"), [("chat", "entrypoint.py chat"), ("serve", "entrypoint.py serve"), ("serve PORT=81", "serve --port 81")]
)
def test_make_has_them_too(target: str, expected: str) -> None:
    done = subprocess.run(["make", "-n", "-o", ".venv/.installed", *target.split()], cwd=ROOT, text=True, capture_output=True)
    assert done.returncode == 0 and expected in done.stdout


def test_one_default_temperature() -> None:
    page = re.search(r"DEFAULTS = \{ temperature: ([\d.]+)", (WEB / "settings.js").read_text(encoding="utf-8"))
    here = {inspect.signature(command).parameters["temperature"].default for command in (model.chat, terminal.chat)}
    assert page and here == {float(page[1])}


@pytest.mark.parametrize("width", [pytest.param(120, marks=pytest.mark.slow), 80, pytest.param(40, marks=pytest.mark.slow)])
def test_a_training_shows_one_live_line(tmp_path: Path, width: int) -> None:
    """On a terminal: a line that is replaced, never wider than the terminal; in a pipe plain lines, few of them."""
    text = sentences(tmp_path / "text.txt")
    options = flags(text, "live", num_iterations=400)
    code, shown = at_a_terminal(tmp_path / "base", options, [], width)
    frames = [frame for frame in shown.split("\r\x1b[K")[1:] if "\n" not in frame]
    live = [frame for frame in frames if re.search(r"2(/| of )3:? base (\d+/400|\d+%)", frame)]
    assert code == 0 and live and max(map(columns, frames)) < width
    assert not re.search(r"base step (?!400)\d\d+/400 \| loss", shown) and "base step 400/400" in shown
    if width == 120:
        form = r"\[#*\.*\] stage 2 of 3: base \d+/400 \| loss \d\.\d{3} [▁-█]* \| .* tokens/s \| .* left, run .*\d s$"
        assert re.match(form, live[-1]), live[-1]
    plain = call(tmp_path / "plain", "entrypoint.py", *options, timeout=120)
    assert plain.returncode == 0 and "\r" not in plain.stderr and len(re.findall("base step", plain.stderr)) < 12


def test_the_small_curve() -> None:
    assert small_curve([3.0]) == "" and small_curve([1.0, math.nan, 2.0]) == "▁█" and small_curve([1.0] * 9) == "▁" * 9
    falling = small_curve([10 / (step + 1) for step in range(1000)])
    assert len(falling) == 16 and falling[0] == "█" and falling[-1] == "▁"
