"""Held-out questions: whether the model's answer is exactly the right one, by skill, untrained beside trained."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nanochat import paths
from nanochat.console import Progress
from nanochat.data.embedded import corpus
from nanochat.data.embedded.corpus import Item
from nanochat.distributed.memory import in_parts
from nanochat.errors import DataError
from nanochat.generate.engine import Engine, answer_text
from nanochat.model.build import build_model
from nanochat.runs import record as runs

CALCULATOR_TOKENS = 24  # room for a call of the calculator and its output, beside the answer itself


def answer_items(engine: Engine, items: Sequence[Item], what: str, *, batch: int = 128) -> tuple[list[bool], int]:
    """Whether the model's answer to each item, at temperature 0, is exactly the right one; and how many tokens it read and wrote."""
    tokenizer = engine.tokenizer
    max_tokens = CALCULATOR_TOKENS + max(len(tokenizer.encode(item.answer)) for item in items)
    with Progress(what, len(items), "questions") as progress:

        def ask(part: Sequence[Item]) -> list[tuple[bool, int]]:
            prompts = [tokenizer.render_prompt([{"role": "user", "content": item.prompt}], engine.context - 1)[0] for item in part]
            answers = engine.complete(prompts, max_tokens=max_tokens, temperature=0.0, batch_size=len(part))
            progress.advance(len(part))
            return [
                (answer_text(tokenizer, ids).strip() == item.answer, len(prompt) + len(ids))
                for item, prompt, ids in zip(part, prompts, answers, strict=True)
            ]

        asked, _ = in_parts(items, batch, ask, next(engine.model.parameters()).device, what)
    return [right for right, _ in asked], sum(tokens for _, tokens in asked)


def scores(items: Sequence[Item], untrained: Sequence[bool], trained: Sequence[bool]) -> dict[str, Any]:
    """The score, untrained beside trained, overall and by skill, as parts of 1."""

    def part(chosen: Sequence[int]) -> dict[str, Any]:
        count = len(chosen)
        return {
            "untrained": round(sum(untrained[i] for i in chosen) / count, 4),
            "trained": round(sum(trained[i] for i in chosen) / count, 4),
            "items": count,
        }

    skills = sorted({item.skill for item in items})
    by_skill = {skill: part([i for i, item in enumerate(items) if item.skill == skill]) for skill in skills}
    return part(range(len(items))) | {"by_skill": by_skill}


def evaluate_items(run: str | None, items: Path | None) -> dict[str, Any]:
    """The score of a run's model on the questions of a jsonl file, by default the run's own held-out ones. Raises DataError."""
    opened = runs.open_model(run)
    runs.describe(opened)
    path = items or paths.run_dir(opened.run) / "heldout.jsonl"
    try:
        questions = [corpus.Item(**json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, ValueError, TypeError) as error:
        raise DataError(f"no questions in {path}: {error}", "one JSON object a line: skill, prompt, answer") from error
    if not questions:
        raise DataError(f"no questions in {path}", "one JSON object a line: skill, prompt, answer")
    untrained_model = build_model(opened.model.config)
    untrained, _ = answer_items(Engine(untrained_model, opened.tokenizer), questions, "asking the untrained model")
    trained, _ = answer_items(Engine(opened.model, opened.tokenizer), questions, "asking the trained model")
    return {"run": opened.run} | scores(questions, untrained, trained)


def ask(engine: Engine, prompt: str, max_tokens: int = 128) -> str:
    """The model's answer to one message, at temperature 0."""
    tokenizer = engine.tokenizer
    ids, _ = tokenizer.render_prompt([{"role": "user", "content": prompt}], engine.context - 1)
    return answer_text(tokenizer, engine.complete([ids], max_tokens=max_tokens, temperature=0.0)[0])


def print_scores(table: dict[str, Any]) -> None:
    """The score by skill, untrained beside trained, on stdout."""
    print(f"{'held-out questions':24} {'items':>6} {'untrained':>10} {'trained':>10}")
    for name, row in [*table["by_skill"].items(), ("all", table)]:
        print(f"{name:24} {row['items']:6} {row['untrained']:10.1%} {row['trained']:10.1%}")
