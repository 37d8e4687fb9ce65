"""A user's problems for reinforcement learning (`--problems FILE`): questions with one right answer each, compared as numbers or exactly.

A row is {"question": ..., "answer": ...}, in jsonl, JSON, CSV or parquet. An answer that is a number is right as any number of the same
value, which the model's reply says last, or after "####" as GSM8K's do. Any other answer must be the whole reply, or what follows "####",
but for spaces. An answer of GSM8K's own form is the part after its "####".
"""

import hashlib
import re
from collections.abc import Sequence
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any

from nanochat.console import log
from nanochat.data.problems import Problem
from nanochat.errors import DataError
from nanochat.readers.encodings import row_file
from nanochat.readers.files import ROWS, find
from nanochat.readers.records import records
from nanochat.readers.textfile import CHATS

QUESTION = ("question", "prompt", "problem", "input")  # names of the fields, the first that a row has
ANSWER = ("answer", "target", "solution", "output")
HELD_OUT_SHARE = 10  # one problem in so many measures the model at the most
MARK = "####"
_HINT = 'a row is {"question": "What is 2 + 3?", "answer": "5"}: answers are compared as numbers where they are numbers, else exactly'
_NUMBER = re.compile(r"[-+]?(?:\d[\d,]*(?:\.\d+)?|\.\d+)")


def exact(reply: str) -> str:
    """A reply as it is compared: after "####" where that is in it, each run of spaces one space."""
    return " ".join(reply.rpartition(MARK)[2].split())


def number(reply: str) -> str | None:
    """The number that a reply says last (after "####" where that is in it), in one spelling for each value; None where it says none."""
    found = _NUMBER.findall(reply.rpartition(MARK)[2])
    return _spelled(found[-1]) if found else None


def _spelled(text: str) -> str | None:
    """A number in the one spelling of its value; None where `text` is none."""
    try:
        value = Decimal(text.replace(",", ""))
        return f"{value.normalize():f}" if value else "0"
    except InvalidOperation:
        return None


def problem(question: str, answer: str) -> Problem:
    """The problem of a question and its right answer."""
    right = exact(answer)
    if _NUMBER.fullmatch(right) and (value := _spelled(right)):
        return Problem(question, value, number)
    return Problem(question, right, exact)


def read_problems(path: Path, held_out: int) -> tuple[list[Problem], list[Problem]]:
    """The problems of a file that are learned from, in its order, and at most `held_out` others (a tenth) that measure the model.

    Which are held out follows from the questions alone. Raises DataError with file and line if a row is none, if a question has two
    answers, or if there are fewer than two problems.
    """
    found: dict[str, Problem] = {}
    again = 0
    for file in [row_file(file, CHATS) for file in find(path.expanduser(), "--problems", ROWS)]:
        for where, row in records(file, allowance=CHATS):
            question, answer = (_field(where, row, names) for names in (QUESTION, ANSWER))
            new = problem(question, answer)
            if (known := found.setdefault(question, new)) is not new:
                again += 1
                if known.answer != new.answer:
                    raise DataError(f"{where}: the question has another answer before: {known.answer!r}", "leave one of them out")
    if len(found) < 2:
        raise DataError(f"{path} holds {len(found)} problem(s), and at least 2 are needed: one is held out", _HINT)
    kept = min(held_out, max(len(found) // HELD_OUT_SHARE, 1))
    chosen = set(sorted(found, key=_hash)[:kept])
    problems = list(found.values())
    numeric = sum(one.final is number for one in problems)
    log(
        f"problems: {len(problems):,} in {path}, {numeric:,} with a number as the answer, {len(problems) - numeric:,} compared exactly; "
        f"{kept:,} held out{f'; {again:,} repeated, left out' if again else ''}"
    )
    return [one for one in problems if one.prompt not in chosen], [one for one in problems if one.prompt in chosen]


def _hash(question: str) -> bytes:
    return hashlib.blake2b(question.encode(), digest_size=16).digest()


def _field(where: str, row: Any, names: Sequence[str]) -> str:
    """The text of the first of the fields `names` that a row has. Raises DataError if it has none, or an empty one."""
    if not isinstance(row, dict):
        raise DataError(f"{where}: a {type(row).__name__} instead of an object", _HINT)
    name = next((name for name in names if name in row), None)
    if name is None:
        raise DataError(f'{where} has no field "{names[0]}"; its fields are: {", ".join(map(str, row)) or "none"}', _HINT)
    value = row[name]
    if isinstance(value, int | float) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str) or not exact(value):
        raise DataError(f'{where}: "{name}" is {"empty" if isinstance(value, str) else f"a {type(value).__name__}, not a text"}', _HINT)
    try:
        value.encode()
    except UnicodeEncodeError:
        raise DataError(f'{where}: "{name}" has a lone surrogate: it is no valid Unicode', _HINT) from None
    return value


def problems_hash(path: Path) -> str:
    """SHA-256 over the files of problems at `path`."""
    digest = hashlib.sha256()
    for file in find(path.expanduser(), "--problems", ROWS):
        digest.update(hashlib.sha256(file.path.read_bytes()).digest())
    return digest.hexdigest()
