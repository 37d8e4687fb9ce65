"""Evaluation of tasks on all ranks, with cached answers and scores.

Questions are divided into groups of similar length, which depend only on the tasks. So each group is computed in the same way for any
number of ranks, also after an interruption, and scores are equal to the last digit.
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
from nanochat.evaluation.scorer import Scorer
from nanochat.evaluation.scores import score_tasks
from nanochat.paths import atomic_write_json

GROUP = 32  # questions
VERSION = 1  # of the prompts and the grading; cached answers of another version are not used
SAVE_SECONDS = 10.0  # between two writes of the cache

Grades = dict[str, dict[int, bool]]  # key of a task and a model -> question -> whether the answer was correct


class EvaluationTask(Protocol):
    """Questions with known answers."""

    @property
    def name(self) -> str: ...
    @property
    def chance(self) -> float:
        """Score of guessing, 0 to 1."""
        ...

    @property
    def digest(self) -> str:
        """Hash of the questions."""
        ...

    def __len__(self) -> int: ...
    def length(self, index: int) -> int:
        """Approximate length of a question in characters."""
        ...

    def grade(self, scorer: Scorer, indices: Sequence[int]) -> list[bool]:
        """Whether the model answers each question correctly."""
        ...


class AnswerCache:
    """Grades of answered questions in FOLDER/NAME_00000.json, a file per rank, so that a killed evaluation resumes."""

    def __init__(self, folder: Path, name: str, ranks: Ranks):
        self.path = folder / f"{name}_{ranks.rank:05d}.json"
        self.own = _read_grades(self.path)
        self.known: Grades = {}
        for path in sorted(folder.glob(f"{name}_*.json")):
            for key, grades in _read_grades(path).items():
                self.known.setdefault(key, {}).update(grades)
        self.saved = time.monotonic()

    def add(self, key: str, grades: dict[int, bool]) -> None:
        """Add grades; they are written to disk within SAVE_SECONDS."""
        self.own.setdefault(key, {}).update(grades)
        if time.monotonic() - self.saved >= SAVE_SECONDS:
            self.save()

    def save(self) -> None:
        """Write all grades of this rank."""
        self.saved = time.monotonic()
        atomic_write_json(self.path, {key: {str(index): correct for index, correct in found.items()} for key, found in self.own.items()})


def _read_grades(path: Path) -> Grades:
    """The grades in a rank's file; {} if it is missing or damaged."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        text = path.read_text(encoding="utf-8")
        return {key: {int(index): bool(correct) for index, correct in found.items()} for key, found in json.loads(text).items()}
    return {}


def evaluate_tasks(name: str, tasks: Sequence[EvaluationTask], scorer: Scorer, ranks: Ranks, folder: Path, model: str) -> dict[str, Any]:
    """Evaluate the model on `tasks` (called on every rank): their scores, and the centred mean.

    `folder` has the cached answers; `model` is a hash of the weights. An error on one rank is raised on all.
    """
    cache = AnswerCache(folder, name, ranks)
    keys = [hashlib.sha256(json.dumps([VERSION, model, task.name, task.digest]).encode()).hexdigest()[:16] for task in tasks]
    known = _merge_ranks(
        ranks, {key: cache.known.get(key, {}) for key in keys}, None
    )  # the same on all ranks, before the groups are divided
    if before := sum(map(len, known.values())):
        log(f"{name}: {before:,} of {sum(map(len, tasks)):,} questions are in the cache ({folder})")
    failed: NanochatError | None = None
    try:
        with Progress(f"asking {name}", sum(map(len, tasks)), "questions") as progress:
            progress.advance(before)
            for key, task in zip(keys, tasks, strict=True):
                _evaluate_own_groups(key, task, scorer, ranks, cache, set(known[key]), progress)
    except Preempted:
        raise
    except Exception as error:  # sent to the other ranks, which wait for this rank's answers
        if isinstance(error, NanochatError):
            failed = error
        else:
            failed = NanochatError(f"{type(error).__name__}: {error}", "run the same command again, which keeps the answers so far")
            failed.__cause__ = error
    finally:
        if any(key in cache.own for key in keys):
            cache.save()
    known = _merge_ranks(ranks, {key: known[key] | cache.own.get(key, {}) for key in keys}, failed)
    return score_tasks({task.name: (sum(known[key].values()), len(task), task.chance) for key, task in zip(keys, tasks, strict=True)})


def _evaluate_own_groups(
    key: str, task: EvaluationTask, scorer: Scorer, ranks: Ranks, cache: AnswerCache, known: set[int], progress: Progress
) -> None:
    """Grade this rank's groups of a task, the longest questions first."""
    if len(known) == len(task):
        return
    order = sorted(range(len(task)), key=task.length, reverse=True)
    groups = [order[first : first + GROUP] for first in range(0, len(order), GROUP)]
    for group in groups[ranks.rank :: ranks.world_size]:
        if not known.issuperset(group):
            cache.add(key, dict(zip(group, task.grade(scorer, group), strict=True)))
            progress.advance(
                min(len(group) * ranks.world_size, progress.total - progress.done)
            )  # the other ranks have about the same progress


def _merge_ranks(ranks: Ranks, own: Grades, failed: NanochatError | None) -> Grades:
    """The grades of all ranks. Raises the error of a rank that failed."""
    merged: Grades = {key: {} for key in own}
    told = [failed.exit_code, failed.message, failed.hint] if failed else None
    pairs = {key: [[index, correct] for index, correct in grades.items()] for key, grades in own.items()}  # JSON keys are strings
    for found, error in ranks.gather_objects([pairs, told]):
        if failed:
            raise failed
        if error is not None:
            there = NanochatError(error[1], error[2])
            there.exit_code = error[0]
            raise there
        for key, grades in found.items():
            merged[key].update(grades)
    return merged
