"""metrics.jsonl: one line a step, over all stages of a run, and still one line a step after any crash and resume."""

import contextlib
import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nanochat import paths

SAMPLES = "samples.jsonl"  # beside metrics.jsonl: what the model said while it was trained
# The stages in their order, and of each the field that an evaluation adds to a step's line.
EVALUATED = {"base": "bpb", "sft": "bpb", "rl": "pass@1"}
STAGES = tuple(EVALUATED)


class Metrics:
    """The metrics of a run from one stage on: opening it cuts what lies after the step that is resumed from."""

    def __init__(self, path: Path, stage: str, step: int):
        """Keep the lines up to `step` of `stage` (and all of earlier stages); cut later ones and a torn last one.

        `last` is the last line kept, {} if there is none; `number` counts them. Here and later: PreflightError where the disk is full.
        """
        self.path, self.number = path, 0
        self.told: Callable[[int, dict[str, Any]], object] = lambda number, entry: None  # what is written, and to which line
        self.path.parent.mkdir(parents=True, exist_ok=True)
        order = (STAGES.index(stage), step)
        self.begin = kept = 0  # where the last line begins and ends
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
        """Add fields to the last line, such as the bits per byte of an evaluation that came after the save."""
        self._put(self.begin, self.last | more)
        self.told(self.number, {"stage": self.last["stage"]} | more)

    def lines(self) -> list[dict[str, Any]]:
        """All lines, of this stage and of those before."""
        return [json.loads(line) for line in self.path.read_bytes().splitlines()]

    def _put(self, begin: int, entry: dict[str, Any]) -> None:
        """Make `entry` the last line, from byte `begin` on. It is written over the old one, so that a crash never finds it gone."""
        self.begin, self.last = begin, entry
        try:
            self.file.seek(begin)
            self.file.write((json.dumps(entry) + "\n").encode())
            self.file.flush()
            self.file.truncate()
        except OSError as error:
            raise paths.disk_error(error, "writing the metrics") from error

    def sync(self) -> None:
        """Make the lines durable; before a checkpoint, so that no saved step lacks its line."""
        try:
            os.fsync(self.file.fileno())
        except OSError as error:
            raise paths.disk_error(error, "writing the metrics") from error

    def close(self) -> None:
        """Close the file."""
        with contextlib.suppress(OSError):  # every line has been flushed; what a full disk refused has been said
            self.file.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The whole lines of metrics.jsonl that have a stage, a step and a finite loss; [] where there is no file."""
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
