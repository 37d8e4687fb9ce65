"""The chat tasks: what is asked, which letter wins, which number counts."""

from pathlib import Path

import numpy as np
import pytest
import torch

from nanochat.data.conversations import multiple_choice
from nanochat.data.published import sets
from nanochat.distributed.ranks import single
from nanochat.evaluation.chat import CHAT_TASKS, final_number, read_chat_task
from nanochat.evaluation.runner import ask
from nanochat.evaluation.scorer import Scorer
from nanochat.generate.engine import Engine, prompt_ids
from tests.evaluation.bundle import model, tokenizer, write_chat_sets


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("so\n#### 1,234", "1234"),
        ("#### -3.5 apples", "-3.5"),
        ("#### 7\n#### 8", "7"),
        ("the answer is 7", None),
        ("####7", None),
    ],
)
def test_the_number_that_counts(text: str, number: str | None) -> None:
    assert final_number(text) == number


def test_questions_are_put_as_they_are_taught(base: Path) -> None:
    write_chat_sets()
    mmlu = read_chat_task("MMLU")
    order = np.random.default_rng(42).permutation(8)
    row = {"question": "q", "choices": ["w", "x", "y", "z"], "answer": 2}
    assert multiple_choice(row)[0]["content"] == (
        "Multiple choice question: q\n- w=A\n- x=B\n- y=C\n- z=D\n\nAnswer with the letter of the right choice only."
    )
    assert mmlu.questions[0].letters == ("A", "B", "C", "D") and len(mmlu) == 8
    arc = read_chat_task("ARC-Easy", 3)
    assert len(arc) == 3 and [question.letters for question in arc.questions] == [
        ("A", "B", "C", "D") if i % 2 else ("1", "2", "3", "4") for i in order[:3]
    ]
    assert [question.answer for question in read_chat_task("GSM8K").questions] == [f"{i}000" for i in order]


def test_letters_equal_a_slow_computation(base: Path) -> None:
    write_chat_sets(40)
    tok = tokenizer()
    gpt = model(tok.vocab_size)
    tasks = [read_chat_task(name) for name in ("ARC-Easy", "MMLU")]
    found = ask("chat", tasks, Scorer(gpt, tok), single(), base, "a model")
    for task in tasks:
        right = 0
        for question in task.questions:
            ids = [tok.bos, tok.special("<|user_start|>"), *tok.encode(question.prompt)]
            ids += [tok.special("<|user_end|>"), tok.special("<|assistant_start|>")]
            assert ids == prompt_ids(tok, question.prompt)
            with torch.no_grad():
                logits = gpt.logits(gpt(torch.tensor([ids[-256:]])))[0, -1]
            best = max(question.letters, key=lambda letter: float(logits[tok.encode(letter)[0]]))
            right += best == question.answer
        accuracy = right / len(task)
        assert found["tasks"][task.name]["accuracy"] == pytest.approx(accuracy)
        assert found["tasks"][task.name]["centred"] == pytest.approx((accuracy - 0.25) / 0.75, abs=1e-6)
    assert 0 < accuracy < 1


def test_a_full_memory_halves_what_is_generated(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory for four prompts at once; every answer is 3,000, after a call of the calculator, which is not read as the answer."""
    write_chat_sets()
    tok = tokenizer()
    task = read_chat_task("GSM8K")
    batches: list[int] = []

    def complete(self: Engine, prompts: list[list[int]], **options: object) -> list[list[int]]:
        if len(prompts) > 4:
            raise torch.OutOfMemoryError("injected")
        batches.append(len(prompts))
        call = [tok.special("<|python_start|>"), *tok.encode("#### 5"), tok.special("<|python_end|>")]
        return [[*call, *tok.encode("It is.\n#### 3,000"), tok.special("<|assistant_end|>")] for _ in prompts]

    monkeypatch.setattr(Engine, "complete", complete)
    found = ask("chat", [task], Scorer(model(tok.vocab_size), tok), single(), base, "a model")
    assert found["tasks"]["GSM8K"]["accuracy"] == 1 / 8 and batches == [4, 4]


def test_every_task_has_its_set() -> None:
    assert {source for source, _, _ in CHAT_TASKS.values()} == set(sets.TESTS)
