"""Scores of tasks: accuracy, centred accuracy, mean, and a table with published scores."""

import math
from typing import Any

# CORE of OpenAI's GPT-2, by karpathy/nanochat (README, and dev/estimate_gpt3_core.ipynb for all but the largest).
REFERENCES = {"GPT-2 124M": 0.1139, "GPT-2 355M": 0.1849, "GPT-2 774M": 0.2146, "GPT-2 1.6B": 0.2565}

TITLES = {"core": "CORE", "chat": "mean of the chat tasks"}
HEADINGS = ["task", "questions", "accuracy", "centred"]


def score_tasks(correct: dict[str, tuple[int, int, float]]) -> dict[str, Any]:
    """Scores of tasks from (correct answers, questions, score of guessing): accuracy, centred accuracy, and the centred mean.

    The centred accuracy is 0 for guessing and 1 if all is correct. `error` is the mean's standard error from the number of questions.
    """
    tasks, total, variance = {}, 0.0, 0.0
    for name, (count, questions, chance) in correct.items():
        accuracy = count / questions
        centred = (accuracy - chance) / (1 - chance)
        tasks[name] = {"accuracy": round(accuracy, 6), "centred": round(centred, 6), "questions": questions}
        total += centred
        variance += accuracy * (1 - accuracy) / questions / (1 - chance) ** 2
    number = max(len(tasks), 1)
    return {"score": round(total / number, 6), "error": round(math.sqrt(variance) / number, 6), "tasks": tasks}


def score_table(part: str, scores: dict[str, Any]) -> list[list[str]]:
    """The scores of "core" or "chat" as rows under HEADINGS: the tasks, the mean, and published scores."""
    rows = [[name, f"{task['questions']:,}", f"{task['accuracy']:.1%}", f"{task['centred']:.4f}"] for name, task in scores["tasks"].items()]
    mean = f"{TITLES[part]} ({scores['stage']} step {scores['step']}, standard error {scores['error']:.4f})"
    rows.append([mean, "", "", f"{scores['score']:.4f}"])
    if part == "core":
        rows += [[f"CORE of {name} (all questions)", "", "", f"{score:.4f}"] for name, score in REFERENCES.items()]
    return rows
