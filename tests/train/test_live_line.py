"""The terminal's live line, on a pseudo-terminal: one line for the whole run, never wider than it, nothing of it left behind."""

import fcntl
import itertools
import os
import pty
import re
import signal
import struct
import termios
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nanochat import console
from nanochat.columns import columns
from nanochat.console import Progress, end_live, fail, live, log, show
from nanochat.errors import DataError
from nanochat.train import steplog
from nanochat.train.signals import StopSignal
from nanochat.train.timeleft import EVALUATION, FINISH, SAMPLE, SAVE, RunClock, StageWork
from tests.train.test_trainer import Run


class Terminal:
    """A pseudo-terminal on stderr, and what it shows: enough of a terminal for carriage returns, erasing, moving up and wrapping."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.leader, follower = pty.openpty()
        self.stderr, self.monkeypatch = os.fdopen(follower, "w", encoding="utf-8"), monkeypatch
        self.shown = ""
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def _read(self) -> None:
        data = b""
        while True:
            try:
                part = os.read(self.leader, 65536)
            except OSError:  # the other end is closed
                break
            data += part
            self.shown = data.decode("utf-8", "ignore").replace("\r\n", "\n")

    def resize(self, width: int) -> None:
        """Give it a width, and make it stderr: here, because pytest puts its own in place before each test begins."""
        self.monkeypatch.setattr("sys.stderr", self.stderr)
        self.width = width
        fcntl.ioctl(self.leader, termios.TIOCSWINSZ, struct.pack("HHHH", 24, width, 0, 0))

    def close(self) -> str:
        """The stream, after all of it has come."""
        self.stderr.close()
        self.reader.join(5)
        os.close(self.leader)
        return self.shown


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[Terminal]:
    monkeypatch.setattr(console, "_level", console.NORMAL)
    monkeypatch.setattr(console, "_muted", False)
    monkeypatch.setattr(steplog, "LIVE_SECONDS", 0.0)
    yield Terminal(monkeypatch)
    monkeypatch.setattr(console, "_forms", ((), 0.0, 0))
    monkeypatch.setattr(console, "_drawn", "")


def screen(stream: str, width: int) -> list[str]:
    """The lines that a terminal of `width` columns shows after `stream`."""
    rows, row, column = [""], 0, 0
    for part in re.findall(r"\x1b\[\d*[A-Za-z]|\r|\n|[^\x1b\r\n]", stream):
        if part == "\r":
            column = 0
        elif part == "\n":
            row, column = row + 1, 0
        elif part == "\x1b[K":
            rows[row] = rows[row][:column]
        elif part == "\x1b[J":
            rows[row:] = [rows[row][:column]]
        elif part.endswith("A") and part.startswith("\x1b"):
            row -= int(part[2:-1])
        elif not part.startswith("\x1b"):
            if column == width:  # a full row wraps at the next character
                row, column = row + 1, 0
            rows += [""] * (row + 1 - len(rows))
            rows[row] = rows[row].ljust(column)[:column] + part + rows[row][column + 1 :]
            column += 1
        rows += [""] * (row + 1 - len(rows))
    return [line.rstrip() for line in rows]


def train(folder: Path) -> None:
    """A run of two stages with evaluations, samples and an end, of a model that trains in milliseconds."""
    every: dict[str, Any] = {EVALUATION: 3, SAMPLE: 2, SAVE: 3}
    works = [StageWork(name, 6, 64.0, every, dict.fromkeys(every, 10.0)) for name in ("base", "sft")]
    clock = RunClock(works, tokens_per_second=64 / 100, end_tokens=64)  # a step of 100 s, by its plan
    for work in works:
        run = Run(folder / work.name, clock=clock, eval_every=3, sample_every=2, evaluate=lambda: {"bpb": 1.5}, sample=sample)
        run.stage.name = work.name
        run.go()
    clock.begin(FINISH)
    end_live()


def sample(step: int) -> None:
    log(f"  sample at step {step}: 'Once' -> 'there was a bear'")


@pytest.mark.parametrize("width", [120, 80, 40, 12])
def test_one_line_for_the_whole_run(terminal: Terminal, tmp_path: Path, width: int) -> None:
    terminal.resize(width)
    train(tmp_path)
    stream = terminal.close()
    frames = [frame for frame in re.split(r"\r\x1b\[K", stream)[1:] if frame and "\n" not in frame]
    assert len(frames) > 12 and max(map(columns, frames)) < width
    lines = screen(stream, width)
    assert lines[-1] == "" and not any(" left" in line or "run " in line for line in lines), lines
    if width > 12:
        said = "".join(lines)
        assert all(f"sample at step {step}:" in said for step in (2, 4, 6)) and said.count("validation") == 4 and "sft step 6/6" in said
    assert not re.search(r"step [1-5]/6 \| loss", "".join(lines)), "expert lines are for --verbose"
    patterns = {
        120: r"\[#*\.*\] stage (\d) of 4: (base|sft) \d/6 \| loss \d\.\d{3}(?: [▁-█]+)? \| \S+ tokens/s \| .*\d s left, run .*\d s",
        80: r"\[#*\.*\] (?:stage )?(\d)(?:/4| of 4:) (base|sft) \d/6 \| (?:loss )?\d\.\d{3}(?: [▁-█]+)? \| .*/s \| .*s left, run .*s",
        40: r"(?:\[#*\.*\] )?(\d)/4 (base|sft) \d+% \d\.\d{3} \S+s, run \S+s",
        12: r"(\d)/4 \S+s",
    }
    found = [re.fullmatch(patterns[width], frame) for frame in frames]
    assert all(found), frames[found.index(None)]
    assert {one[1] for one in found if one} == {"2", "3"}


def test_messages_come_above_the_line_which_stays(terminal: Terminal) -> None:
    terminal.resize(60)
    live(["a line of work that is long", "short"], 0.5, 1)
    log("first")
    log("an expert's detail", level=console.VERBOSE)
    log("second")
    before = "[############............] a line of work that is long"
    assert wait_for(terminal, "second", before) == ["first", "second", before]
    fail(DataError("it broke", "mend it"))  # an error ends it, and the shell's prompt comes on a line of its own
    assert screen(terminal.close(), 60) == ["first", "second", "error: it broke", "hint: mend it", ""]


def test_a_signals_message_takes_the_lines_place(terminal: Terminal) -> None:
    terminal.resize(60)
    live(["working"])
    stop = StopSignal()
    stop.in_loop = True
    stop._handle(signal.SIGTERM, None)
    live(["saving"])
    assert screen(terminal.close(), 100)[1:] == ["saving"] and "working" not in screen(terminal.shown, 100)[0]


def test_a_terminal_that_becomes_narrower(terminal: Terminal) -> None:
    """The terminal wraps what it shows; all rows of it are erased."""
    terminal.resize(60)
    live(["a line of fifty-nine columns that nearly fills the terminal"])
    wait_for(terminal, "terminal", "")
    terminal.resize(20)
    live(["short"])
    stream = terminal.close()
    assert screen(stream, 20) == ["short"]


def test_results_on_stdout_come_on_a_line_of_their_own(terminal: Terminal, capsys: pytest.CaptureFixture[str]) -> None:
    terminal.resize(60)
    live(["working"])
    show("a result")
    assert screen(terminal.close(), 60) == [""] and capsys.readouterr().out == "a result\n"


@pytest.mark.parametrize(
    ("width", "line"), [(100, "2/4 packing: 5/10 documents, 1/s, 5 s left, run 10 min 00 s"), (30, "2/4 packing: 5/10, 5 s left")]
)
def test_other_work_shows_the_runs_time_too(terminal: Terminal, monkeypatch: pytest.MonkeyPatch, width: int, line: str) -> None:
    now = itertools.count()
    monkeypatch.setattr("nanochat.console.time.monotonic", lambda: float(next(now)))
    terminal.resize(width)
    with console.within(lambda seconds: ("2/4", "10 min 00 s")), Progress("packing", 10, "documents") as progress:
        for _ in range(5):
            progress.advance(1)
        wait_for(terminal, "5/10", "")
    assert line in terminal.close()


def wait_for(terminal: Terminal, text: str, line: str) -> list[str]:
    """What the terminal shows once `text` has come, and `line` is its last one."""
    for _ in range(500):
        lines = screen(terminal.shown, terminal.width)
        if text in terminal.shown and lines[-1].endswith(line):
            return lines
        threading.Event().wait(0.01)
    raise AssertionError(terminal.shown)
