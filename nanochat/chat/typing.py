"""Input of the terminal chat: line editing, a persistent history, and messages of several lines."""

import contextlib
import os
import sys
from pathlib import Path
from typing import Any

from nanochat import paths
from nanochat.console import log

HISTORY = "chat_history"  # in the data directory, for its owner alone
KEPT = 1000  # lines of the history
FENCE = '"""'  # before and after a message of several lines


class Typist:
    """Reads messages from stdin: from a person with an invitation, editing and history, else line by line."""

    def __init__(self) -> None:
        self.person = sys.stdin.isatty()
        self._readline: Any = None
        if self.person:
            with contextlib.suppress(ImportError):
                import readline

                self._readline = readline
                self._load(paths.base_dir() / HISTORY)

    def read(self) -> str | None:
        """The next message without blank ends, None at the end of the input.

        A line that ends with a backslash continues in the next one; text between two lines of three quotes is one message.
        """
        line = self._line("> ")
        if line is None:
            return None
        if line.strip().startswith(FENCE):
            return self._fenced(line.strip().removeprefix(FENCE))
        lines = [line]
        while lines[-1].endswith("\\"):
            lines[-1] = lines[-1][:-1]
            if (more := self._line(". ")) is None:
                break
            lines.append(more)
        return "\n".join(lines).strip()

    def close(self) -> None:
        """Keep the history for the next session."""
        if self._readline is None:
            return
        path = paths.base_dir() / HISTORY
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = path.with_name(f"{paths.TEMPORARY}{HISTORY}-{os.getpid()}")
            os.close(os.open(temporary, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600))
            self._readline.set_history_length(KEPT)
            self._readline.write_history_file(str(temporary))
            temporary.replace(path)
        except OSError as error:
            log(f"warning: the history of the chat was not kept: {error.strerror or error}")

    def _load(self, path: Path) -> None:
        with contextlib.suppress(OSError, ValueError):
            if path.is_file():
                self._readline.read_history_file(str(path))

    def _fenced(self, first: str) -> str:
        lines = [first] if first else []
        if first.endswith(FENCE):
            return first.removesuffix(FENCE).strip()
        while (line := self._line(". ")) is not None:
            if line.strip().endswith(FENCE):
                lines.append(line.rstrip().removesuffix(FENCE))
                break
            lines.append(line)
        return "\n".join(lines).strip()

    def _line(self, invitation: str) -> str | None:
        """The next line without its end. Ctrl-C at the invitation says how to leave."""
        if not self.person:
            line = sys.stdin.readline()
            return valid(line).rstrip("\n") if line else None
        while True:
            try:
                return valid(input(invitation))
            except EOFError:
                log()
                return None
            except KeyboardInterrupt:
                log()
                log("(/quit or Ctrl-D leaves)")


def valid(text: str) -> str:
    """`text` with U+FFFD for what UTF-8 cannot hold: bytes of another encoding may arrive as lone surrogates."""
    return text.encode("utf-8", "surrogatepass").decode("utf-8", "replace")
