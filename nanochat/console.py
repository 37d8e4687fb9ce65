"""Messages and progress on stderr, results on stdout."""

import contextlib
import json
import os
import shlex
import shutil
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any

from nanochat.columns import columns, fitted, wrapped
from nanochat.errors import NanochatError, Preempted
from nanochat.redaction import redact

# Characters that move the cursor, hide text or reorder it: C0 and C1 controls, and bidirectional overrides.
_STEERING = [code for code in (*range(32), *range(127, 160), *range(0x202A, 0x202F), *range(0x2066, 0x206A)) if chr(code) not in "\t\n"]
_SURROGATES = range(0xD800, 0xE000)  # lone ones, which no encoding holds
_PRINTABLE = dict.fromkeys(_STEERING, "") | dict.fromkeys(_SURROGATES, "\ufffd")
_ESCAPED = {code: f"\\u{code:04x}" for code in (*_STEERING, *_SURROGATES)}

BOLD = "1"  # SGR code
LEAST_BAR, MOST_BAR = 6, 24  # columns of a bar inside its brackets

QUIET, NORMAL, VERBOSE = range(3)  # messages on stderr: warnings, errors and results, then progress too, then details for experts too

_muted = False
_forms: tuple[Sequence[str], float, int] = ((), 0.0, 0)  # arguments of the `live` line that the terminal shows, none if its lines are ()
_drawn = ""  # that line, without a newline
_drawing = threading.RLock()
_place: Callable[[float], tuple[str, str]] | None = None  # see `within`
_level = NORMAL


def set_level(level: int) -> None:
    """Print the messages up to `level` from now on: QUIET, NORMAL or VERBOSE."""
    global _level
    _level = level


def mute() -> None:
    """Print nothing from now on; called on every rank but the main one."""
    global _muted
    _muted = True


def printable(text: str) -> str:
    """`text` without the characters that control a terminal; tab and newline stay."""
    return text.translate(_PRINTABLE)


@cache
def command() -> str:
    """The command that runs `nanochat` in a fresh shell here.

    `nanochat` if that name on the PATH is this installation, else its path. In a container NANOCHAT_COMMAND, which docker-compose.yml
    sets to the `docker compose` command of the host's shell.
    """
    if chosen := os.environ.get("NANOCHAT_COMMAND"):
        return chosen
    script = Path(sys.executable).parent / "nanochat"
    found = shutil.which("nanochat")
    if not script.exists():
        return "nanochat" if found else f"{shlex.quote(sys.executable)} -m nanochat"
    if found and os.path.samefile(found, script):  # uv and pipx put a link to it into ~/.local/bin
        return "nanochat"
    here = Path.cwd()
    return shlex.quote(str(script.relative_to(here) if script.is_relative_to(here) else script))


def serve_command(run: str) -> str:
    """The command that opens the chat page for `run`. In a compose project its service, because `compose run` publishes no port."""
    return "docker compose up -d chat" if command().startswith("docker compose ") else f"{command()} serve --run {run}"


def runnable(text: str) -> str:
    """`text` with each command in backticks, `nanochat ...` in the code, in the form that runs here (see `command`)."""
    return text.replace("`nanochat ", f"`{command()} ")


def log(message: str = "", code: str = "", level: int = NORMAL, wrap: bool = True) -> None:
    """Print one line on stderr without buffering, in the SGR style `code`, if `level` is at most the one set (warnings and errors always).

    Control characters and credentials are removed, and commands in backticks get the form that runs here. On a terminal, long lines are
    wrapped at words, unless `wrap` is False: a command without backticks could not be copied.
    """
    if not _muted and (level <= _level or message.startswith(("warning:", "error:", "hint:"))):
        line = printable(" ".join(redact(runnable(message)).splitlines()))
        if wrap and sys.stderr.isatty():
            line = wrapped(line, terminal_width(), hanging=2)
        with _drawing:
            print(erased() + (style(line, code) if code else line), file=sys.stderr, flush=True)
            if _forms[0]:
                _draw()


def confirm(question: str) -> bool:
    """Whether a person at the terminal answers `question` with yes.

    False for any other answer, at the end of the input, and without asking where stdin, stdout or stderr is no terminal.
    """
    if not all(stream.isatty() for stream in (sys.stdin, sys.stdout, sys.stderr)):
        return False
    try:
        print(f"{printable(question)} [y/N] ", end="", file=sys.stderr, flush=True)
        return input().strip().lower() in ("y", "yes")
    except (EOFError, KeyboardInterrupt):
        log()
        return False


def show(text: str = "", end: str = "\n", code: str = "", hanging: int | None = None) -> None:
    """Print a result, or a part of one, on stdout without buffering; characters that stdout's encoding lacks become ?.

    On a terminal in the SGR style `code`, unless NO_COLOR is set, and, if `hanging` is given, with its long lines wrapped at words and
    indented by so many columns from the second one on.
    """
    encoding = sys.stdout.encoding or "utf-8"
    plain = printable(text).encode(encoding, "replace").decode(encoding)
    end_live()
    if hanging is not None and sys.stdout.isatty():
        plain = "\n".join(wrapped(line, terminal_width(), hanging) for line in plain.split("\n"))
    styled = code and sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    print(f"\x1b[{code}m{plain}\x1b[0m" if styled else plain, end=end, flush=True)


def show_json(value: Any) -> None:
    """Print a result as one line of JSON on stdout, with control characters as JSON escapes."""
    encoding = sys.stdout.encoding or "utf-8"
    text = json.dumps(value, ensure_ascii=encoding.lower().replace("-", "") != "utf8")
    print(text.translate(_ESCAPED), flush=True)


def fail(error: NanochatError) -> int:
    """Print an error and its hint, a line each, and return its exit code. With NANOCHAT_DEBUG=1 raise it, for the traceback."""
    if os.environ.get("NANOCHAT_DEBUG") == "1":
        sys.excepthook = _show_traceback
        raise error
    end_live()
    message = " ".join(error.message.split())  # one line, although a library's message may have several
    log(message if isinstance(error, Preempted) else f"error: {message}", level=QUIET)
    if error.hint:
        log(f"hint: {error.hint}")
    return error.exit_code


def _show_traceback(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Print a traceback through `log`, because an exception's text may come from a server or a file."""
    for part in traceback.format_exception(kind, error, trace):
        for line in part.splitlines():
            log(line)


def style(text: str, code: str = BOLD) -> str:
    """`text` in bold (or another SGR code) on a terminal; unchanged elsewhere and under NO_COLOR."""
    if os.environ.get("NO_COLOR") or not sys.stderr.isatty():
        return text
    return f"\x1b[{code}m{text}\x1b[0m"


def duration(seconds: float) -> str:
    """`seconds` in readable units: 42 s, 3 min 05 s, 2 h 10 min, 3 d 4 h."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    if whole < 2 * 86400:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"


def short_duration(seconds: float) -> str:
    """`duration` without spaces, for narrow terminals: 42s, 3m05s, 2h10m, 3d4h."""
    return duration(seconds).replace("min", "m").replace(" ", "")


def quantity(value: float) -> str:
    """`value` with a decimal suffix: 950, 1.5K, 12.3M, 4.0B."""
    for limit, suffix in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "K")):
        if abs(value) >= limit:
            return f"{value / limit:.1f}{suffix}"
    return f"{value:.0f}"


def file_size(size: float) -> str:
    """`size` in bytes as text: 12 MB, 4.0 GB."""
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.0f} MB"


def live(lines: Sequence[str], part: float = 0.0, barred: int = 0) -> bool:
    """Show the first of `lines` that fits, the longest first, as the terminal's last line, in place of the one before.

    A bar of `part` (0 to 1) is put before it where there is space; the first `barred` lines fit only with one. Messages come above the
    line, until `end_live`. Returns False, and shows nothing, if stderr is no terminal or progress is not wanted.
    """
    global _forms
    if _muted or _level < NORMAL or not sys.stderr.isatty():
        return False
    with _drawing:
        _forms = (lines, part, barred)
        _draw()
    return True


def end_live() -> None:
    """Remove the live line, if there is one."""
    global _forms
    with _drawing:
        _forms = ((), 0.0, 0)
        if text := erased():
            print(text, end="", file=sys.stderr, flush=True)


def _draw() -> None:
    """Draw the live line for the terminal's present width."""
    global _drawn
    lines, part, barred = _forms
    width = terminal_width() - 1  # a terminal may wrap after its last column
    plain = [printable(line) for line in lines]
    spaces = [width - (LEAST_BAR + 3) * (number < barred) for number in range(len(plain))]
    line = next((line for line, space in zip(plain, spaces, strict=True) if columns(line) <= space), fitted(plain[-1], width))
    length = min(MOST_BAR, width - columns(line) - 3)
    before = erased()
    _drawn = f"{bar(part, length)} {line}" if barred and length >= LEAST_BAR else line
    print(before + _drawn if before else f"\r\x1b[K{_drawn}", end="", file=sys.stderr, flush=True)


def erased() -> str:
    """The sequence that erases the live line, with the rows onto which a narrower terminal has wrapped it; "" without one.

    For what prints something itself instead of it, such as a signal's handler.
    """
    global _drawn
    if not _drawn:
        return ""
    above = (columns(_drawn) - 1) // terminal_width()
    _drawn = ""
    return f"\r\x1b[{above}A\x1b[J" if above else "\r\x1b[K"


@contextlib.contextmanager
def within(place: Callable[[float], tuple[str, str]]) -> Iterator[None]:
    """Show all progress of the block as a part of a longer run.

    `place` is called with the seconds left of some work (0: unknown), and returns the run's present stage, "2/4", and the time left of the
    whole run.
    """
    global _place
    before, _place = _place, place
    try:
        yield
    finally:
        _place = before


def bar(part: float, length: int) -> str:
    """A progress bar in brackets, which are not counted in its `length`; `part` from 0 to 1."""
    filled = int(length * min(max(part, 0.0), 1.0))
    return f"[{'#' * filled}{'.' * (length - filled)}]"


def terminal_width() -> int:
    """The columns of the terminal on stderr; 80 where it does not say."""
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns or 80
    except (OSError, ValueError):
        return 80


class Progress:
    """Progress of long work with units per second and time left: a bar on a terminal, else a line every few seconds.

    `total` is 0 if unknown. Use as a context manager; `advance` is cheap to call often.
    """

    def __init__(self, what: str, total: float, unit: str, plain_every: float = 10.0):
        self.what, self.total, self.unit = what, total, unit
        self.done = 0.0
        self.terminal = sys.stderr.isatty() and not _muted and _level > QUIET
        self.every = 0.1 if self.terminal else plain_every
        self.began = self.shown = time.monotonic()

    def __enter__(self) -> "Progress":
        return self

    def advance(self, amount: float) -> None:
        """Count `amount` more units as done."""
        self.done += amount
        now = time.monotonic()
        if now - self.shown >= self.every:
            self.shown = now
            self._show(now)

    def _show(self, now: float) -> None:
        rate = self.done / max(now - self.began, 1e-9)
        done = f"{self.what}: {quantity(self.done)}" + (f"/{quantity(self.total)}" if self.total else "")
        seconds = max(self.total - self.done, 0) / rate if self.total and rate else 0.0
        left = f", {duration(seconds)} left" if self.total and rate else ""
        stage, run = _place(seconds) if _place else ("", "")
        run = f", run {run}" if run else ""
        whole = f"{done} {self.unit}, {quantity(rate)}/s{left}"
        if not self.terminal:
            log(f"{whole}{run}")
            return
        before = f"{stage} " if stage else ""
        forms = (f"{before}{whole}{run}", f"{before}{done}{left}{run}", f"{before}{done}{left}", f"{before}{done}", done)
        live(forms, self.done / self.total if self.total else 0.0, barred=1 if self.total else 0)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.terminal:
            end_live()
        if kind is None:
            seconds = time.monotonic() - self.began
            log(f"{self.what}: {quantity(self.done)} {self.unit} in {duration(seconds)}", level=NORMAL if seconds >= 1 else VERBOSE)
