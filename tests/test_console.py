"""Messages go to stderr, numbers are for people, and progress is a few plain lines where there is no terminal."""

import pytest

from nanochat import console
from nanochat.console import Progress, duration, log, quantity, style


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
