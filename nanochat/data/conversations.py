"""The public sets for fine-tuning as conversations: SmolTalk, MMLU, GSM8K and the identity rows, mixed.

Rows stay in their parquet form in memory (Arrow) and become Python objects one at a time, when they are asked for.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from nanochat.data.conversation_files import Conversations, ConversationSequence, read_conversations
from nanochat.data.embedded import identity
from nanochat.data.published.mixtures import REPEATS
from nanochat.data.published.origins import Part, is_hub_name
from nanochat.data.published.sets import TASKS, ensure_identity, ensure_task
from nanochat.data.text.chinese import is_simplified
from nanochat.errors import DataError, UsageError
from nanochat.readers.parquet_pages import read_table
from nanochat.tokenizer.conversation import Conversation, conversation_fault

# How often each set goes into one pass (karpathy/nanochat's mixture).
MIXTURE = {"smol-smoltalk": 1, "mmlu": 3, "gsm8k": 4, "identity": 2}
LETTERS = "ABCDEFGHIJ"
ORDER_SEED = 42  # of `Rows.sample`; karpathy/nanochat's

Converted = TypeVar("Converted")

_CALCULATION = re.compile(r"<<([^<>=]*)=([^<>]*)>>")
_FINAL = re.compile(r"#### (-?[0-9.,]+)")


def talk(row: dict[str, Any]) -> Conversation:
    """A row of SmolTalk, or of any set with a column `messages`: those, as they are."""
    return [{"role": message["role"], "content": message["content"]} for message in row["messages"]]


def multiple_choice(row: dict[str, Any]) -> Conversation:
    """A row of MMLU {question, choices, answer: index}: the question, the choices with their letters, and the letter as the answer."""
    row = row.get("train") or row  # auxiliary_train nests each row once more
    question = choices_prompt(row["question"], row["choices"], LETTERS)
    return [{"role": "user", "content": question}, {"role": "assistant", "content": LETTERS[row["answer"]]}]


def choices_prompt(question: str, choices: Sequence[str], letters: Sequence[str]) -> str:
    """A question with its choices, as it is taught and as it is asked.

    The letter comes after the choice, so that a small model can bind the two as it reads.
    """
    listed = "".join(f"- {choice}={letter}\n" for choice, letter in zip(choices, letters, strict=False))
    return f"Multiple choice question: {question}\n{listed}\nAnswer with the letter of the right choice only."


def grade_school(row: dict[str, Any]) -> Conversation:
    """A row of GSM8K {question, answer}: each <<48/2=24>> of the answer becomes a call of the calculator and its output.

    The final answer stays where the set has it, after ####.
    """
    parts: list[dict[str, str]] = []
    end = 0
    for found in _CALCULATION.finditer(row["answer"]):
        if text := row["answer"][end : found.start()]:
            parts.append({"type": "text", "text": text})
        parts.append({"type": "python", "text": found[1]})
        parts.append({"type": "python_output", "text": found[2]})
        end = found.end()
    if text := row["answer"][end:]:
        parts.append({"type": "text", "text": text})
    return [{"role": "user", "content": row["question"]}, {"role": "assistant", "content": parts}]


def final_number(text: str) -> str | None:
    """The answer of GSM8K's form that `text` ends in, the number after ####, without commas; or None."""
    found = _FINAL.search(text)
    return found[1].replace(",", "") if found else None


_CONVERT: dict[str, Callable[[dict[str, Any]], Conversation]] = {"smol-smoltalk": talk, "mmlu": multiple_choice, "gsm8k": grade_school}


class Rows(ConversationSequence):
    """The rows of parquet files as conversations. Raises DataError if a file cannot be read, or a row is malformed."""

    def __init__(self, paths: Sequence[Path], convert: Callable[[dict[str, Any]], Conversation] = talk):
        import pyarrow

        self.paths, self.convert = paths, convert
        try:
            self.table = pyarrow.concat_tables([read_table(path) for path in paths], promote_options="default")
        except (pyarrow.ArrowException, OSError) as error:
            folder = paths[0].parent
            raise DataError(
                f"the files in {folder} cannot be read: {error}", f"remove {folder} and run the same command again, which downloads them"
            ) from error

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def sample(self, convert: Callable[[dict[str, Any]], Converted], most: int = -1) -> list[Converted]:
        """At most `most` rows (-1: all), converted, in an order of their own, so that the first N are a fair sample of them."""
        order = np.random.default_rng(ORDER_SEED).permutation(len(self))
        return [self.read(int(index), convert) for index in (order[:most] if most >= 0 else order)]

    def at(self, index: int) -> Conversation:
        """The conversation at `index`. Raises DataError if the row is malformed."""
        conversation = self.read(index, self.convert)
        if wrong := conversation_fault(conversation, answered=True):
            raise self._fault(index, wrong)
        return conversation

    def read(self, index: int, convert: Callable[[dict[str, Any]], Converted]) -> Converted:
        """Row `index` (from 0) through `convert`. Raises DataError if it lacks what `convert` looks for."""
        (row,) = self.table.slice(index, 1).to_pylist()
        try:
            return convert(row)
        except (KeyError, IndexError, TypeError, AttributeError) as error:
            raise self._fault(index, f"{type(error).__name__}: {error}; its columns are {', '.join(self.table.column_names)}") from error

    def _fault(self, index: int, wrong: str) -> DataError:
        folder = self.paths[0].parent
        return DataError(
            f"row {index} of {folder} is not as expected: {wrong}", f"remove {folder} and run the same command again, which downloads it"
        )


class Mixture(ConversationSequence):
    """So many conversations of each of several sets, in one order that the seed decides.

    A set that has more of them is drawn from evenly, one that has fewer begins again.
    """

    def __init__(self, parts: Sequence[tuple[Sequence[Conversation], int]], seed: int):
        self.parts = parts
        self.starts = np.cumsum([0, *(count for _, count in parts)])
        self.order = np.random.default_rng(seed).permutation(int(self.starts[-1]))

    def __len__(self) -> int:
        return len(self.order)

    def at(self, index: int) -> Conversation:
        """The conversation at `index`."""
        place = int(self.order[index])
        which = int(np.searchsorted(self.starts, place, side="right")) - 1
        (rows, count), within = self.parts[which], place - int(self.starts[which])
        return rows[within * len(rows) // count if count < len(rows) else within % len(rows)]


def with_identity(others: Sequence[Conversation], path: Path, seed: int) -> Mixture:
    """`others` and the conversations about the identity that a TOML file describes, as often as the published ones. Raises DataError."""
    own = identity.conversations(identity.read_identity(path))
    return Mixture([(others, len(others)), (own, MIXTURE["identity"] * len(own))], seed)


def conversations(name: str, traditional: bool = False) -> Sequence[Conversation]:
    """One set: a name of TASKS, identity or hf:OWNER/NAME. Downloads what is missing. Raises UsageError for another name, DataError.

    traditional: without those of a set of the hub that are in Simplified Chinese.
    """
    if name == "identity":
        return read_conversations(ensure_identity())
    if is_hub_name(name):
        return public_set(name, traditional)
    if name not in TASKS:
        raise UsageError(f"no set {name!r} for fine-tuning", f"use one of: identity, {', '.join(TASKS)}")
    return Rows(ensure_task(name), _CONVERT[name])


def public_set(name: str, traditional: bool = False) -> Conversations:
    """The conversations of hf:OWNER/NAME in every known form; other records are counted. Downloads what is missing. Raises DataError."""
    files = ensure_task(name)
    return read_conversations(files[0].parent, files, strict=False, unwanted=is_simplified if traditional else None)


def mixture(names: Mapping[str, int] | Sequence[str] = MIXTURE, seed: int = 42) -> Mixture:
    """The sets `names`, each as often as `names` or MIXTURE says, shuffled by `seed`. Raises UsageError, DataError."""
    times = names if isinstance(names, Mapping) else {name: MIXTURE.get(name, 1) for name in names}
    sets = {name: conversations(name) for name in times}
    return Mixture([(rows, times[name] * len(rows)) for name, rows in sets.items()], seed)


def blend(parts: Sequence[Part], seed: int, traditional: bool = False) -> Mixture:
    """Published sets by share, shuffled by `seed`: so many that the largest is used up, but none is read more than REPEATS times.

    traditional: without conversations in Simplified Chinese. Raises UsageError, DataError.
    """
    sets = {part: conversations(part.name, traditional) for part in parts}
    whole = [len(rows) / part.share for part, rows in sets.items()]
    size = min(max(whole), REPEATS * min(whole))
    return Mixture([(rows, max(round(size * part.share), 1)) for part, rows in sets.items()], seed)
