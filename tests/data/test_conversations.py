"""The public sets become conversations as the tokenizer renders them, and mix in an order that the seed decides."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nanochat.data.conversations import conversations, grade_school, mixture, multiple_choice
from nanochat.errors import DataError, UsageError
from nanochat.paths import dataset_dir
from nanochat.tokenizer.conversation import conversation_fault

QUESTION = {"question": "What is red?", "choices": ["the sky", "blood", "grass", "snow"], "answer": 1, "subject": "colours"}
SUM = {"question": "2 bags of 3?", "answer": "There are 2*3=<<2*3=6>>6 apples,\nso <<6-1=5>>5 are left.\n#### 5"}


def test_multiple_choice():
    for row in (QUESTION, {"train": QUESTION}):
        user, assistant = multiple_choice(row)
        assert "What is red?\n- the sky=A\n- blood=B\n- grass=C\n- snow=D\n" in user["content"] and assistant["content"] == "B"


def test_calculator_spans_become_parts():
    parts = grade_school(SUM)[1]["content"]
    assert [(part["type"], part["text"]) for part in parts] == [
        ("text", "There are 2*3="),
        ("python", "2*3"),
        ("python_output", "6"),
        ("text", "6 apples,\nso "),
        ("python", "6-1"),
        ("python_output", "5"),
        ("text", "5 are left.\n#### 5"),
    ]
    assert grade_school({"question": "q", "answer": "#### 5"})[1]["content"] == [{"type": "text", "text": "#### 5"}]


def place(base):
    """All four sets, put by hand."""
    talks = [[{"role": "user", "content": f"u{i}"}, {"role": "assistant", "content": f"a{i}"}] for i in range(10)]
    for name, rows in {
        "smol-smoltalk": [{"messages": talk} for talk in talks],
        "mmlu": [{"train": QUESTION}] * 3,
        "gsm8k": [SUM] * 2,
    }.items():
        folder = dataset_dir("tasks") / name
        folder.mkdir(parents=True)
        pq.write_table(pa.Table.from_pylist(rows), folder / "train.parquet")
    (base / "identity_conversations.jsonl").write_text(json.dumps(talks[0]) + "\n")
    return talks


def test_the_mixture(base):
    talks = place(base)
    mixed = mixture(seed=1)
    assert len(mixed) == 10 + 3 * 3 + 4 * 2 + 2 * 1
    assert all(conversation_fault(conversation, answered=True) is None for conversation in mixed)
    assert mixed[:] == mixture(seed=1)[:] != mixture(seed=2)[:]
    assert mixed[-1] == mixed[len(mixed) - 1] and mixed[2:4] == [mixed[2], mixed[3]]
    with pytest.raises(IndexError):
        mixed[len(mixed)]
    assert sorted(mixture(["smol-smoltalk"]), key=str) == sorted(talks, key=str)
    assert len(mixture({"identity": 5})) == 5


def test_other_names_and_other_columns(base):
    with pytest.raises(UsageError, match="no set"):
        conversations("poems")
    folder = dataset_dir("tasks") / "gsm8k"
    folder.mkdir(parents=True)
    pq.write_table(pa.table({"problem": ["x"]}), folder / "a.parquet")
    with pytest.raises(DataError, match="problem"):
        conversations("gsm8k")[0]
    (folder / "a.parquet").write_bytes(b"broken")
    with pytest.raises(DataError, match="cannot be read"):
        conversations("gsm8k")
