"""Files below /proc and /sys, in which Linux describes the machine and a container's limits."""

from pathlib import Path

ROOT = Path("/")  # the tests have trees of their own


def read(path: str) -> str:
    """The text of a file below /proc or /sys; "" if there is none, as on other systems."""
    try:
        return (ROOT / path.lstrip("/")).read_text(errors="replace")
    except OSError:
        return ""


def entries(path: str) -> list[str]:
    """The paths of a directory's entries, sorted; none if there is no directory."""
    try:
        return sorted(f"{path}/{entry.name}" for entry in (ROOT / path.lstrip("/")).iterdir())
    except OSError:
        return []
