"""Commands in a real terminal, tmux, of 120, 80 and 40 columns: nothing smeared or cut, no colours that need a dark background."""

import itertools
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.tiny import ROOT, chats, environment, flags, sentences

pytestmark = [pytest.mark.long, pytest.mark.skipif(not shutil.which("tmux"), reason="tmux is not installed (Debian: apt install tmux)")]
LIVE = re.compile(r"\d(/| of )\d.*(\d[smhd]|\d s|\d min)$")  # a live line: the stage, and at its end a time left
NUMBERS = itertools.count()  # of the servers
STYLES = {"", "0", "1", "2", "39", "49"}  # SGR codes: bold and dim with the terminal's own colours


class Terminal:
    """A tmux of its own with one pane, in which a command runs."""

    def __init__(self, width: int, base: Path, *arguments: str, **more: str):
        self.name = f"nanochat-{os.getpid()}-{next(NUMBERS)}"
        settings = environment(base) | {"TERM": "tmux-256color", "NO_COLOR": ""} | more
        kept = {name: settings[name] for name in ("NANOCHAT_BASE_DIR", "OMP_NUM_THREADS", "TERM", "NO_COLOR", "PATH") if settings[name]}
        command = ["env", *(f"{name}={value}" for name, value in kept.items()), sys.executable, "-m", "nanochat", *arguments]
        options = ("set-option", "-g", "history-limit", "9999", ";", "set-option", "-g", "remain-on-exit", "on", ";")
        self._tmux(*options, "new-session", "-d", "-x", str(width), "-y", "40", "-c", str(ROOT), shlex.join(command))

    def _tmux(self, *arguments: str) -> str:
        command = ["tmux", "-L", self.name, "-f", "/dev/null", *arguments]
        return subprocess.run(command, text=True, capture_output=True, check=True, timeout=60).stdout

    def lines(self, *options: str) -> list[str]:
        """What it shows, with all that has scrolled away. Options of tmux's capture-pane: -e with styles, -J without its own wrapping."""
        found = [line.rstrip() for line in self._tmux("capture-pane", "-p", "-S", "-", *options).splitlines()]
        return [line for line in found if line and not line.startswith("Pane is dead")]

    def type(self, text: str) -> None:
        """Type a line."""
        self._tmux("send-keys", "-l", text)
        self._tmux("send-keys", "Enter")

    def until(self, true: Callable[[list[str]], object], seconds: float = 120) -> list[str]:
        """The lines once `true` of them."""
        end = time.monotonic() + seconds
        while not true(lines := self.lines()):
            assert time.monotonic() < end, lines
            time.sleep(0.1)
        return lines

    def ended(self, _: object = None) -> bool:
        """Whether the command has ended."""
        return self._tmux("display-message", "-p", "#{pane_dead}").strip() == "1"

    def close(self) -> None:
        """End tmux, if it has not ended."""
        subprocess.run(["tmux", "-L", self.name, "kill-server"], capture_output=True, timeout=60)


@pytest.fixture
def terminals(request: pytest.FixtureRequest) -> Iterator[Callable[..., Terminal]]:
    """Opens terminals, which end with the test."""
    opened: list[Terminal] = []

    def one(*arguments: object, **more: str) -> Terminal:
        opened.append(Terminal(*arguments, **more))  # type: ignore[arg-type]
        return opened[-1]

    yield one
    for terminal in opened:
        terminal.close()


def read(terminal: Terminal, width: int) -> None:
    """Check a terminal's lines: none is wrapped in a word, and none has a colour of its own."""
    whole = terminal.lines("-J")
    kept = rf"`[^`]*`|\S{{{width // 2},}}|^(chat|page): "  # commands and paths, which can be copied
    cut = [line for line in whole if len(line) > width and not re.search(kept, line)]
    assert cut == []
    styles = {code for line in terminal.lines("-e") for codes in re.findall(r"\x1b\[([\d;]*)m", line) for code in codes.split(";")}
    assert styles <= STYLES, styles


@pytest.mark.parametrize(("width", "no_color"), [(120, ""), (80, "1"), (40, "")])
def test_a_training_and_a_chat(terminals: Callable[..., Terminal], tmp_path: Path, width: int, no_color: str) -> None:
    text, talks = sentences(tmp_path / "text.txt"), chats(tmp_path / "talks.jsonl")
    more = {
        "num_iterations": 200,
        "sft_iterations": 20,
        "sample_every": 100,
        "eval_every": 100,
        "max_seq_len": 128,
        "total_batch_size": 512,
    }
    options = flags(text, chat_data=str(talks), **more)
    training = terminals(width, tmp_path / "base", *options, NO_COLOR=no_color)
    training.until(lambda lines: LIVE.search(lines[-1]) if lines else training.ended())
    while not training.ended():
        lines = training.lines()
        assert sum(bool(LIVE.search(line)) for line in lines) <= 1, lines  # one live line, and nothing left of the ones before
        time.sleep(0.3)
    lines = training.lines()
    assert not any(LIVE.search(line) for line in lines) and any("sft step 20/20" in line for line in lines), lines
    read(training, width)
    assert no_color == "" or not any("\x1b" in line for line in training.lines("-e"))

    chat = terminals(width, tmp_path / "base", "chat", "--max-tokens", "5", "--seed", "1", NO_COLOR=no_color)
    for typed, answer in (("the old man", r"^> $|^>$"), ("/stats", "context: "), ("/nothing", "^hint: ")):
        chat.until(lambda lines: lines and lines[-1] == ">")
        chat.type(typed)
        chat.until(lambda lines, answer=answer: any(re.search(answer, line) for line in lines))
    read(chat, width)


@pytest.mark.parametrize("width", [120, 80, 40])
def test_plans_runs_and_errors(terminals: Callable[..., Terminal], tmp_path: Path, width: int) -> None:
    for arguments in (["plan", "--profile=rtx4090"], ["runs"], ["chat"], ["train", "--profile=none"], ["trian"], ["disk"]):
        terminal = terminals(width, tmp_path / "base", *arguments)
        terminal.until(terminal.ended)
        assert terminal.lines(), arguments
        read(terminal, width)
        terminal.close()
