"""All questions of some tasks: dealt to the ranks, kept as they are answered, and what the answers are worth.

Questions are dealt in groups of like length, which depend on the tasks alone: however many ranks there are, and whether or not
an evaluation was killed on the way, each group is computed alike, and so the scores are the same to the last digit.
"""

import contextlib
import hashlib
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from nanochat.console import Progress, log
from nanochat.distributed.ranks import Ranks
from nanochat.errors import NanochatError, Preempted
from nanochat.evaluation.results import result
from nanochat.evaluation.scorer import Scorer
from nanochat.paths import atomic_write_json

GROUP = 32  # questions
VERSION = 1  # of how questions are put and scored: what another one answered is not gone on with


class Task(Protocol):
    """Questions with right answers."""

    @property
    def name(self) -> str: ...
    @property
    def chance(self) -> float:
        """What guessing scores, as a part of 1."""
        ...

    @property
    def digest(self) -> str:
        """Changes with the questions."""
        ...

    def __len__(self) -> int: ...
    def size(self, index: int) -> int:
        """About how long a question is."""
        ...

    def right(self, scorer: Scorer, indices: Sequence[int]) -> list[bool]:
        """Which of the questions the model answers rightly."""
        ...


class Answered:
    """Which questions were answered, and whether rightly: FOLDER/NAME_00000.json, a file a rank, so that what is killed goes on."""

    def __init__(self, folder: Path, name: str, ranks: Ranks, save_seconds: float = 10.0):
        self.path, self.save_seconds = folder / f"{name}_{ranks.rank:05d}.json", save_seconds
        self.own = _read(self.path)
        self.known: dict[str, dict[int, bool]] = {}
        for path in sorted(folder.glob(f"{name}_*.json")):
            for key, answers in _read(path).items():
                self.known.setdefault(key, {}).update(answers)
        self.saved = time.monotonic()

    def add(self, key: str, answers: dict[int, bool]) -> None:
        """Keep some answers; they are on the disk within `save_seconds` of answering."""
        self.own.setdefault(key, {}).update(answers)
        if time.monotonic() - self.saved >= self.save_seconds:
            self.save()

    def save(self) -> None:
        """Write all that this rank has answered."""
        self.saved = time.monotonic()
        atomic_write_json(self.path, {key: {str(index): right for index, right in found.items()} for key, found in self.own.items()})


def _read(path: Path) -> dict[str, dict[int, bool]]:
    """What a rank had answered; nothing where its file is missing or damaged."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        text = path.read_text(encoding="utf-8")
        return {key: {int(index): bool(right) for index, right in found.items()} for key, found in json.loads(text).items()}
    return {}


def ask(name: str, tasks: Sequence[Task], scorer: Scorer, ranks: Ranks, folder: Path, model: str) -> dict[str, Any]:
    """Ask all questions of `tasks` (every rank calls this): their scores, and the centred mean.

    `folder` keeps the answers on the way, `model` says whose they are. Raises on every rank what fails on one of them.
    """
    answered = Answered(folder, name, ranks)
    keys = [hashlib.sha256(json.dumps([VERSION, model, task.name, task.digest]).encode()).hexdigest()[:16] for task in tasks]
    known = _merged(ranks, {key: answered.known.get(key, {}) for key in keys}, None)  # the same on all ranks, before any deals
    if before := sum(map(len, known.values())):
        log(f"{name}: {before:,} of {sum(map(len, tasks)):,} questions were answered before ({folder})")
    failed: Exception | None = None
    try:
        with Progress(f"asking {name}", sum(map(len, tasks)), "questions") as progress:
            progress.advance(before)
            for key, task in zip(keys, tasks, strict=True):
                _ask_own(key, task, scorer, ranks, answered, set(known[key]), progress)
    except Preempted:
        raise
    except Exception as error:  # the other ranks wait for this one's answers: they are told
        failed = error
        if not isinstance(error, NanochatError):
            failed = NanochatError(f"{type(error).__name__}: {error}", "what was answered before is kept")
            failed.__cause__ = error
    finally:
        if any(key in answered.own for key in keys):
            answered.save()
    known = _merged(ranks, {key: known[key] | answered.own.get(key, {}) for key in keys}, failed)
    return result({task.name: (sum(known[key].values()), len(task), task.chance) for key, task in zip(keys, tasks, strict=True)})


def _ask_own(key: str, task: Task, scorer: Scorer, ranks: Ranks, answered: Answered, known: set[int], progress: Progress) -> None:
    """This rank's groups of a task, the longest questions first."""
    if len(known) == len(task):
        return
    order = sorted(range(len(task)), key=task.size, reverse=True)
    groups = [order[first : first + GROUP] for first in range(0, len(order), GROUP)]
    for group in groups[ranks.rank :: ranks.world_size]:
        if not known.issuperset(group):
            answered.add(key, dict(zip(group, task.right(scorer, group), strict=True)))
            progress.advance(min(len(group) * ranks.world_size, progress.total - progress.done))  # the others are as far


def _merged(ranks: Ranks, own: dict[str, dict[int, bool]], failed: Exception | None) -> dict[str, dict[int, bool]]:
    """The answers of all ranks. Raises what failed on one of them."""
    merged: dict[str, dict[int, bool]] = {key: {} for key in own}
    for found, error in ranks.gather_objects((own, failed)):
        if error is not None:
            raise error
        for key, answers in found.items():
            merged[key].update(answers)
    return merged
