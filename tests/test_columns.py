"""Text on terminals of any width: words stay whole, commands can be copied, lines of a result are indented."""

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios

import pytest

from nanochat.columns import columns, wrapped
from tests.tiny import ROOT

TEXTS = (
    "there are no runs yet; train one in minutes: `/opt/nanochat/.venv/bin/nanochat quickstart`",
    "  sample at step 5: 'a' -> 'one two' and /a/path/that/is/longer/than/any/narrow/terminal and more words",
    "an unclosed ` tick, 打包訓練資料打包訓練資料打包訓練資料打包訓練資料, the end",
    "",
)


@pytest.mark.parametrize("width", [120, 80, 40, 12, 1])
@pytest.mark.parametrize("text", TEXTS)
def test_words_and_commands_stay_whole(text: str, width: int) -> None:
    lines = wrapped(text, width).split("\n")
    assert " ".join(line.strip() for line in lines) == text.strip()
    commands = re.findall("`[^`]+`", text)
    assert all(any(command in line for line in lines) for command in commands)
    for line in lines:  # one that is too wide has a word, or a command, that is
        assert columns(line) <= width or any(columns(part) > width for part in re.findall(r"`[^`]*`|[^ ]+", line)), line


def test_lines_after_the_first_are_indented() -> None:
    assert wrapped("memory    57 MB of 17.6 GB", 20, 10).split("\n") == ["memory    57 MB of", "17.6 GB"]  # too narrow for it
    assert wrapped("memory    57 MB of 17.6 GB usable: fits", 31, 10).split("\n") == [
        "memory    57 MB of 17.6 GB",
        "          usable: fits",
    ]


@pytest.mark.parametrize("width", [80, 40])
def test_messages_and_results_on_a_terminal(width: int) -> None:
    """Wrapped there alone: a pipe has each message on one line."""
    message = "hint: " + "a word " * 30 + "and `nanochat plan --profile cpu`"
    script = f"from nanochat.console import log, show; log({message!r}); show('a: ' + 'b ' * 60, hanging=3)"
    leader, follower = pty.openpty()
    os.set_blocking(leader, False)
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 24, width, 0, 0))
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, stdout=follower, stderr=follower, timeout=60)
    lines = os.read(leader, 65536).decode().replace("\r\n", "\n").splitlines()
    assert done.returncode == 0 and max(map(len, lines)) <= width and all(re.search(r"(word|and|hint:|a|b|`)$", line) for line in lines)
    assert sum("`" in line for line in lines) == 1 and lines[-1].startswith("   b")
    plain = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert plain.stderr.count("\n") == plain.stdout.count("\n") == 1
    os.close(leader)
    os.close(follower)
