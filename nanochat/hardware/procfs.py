"""Files below /proc and /sys, in which Linux describes the machine and a container's limits."""

from pathlib import Path


def read(path: str) -> str:
    """The text of a file below /proc or /sys; "" if there is none, as on other systems."""
    try:
        return Path(path).read_text()
    except OSError:
        return ""
