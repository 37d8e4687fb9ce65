"""CORE: 22 tasks that a base model answers by continuing text (Li et al., 2024, "DataComp-LM", arXiv 2406.11794).

The evaluation bundle, as karpathy/nanochat publishes it:

    eval_bundle/core.yaml           the tasks: kind, number of examples shown, delimiter
                eval_meta_data.csv  the score of guessing, in percent
                eval_data/...jsonl  their rows

Rows, examples and prompts are exactly those of karpathy/nanochat, so that scores can be compared.
"""

import csv
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from nanochat import untrusted
from nanochat.errors import DataError
from nanochat.evaluation.scorer import Scorer, Span
from nanochat.paths import sha256
from nanochat.tokenizer.tokenizer import Tokenizer

ORDER_SEED = 1337  # shuffles the rows, so that the first N are a random sample
TASKS_BYTES = 1 << 20  # size limit of core.yaml
EXAMPLES_SEED = 1234  # plus the row's index: seed of its few-shot examples

# Kind of task -> the required fields of a row.
FIELDS = {
    "multiple_choice": ("query", "choices", "gold"),  # one context, several continuations
    "schema": ("context_options", "continuation", "gold"),  # several contexts, one continuation
    "language_modeling": ("context", "continuation"),  # one continuation, which must be predicted exactly
}


def choose_examples(index: int, rows: int, shots: int) -> list[int]:
    """The few-shot examples of row `index`, other rows; all others if there are fewer than `shots`."""
    chosen = random.Random(EXAMPLES_SEED + index).sample(range(rows - 1), min(shots, rows - 1))
    return [other + (other >= index) for other in chosen]


@dataclass(frozen=True)
class CoreTask:
    """One task: its rows in order, and the format of its prompts."""

    name: str
    kind: str  # a key of FIELDS
    shots: int
    delimiter: str  # between a row's context and its continuation
    chance: float  # score of guessing, 0 to 1
    rows: list[dict[str, Any]]
    digest: str  # hash of the file and of the fields above

    def __len__(self) -> int:
        return len(self.rows)

    def prompts(self, index: int) -> list[str]:
        """The texts of row `index`, one per option; for language modelling the text without and with its continuation."""
        shown = "".join(f"{self._example(self.rows[i])}\n\n" for i in choose_examples(index, len(self.rows), self.shots))
        row = self.rows[index]
        if self.kind == "multiple_choice":
            return [f"{shown}{row['query']}{self.delimiter}{choice}" for choice in row["choices"]]
        if self.kind == "schema":
            return [f"{shown}{context}{self.delimiter}{row['continuation']}" for context in row["context_options"]]
        before = f"{shown}{str(row['context']).strip()}{self.delimiter}"
        return [before.strip(), f"{before}{row['continuation']}"]  # a space at the end would belong to the next token

    def _example(self, row: dict[str, Any]) -> str:
        """A row with its correct answer, as a few-shot example."""
        if self.kind == "multiple_choice":
            return f"{row['query']}{self.delimiter}{row['choices'][row['gold']]}"
        if self.kind == "schema":
            return f"{row['context_options'][row['gold']]}{self.delimiter}{row['continuation']}"
        return f"{str(row['context']).strip()}{self.delimiter}{row['continuation']}"

    def length(self, index: int) -> int:
        """Length of a question in characters, to batch questions of similar length."""
        return max(map(len, self.prompts(index)))

    def spans(self, index: int, tokenizer: Tokenizer) -> list[Span]:
        """The options of row `index` as ids, each with its scored part, in which the options differ.

        A schema's options differ in their beginnings; there the common ending is scored.
        """
        ids = [[tokenizer.bos, *tokenizer.encode(prompt)] for prompt in self.prompts(index)]
        if self.kind == "schema":
            common = common_length([one[::-1] for one in ids])
            return [Span(one, max(len(one) - common, 1), len(one)) for one in ids]
        start = max(common_length(ids), 1)
        if self.kind == "language_modeling":
            return [Span(ids[1], start, len(ids[1]))]
        return [Span(one, start, len(one)) for one in ids]

    def grade(self, scorer: Scorer, indices: Sequence[int]) -> list[bool]:
        """Whether the model answers each row correctly.

        The correct option must have the lowest mean loss; for language modelling, each id of the continuation must be the most likely.
        """
        options = [self.spans(index, scorer.tokenizer) for index in indices]
        scored = iter(scorer.score_spans([span for spans in options for span in spans]))
        correct = []
        for index, spans in zip(indices, options, strict=True):
            nats, likeliest = zip(*(next(scored) for _ in spans), strict=True)
            correct.append(all(likeliest) if self.kind == "language_modeling" else nats.index(min(nats)) == self.rows[index]["gold"])
        return correct


def common_length(sequences: Sequence[Sequence[int]]) -> int:
    """Length of the common prefix of `sequences`."""
    count = 0
    for together in zip(*sequences, strict=False):
        if len(set(together)) > 1:
            break
        count += 1
    return count


def read_core(bundle: Path, max_rows: int = -1) -> list[CoreTask]:
    """The bundle's tasks, at most the first `max_rows` rows of each (-1: all). Raises DataError if the bundle is not as published."""
    try:
        tasks = yaml.safe_load(untrusted.read_bytes(bundle / "core.yaml", TASKS_BYTES).decode("utf-8"))["icl_tasks"]
        with (bundle / "eval_meta_data.csv").open(encoding="utf-8", newline="") as file:
            chance = {row["Eval Task"]: float(row["Random baseline"]) / 100 for row in csv.DictReader(file)}
        return [_read_task(bundle, task, chance[task["label"]], max_rows) for task in tasks]
    except (OSError, yaml.YAMLError, ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError) as error:
        raise DataError(
            f"{bundle} is not the evaluation bundle ({type(error).__name__}: {untrusted.reason(error)})",
            f"remove {bundle} and run `nanochat download --evaluation`",
        ) from error


def _read_task(bundle: Path, task: dict[str, Any], chance: float, max_rows: int) -> CoreTask:
    """One task of the bundle's core.yaml. Raises ValueError if a row lacks a field."""
    kind, shots, delimiter = task["icl_task_type"], task["num_fewshot"][0], task.get("continuation_delimiter", " ")
    untrusted.integer(shots, "num_fewshot", high=1000)
    path = untrusted.inside(bundle / "eval_data", task["dataset_uri"])
    untrusted.regular_file(path)
    with path.open(encoding="utf-8") as file:
        rows = [untrusted.parse_json(line) for line in file if line.strip()]
    for number, row in enumerate(rows, 1):
        options = row.get("choices") or row.get("context_options") or []
        if any(field not in row for field in FIELDS[kind]) or ("gold" in FIELDS[kind] and not 0 <= row["gold"] < len(options)):
            raise ValueError(f"row {number} of {path} is not a {kind} row (it has {', '.join(row)})")
    random.Random(ORDER_SEED).shuffle(rows)
    rows = rows[:max_rows] if max_rows >= 0 else rows
    if not rows:
        raise ValueError(f"{path} has no rows")
    digest = json.dumps([kind, shots, delimiter, len(rows), sha256(path)])
    return CoreTask(task["label"], kind, shots, delimiter, chance, rows, digest)
