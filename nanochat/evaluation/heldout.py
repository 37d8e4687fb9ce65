"""Held-out questions: exact-match scores by skill, of the untrained and the trained model."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nanochat import paths
from nanochat.console import Progress, show
from nanochat.data.embedded.corpus import Item
from nanochat.distributed.memory import map_with_oom_backoff
from nanochat.errors import DataError
from nanochat.generate.engine import Engine, answer_text
from nanochat.model.build import build_model
from nanochat.runs import record as runs

HELDOUT = "heldout.jsonl"  # in a run's directory: its held-out questions, so that anyone can repeat the evaluation
FORMAT_HINT = "write one JSON object per line, with skill, prompt and answer"
CALCULATOR_TOKENS = 24  # tokens of a calculator call and its result, beside the answer itself


def write_items(folder: Path, items: Sequence[Item]) -> None:
    """Write the held-out questions of the run in `folder`."""
    lines = [json.dumps({"skill": item.skill, "prompt": item.prompt, "answer": item.answer}, ensure_ascii=False) for item in items]
    paths.atomic_write(folder / HELDOUT, "\n".join(lines) + "\n")


def read_items(path: Path) -> list[Item]:
    """The questions of a jsonl file. Raises DataError if there are none."""
    try:
        items = [Item(**json.loads(line)) for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]
    except (OSError, ValueError, TypeError) as error:
        raise DataError(f"no questions in {path}: {error}", FORMAT_HINT) from error
    if not items:
        raise DataError(f"no questions in {path}", FORMAT_HINT)
    return items


def evaluate_items(run: str | None, path: Path | None) -> dict[str, Any]:
    """Scores of a run's model on the questions of a jsonl file, by default the run's held-out questions. Raises DataError."""
    opened = runs.open_model(run)
    runs.describe(opened)
    items = read_items(path or paths.run_dir(opened.run) / HELDOUT)
    untrained_model = build_model(opened.model.config)
    untrained, _ = grade_items(Engine(untrained_model, opened.tokenizer), items, "evaluating the untrained model")
    trained, _ = grade_items(Engine(opened.model, opened.tokenizer), items, "evaluating the trained model")
    return {"run": opened.run} | score_by_skill(items, untrained, trained)


def grade_items(engine: Engine, items: Sequence[Item], what: str, *, batch: int = 128) -> tuple[list[bool], int]:
    """(whether the model's greedy answer to each item is exactly right, number of tokens read and generated).

    `what` is for messages. When out of memory, the batch is halved.
    """
    tokenizer = engine.tokenizer
    max_tokens = CALCULATOR_TOKENS + max(len(tokenizer.encode(item.answer)) for item in items)
    with Progress(what, len(items), "questions") as progress:

        def grade(part: Sequence[Item]) -> list[tuple[bool, int]]:
            prompts = [render_question(engine, item.prompt) for item in part]
            answers = engine.complete(prompts, max_tokens=max_tokens, temperature=0.0, batch_size=len(part))
            progress.advance(len(part))
            return [
                (answer_text(tokenizer, ids).strip() == item.answer, len(prompt) + len(ids))
                for item, prompt, ids in zip(part, prompts, answers, strict=True)
            ]

        graded, _ = map_with_oom_backoff(items, batch, grade, next(engine.model.parameters()).device, what)
    return [correct for correct, _ in graded], sum(tokens for _, tokens in graded)


def answer(engine: Engine, question: str, max_tokens: int = 128) -> str:
    """The model's greedy answer to one question."""
    ids = engine.complete([render_question(engine, question)], max_tokens=max_tokens, temperature=0.0)[0]
    return answer_text(engine.tokenizer, ids)


def render_question(engine: Engine, question: str) -> list[int]:
    """The prompt ids of one user message, cut so that at least one token of the answer fits into the context."""
    return engine.tokenizer.render_prompt([{"role": "user", "content": question}], engine.context - 1)[0]


def score_by_skill(items: Sequence[Item], untrained: Sequence[bool], trained: Sequence[bool]) -> dict[str, Any]:
    """Fractions of correct answers of both models: {untrained, trained, items, by_skill}, the last by skill likewise."""

    def scores(chosen: Sequence[int]) -> dict[str, Any]:
        count = len(chosen)
        return {
            "untrained": round(sum(untrained[i] for i in chosen) / count, 4),
            "trained": round(sum(trained[i] for i in chosen) / count, 4),
            "items": count,
        }

    skills = sorted({item.skill for item in items})
    by_skill = {skill: scores([i for i, item in enumerate(items) if item.skill == skill]) for skill in skills}
    return scores(range(len(items))) | {"by_skill": by_skill}


def print_scores(scores: dict[str, Any]) -> None:
    """Print the scores of the untrained and the trained model by skill."""
    show(f"{'held-out questions':24} {'items':>6} {'untrained':>10} {'trained':>10}")
    for name, row in [*scores["by_skill"].items(), ("all", scores)]:
        show(f"{name:24} {row['items']:6} {row['untrained']:10.1%} {row['trained']:10.1%}")
