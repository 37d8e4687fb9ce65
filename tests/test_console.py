"""Messages go to stderr, numbers are for people, and progress is a few plain lines where there is no terminal."""

import ast
import io
import json
import os
import sys
from pathlib import Path

import pytest

from nanochat import console
from nanochat.columns import columns, wrapped
from nanochat.console import Progress, duration, fail, log, printable, quantity, show, show_json, style
from nanochat.errors import DataError, Preempted

PACKAGE = Path(console.__file__).parent
HOSTILE = "a\x1b]0;title\x07\x1b[2Jb\r\x9b31mc\x85\u202egnp.exe\u2066\x7f\0\udc9b\ud800\b"
PLAIN = "a]0;title[2Jb31mcgnp.exe\ufffd\ufffd"
# What these print is their own, and must come although other ranks are mute, in a signal's handler, or for a program.
OWN_PRINTS = {
    *("console.py", "train/signals.py", "planning/calibrate.py"),
    *(f"distributed/{name}.py" for name in ("watchdog", "liveness", "ranks")),
}


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min 00 s"),
        (185, "3 min 05 s"),
        (7800, "2 h 10 min"),
        (3599.7, "1 h 00 min"),
        (273_600, "3 d 4 h"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0"), (950, "950"), (1500, "1.5K"), (12_300_000, "12.3M"), (4e9, "4.0B"), (2e12, "2.0T"), (-1500, "-1.5K")]
)
def test_quantities(value: float, text: str) -> None:
    assert quantity(value) == text


def test_messages_are_on_stderr(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    log("a message")
    assert style("plain") == "plain"  # no terminal
    out, err = capfd.readouterr()
    assert (out, err) == ("", "a message\n")
    monkeypatch.setattr(console, "_muted", False)
    console.mute()
    log("nothing")
    assert capfd.readouterr() == ("", "")


def test_no_color_is_honoured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert style("bold") == "\x1b[1mbold\x1b[0m"
    monkeypatch.setenv("NO_COLOR", "1")
    assert style("bold") == "bold"


def test_progress_is_a_few_plain_lines(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("nanochat.console.time.monotonic", lambda: now[0])
    with Progress("reading", 1000, "bytes") as progress:
        for _ in range(100):
            now[0] += 0.25
            progress.advance(10)
    lines = capfd.readouterr().err.splitlines()
    assert lines == [
        "reading: 400/1.0K bytes, 40/s, 15 s left",
        "reading: 800/1.0K bytes, 40/s, 5 s left",
        "reading: 1.0K bytes in 25 s",
    ]


def test_a_failure_is_not_told_as_done(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError), Progress("reading", 0, "bytes"):
        raise ValueError
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("width", [120, 80, 40, 20, 8, 1])
@pytest.mark.parametrize("what", ["packing shard_00000.parquet", "打包訓練資料 shard_00000.parquet"])
def test_a_bar_never_wraps(what: str, width: int, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A line that wraps is not erased by the next one; the terminal's last column may wrap as well."""
    now = [0.0]
    monkeypatch.setattr("nanochat.console.time.monotonic", lambda: now[0])
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    monkeypatch.setattr("os.get_terminal_size", lambda *_: os.terminal_size((width, 24)))
    with Progress(what, 123_456_789, "documents") as progress:
        for _ in range(20):
            now[0] += 987.6
            progress.advance(6_000_000)
        log("a message above the bar")
    frames = capfd.readouterr().err.split("\r\x1b[K")
    shown = [frame for frame in frames if "\n" not in frame]
    assert len(shown) >= 20 and max(map(columns, shown)) <= max(width - 1, 0)
    assert frames[-1] == f"{wrapped(f'{what}: 120.0M documents in 5 h 29 min', width, 2)}\n"
    assert width == 1 or frames[-3:-1] == [
        f"{wrapped('a message above the bar', width, 2)}\n",
        frames[-4],
    ]  # and the same bar again below it
    if width == 120:
        assert shown[-1].startswith("[#######################.] ") and "6.1K/s, 9 min" in shown[-1]
    if width == 40:
        assert shown[-1].startswith(what[:8])


def test_columns_of_wide_and_combining_characters() -> None:
    assert (columns("abc"), columns("訓練"), columns("e\u0301"), columns("（）")) == (3, 4, 1, 4)


# ---- foreign text ---------------------------------------------------------------------------------------------------


@pytest.fixture
def level(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put the level back after a test that sets it."""
    monkeypatch.setattr(console, "_level", console.NORMAL)


@pytest.mark.parametrize(
    ("level_set", "shown"),
    [
        (console.QUIET, "warning: w\nerror: e\nhint: h\nstopped\n"),
        (console.NORMAL, "plain\nwarning: w\nerror: e\nhint: h\nstopped\n"),
        (console.VERBOSE, "plain\nexpert\nwarning: w\nerror: e\nhint: h\nstopped\nreading: 0 bytes in 0 s\n"),
    ],
)
def test_levels(level_set: int, shown: str, level: None, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Warnings and errors always, details for experts with VERBOSE, and how an unfinished run ended."""
    monkeypatch.delenv("NANOCHAT_DEBUG", raising=False)
    console.set_level(level_set)
    log("plain")
    log("expert", level=console.VERBOSE)
    log("warning: w")
    fail(DataError("e", "h"))
    fail(Preempted("stopped"))
    with Progress("reading", 0, "bytes"):
        pass
    show("result")
    assert capfd.readouterr() == ("result\n", shown)


def test_foreign_text_is_printable() -> None:
    assert printable(HOSTILE) == PLAIN
    assert printable("tab\tand\nnewline, 你好 🎈, שלום, e\u0301, \u200d") == "tab\tand\nnewline, 你好 🎈, שלום, e\u0301, \u200d"
    everything = "".join(map(chr, range(0x11000)))
    assert not [c for c in printable(everything) if (ord(c) < 32 and c not in "\t\n") or 127 <= ord(c) < 160 or 0xD800 <= ord(c) < 0xE000]


def test_whatever_prints_foreign_text_makes_it_printable(
    level: None, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    console.set_level(console.VERBOSE)
    monkeypatch.delenv("NANOCHAT_DEBUG", raising=False)
    log(f"a file {HOSTILE}\nerror: forged")
    fail(DataError(f"no {HOSTILE}\nhint: forged", f"use {HOSTILE}\nerror: forged"))
    show(HOSTILE)
    with Progress(HOSTILE, 0, "B"):
        pass
    out, err = capfd.readouterr()
    assert out == f"{PLAIN}\n"
    # U+0085 and the like end a line for Python: in a message they are spaces.
    assert [line.split()[0] for line in err.splitlines()] == ["a", "error:", "hint:", err.splitlines()[3].split()[0]]
    assert printable(err) == err and err.count("\n") == 4 and "forged" in err


def test_styles_are_ours_alone(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    monkeypatch.delenv("NO_COLOR", raising=False)
    log("run \x1b[31mred", console.BOLD)
    assert capfd.readouterr().err == "\x1b[1mrun [31mred\x1b[0m\n"


def test_json_keeps_its_values(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    value = {"你好": [HOSTILE, "tab\tand\nnewline"]}
    show_json(value)
    out = capsys.readouterr().out
    assert json.loads(out) == value and printable(out) == out and "你好" in out
    narrow = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", narrow)
    show_json(value)
    show("你好")
    lines = narrow.buffer.getvalue().decode("ascii").splitlines()  # type: ignore[attr-defined]
    assert json.loads(lines[0]) == value and lines[1] == "??"


def test_nothing_else_prints() -> None:
    """What comes from a model, a file or a server is printed by the console alone, which makes it printable."""
    found = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Name) and node.id == "print":
                found.add(str(path.relative_to(PACKAGE)))
            if isinstance(node, ast.Attribute) and node.attr == "write" and ast.unparse(node.value) in ("sys.stdout", "sys.stderr"):
                found.add(str(path.relative_to(PACKAGE)))
    assert found <= OWN_PRINTS


def test_commands_in_messages_run_where_they_are_printed(tmp_path, monkeypatch, capsys):
    script = tmp_path / "bin" / "nanochat"
    script.parent.mkdir()
    script.touch(mode=0o755)
    monkeypatch.setattr("sys.executable", str(script.parent / "python"))
    monkeypatch.delenv("NANOCHAT_COMMAND", raising=False)

    def hint(path: str, here: Path) -> str:
        monkeypatch.setenv("PATH", path)
        monkeypatch.chdir(here)
        console.command.cache_clear()
        log("run `nanochat train --profile cpu`")
        return capsys.readouterr().err.strip()

    assert hint("/usr/bin", tmp_path) == "run `bin/nanochat train --profile cpu`"
    assert hint("/usr/bin", tmp_path / "bin" / "..") == "run `bin/nanochat train --profile cpu`"
    assert hint("/usr/bin", Path("/")) == f"run `{str(script)[1:]} train --profile cpu`"
    assert hint(str(script.parent), tmp_path) == "run `nanochat train --profile cpu`"
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "nanochat").symlink_to(script)
    assert hint(str(tmp_path / "links"), tmp_path) == "run `nanochat train --profile cpu`"
    script.unlink()
    assert hint("/usr/bin", tmp_path) == f"run `{script.parent / 'python'} -m nanochat train --profile cpu`"
    monkeypatch.setenv("NANOCHAT_COMMAND", "docker compose run --rm nanochat")
    assert hint("/usr/bin", tmp_path) == "run `docker compose run --rm nanochat train --profile cpu`"
    console.command.cache_clear()


def test_the_page_has_a_service_of_its_own_in_compose(monkeypatch: pytest.MonkeyPatch) -> None:
    """`docker compose run` publishes no port, so `serve` there could not be reached."""
    for command, wanted in (
        ("docker compose run --rm nanochat", "docker compose up -d chat"),
        ("podman run x", "podman run x serve --run r"),
    ):
        monkeypatch.setenv("NANOCHAT_COMMAND", command)
        console.command.cache_clear()
        assert console.serve_command("r") == wanted
    console.command.cache_clear()
