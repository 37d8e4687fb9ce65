"""A tree of files in place of /proc and /sys."""

from collections.abc import Callable
from pathlib import Path

import pytest

from nanochat.hardware import procfs

Plant = Callable[[dict[str, object]], None]


@pytest.fixture
def plant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Plant:
    """Writes files, given by path and content, into a tree that replaces /proc and /sys."""
    monkeypatch.setattr(procfs, "ROOT", tmp_path)

    def write(files: dict[str, object]) -> None:
        for path, content in files.items():
            file = tmp_path / path.lstrip("/")
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(f"{content}\n")

    return write
