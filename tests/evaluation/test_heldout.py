"""Held-out questions: answers are compared whole, and scored by skill."""

from pathlib import Path
from typing import Any

import pytest
import torch

from nanochat import paths
from nanochat.data.embedded.corpus import Item
from nanochat.errors import DataError
from nanochat.evaluation.heldout import HELDOUT, answer, evaluate_items, grade_items, read_items, score_by_skill, write_items
from nanochat.generate.engine import Engine
from nanochat.model.build import build_model
from nanochat.model.scaling import GPTConfig
from nanochat.model.transformer import Transformer
from nanochat.runs.checkpoint import import_checkpoint
from nanochat.tokenizer.tokenizer import Tokenizer

ITEMS = [Item("sums", "6 + 6?", "12"), Item("sums", "60 + 63?", "123"), Item("sums", "1?", "1")]


class Parrot(Engine):
    """Answers every prompt with the same words."""

    def complete(self, prompts: Any, **_: Any) -> list[list[int]]:
        return [[*self.tokenizer.encode(" 12 "), self.tokenizer.special("<|assistant_end|>")] for _ in prompts]


class Tight(Parrot):
    """One question at a time, no more."""

    def complete(self, prompts: Any, **_: Any) -> list[list[int]]:
        if len(prompts) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return super().complete(prompts)


@pytest.fixture
def tokenizer() -> Tokenizer:
    return Tokenizer([bytes([b]) for b in range(256)])


@pytest.fixture
def model(tokenizer: Tokenizer) -> Transformer:
    torch.set_num_threads(1)
    return build_model(GPTConfig(depth=1, dim=32, n_head=2, n_kv_head=2, head_dim=16, vocab_size=tokenizer.vocab_size, max_seq_len=64))


@pytest.fixture
def run(base: Path, model: Transformer, tokenizer: Tokenizer) -> Path:
    """A run's folder with a model that chats."""
    tokenizer.save(paths.tokenizer_dir(tokenizer.id))
    folder = paths.run_dir("tiny")
    meta = {"stage": "sft", "run": "tiny", "step": 7, "trial": False, "model": model.config.to_dict(), "tokenizer": tokenizer.id}
    import_checkpoint(folder / "sft", model, meta)
    return folder


def test_scores_by_skill() -> None:
    items = [Item("sums", "1 + 1?", "2"), Item("sums", "1 + 2?", "3"), Item("names", "Who?", "me")]
    table = score_by_skill(items, [False, True, False], [True, True, False])
    assert table["by_skill"] == {
        "names": {"untrained": 0.0, "trained": 0.0, "items": 1},
        "sums": {"untrained": 0.5, "trained": 1.0, "items": 2},
    }
    assert (table["untrained"], table["trained"], table["items"]) == (0.3333, 0.6667, 3)


@pytest.mark.parametrize(("engine", "batch"), [(Parrot, 2), (Tight, 4)])
def test_answers_are_compared_whole(engine: type[Engine], batch: int, model: Transformer, tokenizer: Tokenizer) -> None:
    correct, tokens = grade_items(engine(model, tokenizer), ITEMS, "asking", batch=batch)
    assert correct == [True, False, False]
    assert tokens > 3 * 5


def test_one_answer(model: Transformer, tokenizer: Tokenizer) -> None:
    assert answer(Parrot(model, tokenizer), "6 + 6?") == " 12 "


def test_questions_are_read_as_they_were_written(tmp_path: Path) -> None:
    items = [*ITEMS, Item("names", "你是誰？", "小助手"), Item("lines", "one\u2028two\x85 three", "\x1c")]
    write_items(tmp_path, items)
    assert read_items(tmp_path / HELDOUT) == items and "你是誰？" in (tmp_path / HELDOUT).read_text(encoding="utf-8")


def test_the_evaluation_of_own_questions(run: Path, tmp_path: Path) -> None:
    questions = tmp_path / "questions.jsonl"
    questions.write_text('{"skill": "words", "prompt": "cat", "answer": "cat cat"}\n\n{"skill": "names", "prompt": "a", "answer": "b"}\n')
    table = evaluate_items("tiny", questions)
    assert table["run"] == "tiny" and table["items"] == 2 and table["by_skill"].keys() == {"words", "names"}
    for broken in ('{"skill": "words"}\n', "no json\n", ""):
        questions.write_text(broken)
        with pytest.raises(DataError, match="no questions in"):
            evaluate_items("tiny", questions)


def test_a_runs_own_held_out_questions(run: Path) -> None:
    with pytest.raises(DataError, match=r"heldout\.jsonl"):  # its text has none
        evaluate_items(None, None)
    write_items(run, ITEMS)
    assert evaluate_items(None, None)["by_skill"]["sums"]["items"] == 3
