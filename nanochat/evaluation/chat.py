"""Chat tasks: ARC, MMLU and GSM8K, from their published test sets.

For ARC (Clark et al., 2018) and MMLU (Hendrycks et al., 2021) the answer is the most likely of the choices' letters. For GSM8K (Cobbe et
al., 2021) the model writes an answer, with the calculator, and the number after #### must be correct. HumanEval is not included, because
its answers are programs, which cannot be run safely without a sandbox.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from nanochat.data.conversations import LETTERS, Rows, choices_prompt, final_number, grade_school, multiple_choice
from nanochat.data.published.sets import task_files
from nanochat.evaluation.scorer import Scorer
from nanochat.generate.engine import prompt_ids
from nanochat.paths import sha256

ANSWER_TOKENS = 512  # limit of a written answer


@dataclass(frozen=True)
class Question:
    """The user's message, the letters to choose from (none for a written answer), and the right answer."""

    prompt: str
    letters: tuple[str, ...]
    answer: str


def _arc(row: dict[str, Any]) -> Question:
    choices, letters = row["choices"]["text"], tuple(row["choices"]["label"])
    return Question(choices_prompt(row["question"], choices, letters), letters, row["answerKey"])


def _mmlu(row: dict[str, Any]) -> Question:
    asked, answer = multiple_choice(row)
    return Question(asked["content"], tuple(LETTERS[: len(row["choices"])]), answer["content"])


def _gsm8k(row: dict[str, Any]) -> Question:
    return Question(grade_school(row)[0]["content"], (), final_number(row["answer"]) or "")


# Task -> (its dataset in data/published/sets.py, the score of guessing, function from a row to a question).
CHAT_TASKS: dict[str, tuple[str, float, Callable[[dict[str, Any]], Question]]] = {
    "ARC-Easy": ("arc-easy-test", 0.25, _arc),
    "ARC-Challenge": ("arc-challenge-test", 0.25, _arc),
    "MMLU": ("mmlu-test", 0.25, _mmlu),
    "GSM8K": ("gsm8k-test", 0.0, _gsm8k),
}


@dataclass(frozen=True)
class ChatTask:
    """One task: its questions, in order."""

    name: str
    chance: float
    questions: list[Question]
    digest: str

    def __len__(self) -> int:
        return len(self.questions)

    def length(self, index: int) -> int:
        """Approximate length of a question in characters."""
        return len(self.questions[index].prompt)

    def grade(self, scorer: Scorer, indices: Sequence[int]) -> list[bool]:
        """Whether the model answers each question correctly."""
        asked = [self.questions[index] for index in indices]
        prompts = [prompt_ids(scorer.tokenizer, question.prompt) for question in asked]
        if asked and asked[0].letters:
            chosen = scorer.choose_letters(prompts, [question.letters for question in asked])
            return [question.letters[choice] == question.answer for question, choice in zip(asked, chosen, strict=True)]
        answers = scorer.answer(prompts, min(ANSWER_TOKENS, scorer.context // 2))
        return [final_number(text) == question.answer for question, text in zip(asked, answers, strict=True)]


def read_chat_task(name: str, max_questions: int = -1) -> ChatTask:
    """A task of CHAT_TASKS whose files are present, with at most `max_questions` questions (-1: all). Raises DataError."""
    source, chance, convert = CHAT_TASKS[name]
    files = task_files(source)
    questions = Rows(files).sample(convert, max_questions)
    digest = json.dumps([len(questions), *(sha256(path) for path in files)])
    return ChatTask(name, chance, questions, digest)
