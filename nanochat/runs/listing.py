"""List of the runs in the data directory, for `nanochat runs` and the page, and removal of a run.

A summary uses only small files: the config, the report, the end of the metrics, the names of the checkpoints. Missing or damaged parts
are None or empty.
"""

import json
import os
import shutil
import time
import tomllib
import uuid
from functools import lru_cache
from pathlib import Path
from typing import Any, TypedDict

from nanochat import paths, untrusted
from nanochat.errors import DataError, UsageError
from nanochat.runs.heartbeat import read_heartbeat
from nanochat.runs.metrics import STAGES
from nanochat.runs.names import MANIFEST, RECORD, RECORD_BYTES, plain_name, step_dir
from nanochat.runs.report_schema import REPORT

REPORT_BYTES = 16 << 20
TAIL_BYTES = 1 << 16  # of the metrics, of which the last line is read


class Step(TypedDict):
    """A checkpoint."""

    stage: str
    step: int


class RunSummary(TypedDict):
    """One run as `runs --json` and /api/runs have it."""

    name: str
    profile: str
    trial: bool
    from_run: str  # the checkpoint that it began from, RUN:stage:step; "" for random weights
    stage: str | None  # of the newest checkpoint: the model that answers; None where there is none
    step: int | None
    finished: bool
    running: bool  # a process trains it now
    bpb: float | None  # bits per byte of held-out text after pretraining
    score: float | None  # share of the held-out questions that it answers
    parameters: int | None
    tokens: int | None
    seconds: float | None  # of training and evaluation
    date: str | None  # of the newest step, ISO 8601 in UTC
    size_bytes: int  # on disk
    checkpoints: list[Step]  # the last stage's newest first
    mirror: bool  # its checkpoints are copied to a mirror


def list_runs(runs: Path | None = None) -> list[RunSummary]:
    """Every run, the newest first. `runs` is the directory of the runs, by default the data directory's."""
    root = runs or paths.runs_dir()
    try:
        folders = [entry for entry in os.scandir(root) if not entry.name.startswith(".") and entry.is_dir()]
    except OSError:
        return []
    found = [summary(Path(folder.path)) for folder in folders]
    return sorted((one for one in found if one), key=lambda one: (one["date"] or "", one["name"]), reverse=True)


def summary(folder: Path) -> RunSummary | None:
    """The summary of the run in `folder`; None if there is none."""
    steps = checkpoints(folder)
    if not steps and not (folder / RECORD).is_file():
        return None
    config = _read(folder / RECORD, _config)
    report = _read(folder / REPORT, _report)
    last, written = _last_line(folder / "metrics.jsonl")
    heartbeat = read_heartbeat(folder)
    newest = steps[0] if steps else None
    return {
        "name": untrusted.encodable(folder.name),
        "profile": _text(config.get("profile")),
        "trial": bool(config.get("trial", False)),
        "from_run": _text(config.get("from_run")),
        "stage": newest["stage"] if newest else None,
        "step": newest["step"] if newest else None,
        "finished": bool(report.get("finished")),
        "running": bool(heartbeat and heartbeat["alive"]),
        "bpb": _number(report.get("bpb")),
        "score": _number(report.get("score")),
        "parameters": _count(report.get("parameters")),
        "tokens": _count(last.get("tokens")) or _count(report.get("tokens")),
        "seconds": _number(report.get("seconds")) or _number(last.get("elapsed_seconds")),
        "date": _date(written or _modified(folder / RECORD) or (_modified(_manifest(folder, newest)) if newest else None)),
        "size_bytes": size_on_disk(folder),
        "checkpoints": steps,
        "mirror": bool(config.get("mirror")),
    }


def is_finished(folder: Path) -> bool:
    """Whether the run in `folder` has the report of its end."""
    return bool(_read(folder / REPORT, _report).get("finished"))


def checkpoints(folder: Path) -> list[Step]:
    """The finished checkpoints of the run in `folder`, the last stage's newest first, not verified."""
    found: list[Step] = []
    for stage in reversed(STAGES):
        try:
            names = [name.removeprefix("step_") for name in os.listdir(folder / stage) if name.startswith("step_")]
        except OSError:  # the run has no such stage
            continue
        steps = [int(name) for name in names if name.isdecimal() and os.path.exists(f"{folder}/{stage}/step_{name}/{MANIFEST}")]
        found += [{"stage": stage, "step": step} for step in sorted(steps, reverse=True)]
    return found


def remove_run(name: str) -> int:
    """Remove a run from this machine, not from its mirror; returns the freed bytes.

    Raises DataError if there is none, PreflightError if a process uses it, UsageError if its checkpoints are only on its mirror.
    """
    from nanochat.runs import lock  # it imports torch, which takes seconds and no list needs

    folder = paths.run_dir(plain_name(name))
    found = summary(folder) if folder.is_dir() and not folder.is_symlink() else None
    if found is None:
        raise DataError(f"there is no run {name!r} here", "list the runs with `nanochat runs`")
    if found["mirror"] and not found["checkpoints"]:
        raise UsageError(f"the checkpoints of {name!r} are only on its mirror", "download them with its train command, then remove the run")
    aside = folder.parent / f"{paths.TEMPORARY}{uuid.uuid4().hex}"
    with lock.hold(name, "removing it"):
        folder.rename(aside)  # at once and as a whole: whatever happens then, no half of a run is left
    shutil.rmtree(aside, ignore_errors=True)
    return found["size_bytes"]


def size_on_disk(folder: Path) -> int:
    """Bytes of all files in `folder`, links not followed."""
    total = 0
    stack = [folder]
    while stack:
        try:
            with os.scandir(stack.pop()) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        stack.append(Path(entry.path))
                    else:
                        total += entry.stat(follow_symlinks=False).st_size
        except OSError:  # removed meanwhile
            continue
    return total


# ---- small files, each read once for every time it was written ---------------------------------------------------


def _read(path: Path, parse: Any) -> dict[str, Any]:
    try:
        found = path.stat()
    except OSError:
        return {}
    return dict(_parsed(path, found.st_mtime_ns, found.st_size, parse))


@lru_cache(maxsize=2048)
def _parsed(path: Path, _written: int, _size: int, parse: Any) -> dict[str, Any]:
    try:
        value: dict[str, Any] = parse(path)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}
    return value


def _config(path: Path) -> dict[str, Any]:
    """The values that a summary has. Only their lines are parsed: a whole record takes a millisecond, in a list of hundreds of runs."""
    names = ("profile", "trial", "mirror", "from_run")
    lines = untrusted.read_bytes(path, RECORD_BYTES).decode("utf-8").split("\n")
    table = tomllib.loads("\n".join(line for line in lines if line.partition("=")[0].strip() in names))
    return {name: table.get(name) for name in names}


def _report(path: Path) -> dict[str, Any]:
    report = untrusted.table(untrusted.read_json(path, REPORT_BYTES), "the report")
    names = ("finished", "bpb", "parameters", "tokens", "seconds")
    return {name: report.get(name) for name in names} | {"score": (report.get("scores") or {}).get("trained")}


def _last_line(path: Path) -> tuple[dict[str, Any], float | None]:
    """The last whole line of the metrics, and when it was written."""
    try:
        if not path.is_file():
            return {}, None
        with path.open("rb") as file:
            about = os.fstat(file.fileno())
            file.seek(max(about.st_size - TAIL_BYTES, 0))
            lines = file.read(TAIL_BYTES).splitlines(keepends=True)
    except OSError:
        return {}, None
    for line in reversed(lines):
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if line.endswith(b"\n") and isinstance(entry, dict):
            return entry, about.st_mtime
    return {}, None


def _manifest(folder: Path, step: Step) -> Path:
    return step_dir(folder / step["stage"], step["step"]) / MANIFEST


def _modified(path: Path) -> float | None:
    try:
        return path.stat().st_mtime
    except OSError:
        return None


def _date(seconds: float | None) -> str | None:
    return None if seconds is None else time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


def _number(value: Any) -> float | None:
    """`value`, where it is a number that JSON and arithmetic can take."""
    return value if isinstance(value, int | float) and not isinstance(value, bool) and -1e18 < value < 1e18 else None


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 62 else None


def _text(value: Any) -> str:
    return untrusted.encodable(value[:200]) if isinstance(value, str) else ""
