"""A file system encoding of UTF-8, which pyarrow and the tokenizer's crate need, in a locale that has another one (Big5, Latin-1, C)."""

import locale
import os
import sys


def require_utf8() -> None:
    """Start this command again in Python's UTF-8 mode (PEP 540) if the locale's file system encoding is another one.

    The terminal keeps its encoding. Returns if nothing is to be done.
    """
    if sys.getfilesystemencoding() == "utf-8" or os.environ.get("PYTHONUTF8") == "1":
        return
    os.environ.setdefault("PYTHONIOENCODING", f"{locale.getencoding()}:replace")
    os.environ["PYTHONUTF8"] = "1"
    os.execv(sys.executable, [argument_in_utf8(argument) for argument in [sys.executable, *sys.orig_argv[1:]]])


def argument_in_utf8(argument: str) -> bytes:
    """An argument as the new process decodes it: its own bytes if they are UTF-8 or name a file, else its text in the locale's encoding."""
    raw = os.fsencode(argument)
    try:
        raw.decode("utf-8")
    except UnicodeDecodeError:
        return raw if os.path.exists(raw) else argument.encode("utf-8", "surrogateescape")
    return raw
