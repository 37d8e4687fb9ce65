"""Bounded, checked reading of untrusted files, from a received directory or a mirror.

Every function raises ValueError with the reason, or OSError if a file cannot be read; the caller adds which file it was. Only
`require_format` raises an error for the user.
"""

import json
import re
import stat
from pathlib import Path
from typing import Any

from nanochat.errors import NewerFormat

JSON_BYTES = 16 << 20  # size limit of a JSON file, unless the caller allows more
JSON_VALUES = 20_000_000  # limit of values in one JSON text: each takes some 60 bytes as a Python object
INTEGER_MOST = 2**53
_CHECKED_BYTES = 1 << 20  # a shorter JSON text cannot take much memory, and its values are not counted


def shown(value: Any, most: int = 80) -> str:
    """`value` for a message, as Python's repr: one line without control characters, cut at `most` characters."""
    text = value[: most + 1] if isinstance(value, str) else value
    try:
        text = repr(text)
    except (ValueError, RecursionError):  # an integer of thousands of digits, or deep nesting
        return f"a {type(value).__name__}"
    return text if len(text) <= most else f"{text[:most]}..."


def reason(error: BaseException, most: int = 300) -> str:
    """An error's text, cut to `most` characters: a library's message may contain the whole input."""
    said = " ".join(str(error).split())
    return said if len(said) <= most else f"{said[:most]}..."


def parse_json(text: str | bytes) -> Any:
    """Parse a JSON text. Raises ValueError also if it is nested too deeply or has too many values."""
    if len(text) > _CHECKED_BYTES:
        marks: tuple[Any, ...] = (b",", b"[", b"{") if isinstance(text, bytes) else (",", "[", "{")
        if sum(text.count(mark) for mark in marks) > JSON_VALUES:
            raise ValueError(f"more than {JSON_VALUES:,} values")
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def read_bytes(path: Path, most: int = JSON_BYTES) -> bytes:
    """A file's content, at most `most` bytes. Raises ValueError if it is longer or not a regular file (a pipe, a device)."""
    size = regular_file(path)
    if size <= most:
        with path.open("rb") as file:
            data = file.read(most + 1)  # the file may grow meanwhile, and files of /proc have no size
        if len(data) <= most:
            return data
        size = len(data)
    raise ValueError(f"{path.name} has {size:,} bytes; at most {most:,} are allowed")


def read_json(path: Path, most: int = JSON_BYTES) -> Any:
    """The value in a JSON file of at most `most` bytes."""
    return parse_json(read_bytes(path, most).decode("utf-8"))


def regular_file(path: Path) -> int:
    """The size of a regular file. Raises ValueError for anything else: reading a pipe or a device may never end."""
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):
        raise ValueError(f"{path.name} is not a regular file")
    return found.st_size


def file_name(value: Any, what: str = "a file's name") -> str:
    """Return `value` if it is a plain file name: no path, not hidden, printable."""
    if not isinstance(value, str) or not 0 < len(value) <= 255 or not value.isprintable() or re.search(r"[/\\]|^\.", value):
        raise ValueError(f"{what} is {shown(value)}, not a plain file name")
    return value


def inside(folder: Path, name: str) -> Path:
    """The path of `name`, which may have several parts, in `folder`. Raises ValueError if it leads outside, also by a link."""
    if not isinstance(name, str) or not name or "\0" in name or "\\" in name or any(part in ("", ".", "..") for part in name.split("/")):
        raise ValueError(f"{shown(name)} leads outside its directory")
    path, root = folder / name, folder.resolve()
    try:
        target = path.resolve()
    except RuntimeError as error:  # a link to itself
        raise ValueError(f"{shown(name)} is a link to itself") from error
    if root not in target.parents:
        raise ValueError(f"{shown(name)} is a link that leads outside its directory")
    return path


def table(value: Any, what: str) -> dict[str, Any]:
    """Return `value` if it is a JSON object."""
    if not isinstance(value, dict):
        raise ValueError(f"{what} is {shown(value)}, not an object")
    return value


def integer(value: Any, what: str, low: int = 0, high: int = INTEGER_MOST) -> int:
    """Return `value` if it is an integer from `low` to `high`."""
    if type(value) is not int or not low <= value <= high:
        raise ValueError(f"{what} is {shown(value)}, not an integer from {low} to {high}")
    return value


def number(value: Any, what: str, low: float, high: float) -> float:
    """Return `value` as float if it is a number from `low` to `high`."""
    if type(value) not in (int, float) or not low <= value <= high:
        raise ValueError(f"{what} is {shown(value)}, not a number from {low:g} to {high:g}")
    return float(value)


def require_format(value: Any, newest: int, what: str) -> None:
    """Check the number of a file's format, at most `newest`. Raises NewerFormat, with `what` for the file, if it is larger."""
    found = integer(value, "format", low=1)
    if found > newest:
        raise NewerFormat(what, found, newest)


def encodable(text: str) -> str:
    """`text` without lone surrogates, which come from JSON's escapes and from file names, and which no UTF-8 response can hold."""
    return text.encode("utf-8", "replace").decode()


def text(value: Any, what: str, most: int = 1000) -> str:
    """Return `value` if it is a string of at most `most` characters."""
    if not isinstance(value, str) or len(value) > most:
        raise ValueError(f"{what} is {shown(value)}, not a string of at most {most} characters")
    return value


def sha256(value: Any, what: str) -> str:
    """Return `value` if it is a SHA-256 as 64 hex digits."""
    if not isinstance(value, str) or not re.fullmatch(r"[0-9a-f]{64}", value):
        raise ValueError(f"{what} is {shown(value)}, not a SHA-256")
    return value
