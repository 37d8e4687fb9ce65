"""Training runs that a page starts, small enough for a test: the real command with a small cpu profile, in processes of their own."""

import os
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from nanochat.config import PROFILES
from tests.tiny import ROOT


def small_profile(folder: Path, monkeypatch: pytest.MonkeyPatch, **values: int) -> None:
    """Let every process that is started from here have a cpu profile of one layer, with these values.

    The profiles are read from a copy, which Python's own sitecustomize names before any other module is imported.
    """
    shutil.copytree(PROFILES, folder / "profiles")
    cpu = folder / "profiles" / "cpu.toml"
    for name, value in ({"depth": 1} | values).items():
        cpu.write_text(re.sub(rf"^{name} = .*$", f"{name} = {value}", cpu.read_text(encoding="utf-8"), flags=re.M), encoding="utf-8")
    lines = ("from pathlib import Path", "from nanochat.config import profiles", f"profiles.PROFILES = Path({str(folder / 'profiles')!r})")
    (folder / "sitecustomize.py").write_text("\n".join(lines) + "\n", encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}{os.pathsep}{folder}")


def launch_of(url: str, **options: Any) -> dict[str, Any]:
    """The state of the run that was started."""
    return httpx.get(f"{url}/api/training", timeout=120, **options).json()["launch"]  # type: ignore[no-any-return]


def step_of(url: str, **options: Any) -> int:
    """The step of the run in training; 0 if there is none."""
    training = httpx.get(f"{url}/api/training", timeout=120, **options).json()["training"]
    return int(training["step"]) if training else 0


def post(url: str, path: str = "", body: Any = None, **options: Any) -> httpx.Response:
    """POST to a route of /api/train."""
    return httpx.post(f"{url}/api/train{path}", json={} if body is None else body, timeout=300, **options)


def wait_until(true: Callable[[], Any], seconds: float = 300) -> Any:
    """The first true value of `true`, within `seconds`."""
    end = time.monotonic() + seconds
    while not (found := true()):
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.1)
    return found


def commands(base: Path) -> list[list[str]]:
    """The arguments of each training command whose data directory is `base`, of the processes of this machine."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().decode().split("\0")[:-1]
            here = f"NANOCHAT_BASE_DIR={base}".encode() in (folder / "environ").read_bytes().split(b"\0")
        except OSError:  # it has ended
            continue
        if here and words[1:3] == ["-m", "nanochat"] and words[3:4] in (["train"], ["quickstart"]):
            found.append(words[3:])
    return found
