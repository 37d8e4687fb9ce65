"""Questions whose answers can be checked, for reinforcement learning: GSM8K's, or the embedded corpus's arithmetic.

Some are learned from; others, which nothing is trained on, measure what was learned.
"""

from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any

from nanochat.data.conversations import Rows, final_number, grade_school
from nanochat.data.embedded.skills import SCORED, Arithmetic
from nanochat.data.published.sets import ensure_task

GSM8K = ("gsm8k", "gsm8k-test")  # the sets that are learned from and measured by
ARITHMETIC = 4000  # questions of the embedded arithmetic that are learned from


@dataclass(frozen=True)
class Problem:
    """A question, its right answer, and what of a model's words is compared with that."""

    prompt: str
    answer: str
    final: Callable[[str], str | None]

    def reward(self, said: str) -> float:
        """1 for the right answer, 0 for any other."""
        return float(self.final(said) == self.answer)


def grade_school_problems(held_out: int) -> tuple[list[Problem], list[Problem]]:
    """GSM8K: all questions of its training part, and `held_out` of its test part. Downloads what is missing. Raises DataError."""

    def problem(row: dict[str, Any]) -> Problem:
        return Problem(grade_school(row)[0]["content"], final_number(row["answer"]) or "", final_number)

    train, test = (Rows(ensure_task(name)) for name in GSM8K)
    return [train.read(index, problem) for index in range(len(train))], test.sample(problem, held_out)


def arithmetic_problems(held_out: int) -> tuple[list[Problem], list[Problem]]:
    """Additions and subtractions as the embedded corpus asks them: some of those it trains on, and `held_out` of those it holds out."""
    skills = [skill for skill in SCORED if isinstance(skill, Arithmetic)]

    def draw(count: int, unseen: bool) -> list[Problem]:
        random, found = Random(f"problems {unseen}"), dict[str, Problem]()
        while len(found) < count:
            example = random.choice(skills).draw(random, unseen)
            found[example.prompt] = Problem(example.prompt, example.answer, str.strip)
        return list(found.values())

    return draw(ARITHMETIC, False), draw(held_out, True)
