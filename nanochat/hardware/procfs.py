"""Files in which Linux and its containers describe the machine."""

from pathlib import Path


def read(path: str) -> str:
    """The text of a file below /proc or /sys; "" where there is none, as on other systems."""
    try:
        return Path(path).read_text()
    except OSError:
        return ""
