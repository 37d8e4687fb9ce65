"""metrics.jsonl: one line per step over all stages of a run, also after crashes and resumes."""

import contextlib
import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nanochat import paths

SAMPLES = "samples.jsonl"  # beside metrics.jsonl: samples during training
# The stages in order -> the field that an evaluation adds to a step's line.
EVALUATED = {"base": "bpb", "sft": "bpb", "rl": "pass@1"}
STAGES = tuple(EVALUATED)


class Metrics:
    """The metrics of a run from one stage on; opening the file cuts the lines after the resumed step."""

    def __init__(self, path: Path, stage: str, step: int):
        """Keep the lines up to `step` of `stage` and those of earlier stages; cut later ones and a torn last line.

        `last` is the last line kept, {} if there is none; `number` counts them. All methods raise PreflightError if the disk is full.
        """
        self.path, self.number = path, 0
        self.told: Callable[[int, dict[str, Any]], object] = lambda number, entry: None  # called with each line and its number
        self.path.parent.mkdir(parents=True, exist_ok=True)
        order = (STAGES.index(stage), step)
        self.begin = kept = 0  # byte offsets of the last line's beginning and end
        self.last: dict[str, Any] = {}
        for line in path.read_bytes().splitlines(keepends=True) if path.exists() else []:
            entry = _parse(line)
            if entry is None or (STAGES.index(entry["stage"]), entry["step"]) > order:
                break
            self.begin, kept, self.last, self.number = kept, kept + len(line), entry, self.number + 1
        try:
            path.touch()
            self.file = path.open("r+b")
        except OSError as error:
            raise paths.disk_error(error, "opening the metrics") from error
        self.file.truncate(kept)
        self.file.seek(kept)

    def write(self, entry: dict[str, Any]) -> None:
        """Append one step's line."""
        self._put(self.file.tell(), entry)
        self.number += 1
        self.told(self.number, entry)

    def amend(self, **more: Any) -> None:
        """Add fields to the last line, such as the bits per byte of an evaluation after the save."""
        self._put(self.begin, self.last | more)
        self.told(self.number, {"stage": self.last["stage"]} | more)

    def lines(self) -> list[dict[str, Any]]:
        """All lines of this stage and of earlier ones."""
        return [json.loads(line) for line in self.path.read_bytes().splitlines()]

    def _put(self, begin: int, entry: dict[str, Any]) -> None:
        """Write `entry` as the last line, from byte `begin` on, over the old one, so that a crash never loses the line."""
        self.begin, self.last = begin, entry
        try:
            self.file.seek(begin)
            self.file.write((json.dumps(entry) + "\n").encode())
            self.file.flush()
            self.file.truncate()
        except OSError as error:
            raise paths.disk_error(error, "writing the metrics") from error

    def sync(self) -> None:
        """Make the lines durable. Called before a checkpoint, so that every saved step has its line."""
        try:
            os.fsync(self.file.fileno())
        except OSError as error:
            raise paths.disk_error(error, "writing the metrics") from error

    def close(self) -> None:
        """Close the file."""
        with contextlib.suppress(OSError):  # all lines have been flushed; a full disk was reported before
            self.file.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The complete lines of metrics.jsonl with a stage, a step and a finite loss; [] if there is no file."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    lines = []
    for line in text.splitlines():
        try:
            entry = json.loads(line)
            good = entry["stage"] in STAGES and isinstance(entry["step"], int) and math.isfinite(entry["loss"])
        except (ValueError, KeyError, TypeError):
            continue
        if good:
            lines.append({key: value for key, value in entry.items() if not isinstance(value, float) or math.isfinite(value)})
    return lines


def _parse(line: bytes) -> dict[str, Any] | None:
    if not line.endswith(b"\n"):
        return None
    try:
        entry = json.loads(line)
        return entry if entry["stage"] in STAGES and isinstance(entry["step"], int) else None
    except (ValueError, KeyError, TypeError):
        return None
