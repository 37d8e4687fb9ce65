"""Conversations in the forms that people have them are read as the same conversations; what is left out is counted, with its place."""

import bz2
import gzip
import json
import lzma
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nanochat.data.conversation_files import read_conversations
from nanochat.data.conversation_formats import understand
from nanochat.errors import DataError
from nanochat.tokenizer.conversation import conversation_fault

U, A, S = "user", "assistant", "system"


def talk(*messages: tuple[str, Any]) -> list[dict[str, Any]]:
    return [{"role": role, "content": content} for role, content in messages]


def share(*said: tuple[str, str]) -> dict[str, Any]:
    return {"conversations": [{"from": role, "value": text} for role, text in said]}


SHARED = (("human", "hi"), ("gpt", "hello"))
HI = talk((U, "hi"), (A, "hello"))
KIND = talk((S, "be kind"), *((m["role"], m["content"]) for m in HI))
CALL = {"role": A, "content": None, "tool_calls": [{"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}}]}

MORE = talk((U, "a"), (A, "b"))
UNLEARNED = [HI[0], {**HI[1], "weight": 0}]
EMPTY = "empty answers with their questions"
FORMS = {
    "messages": ({"messages": KIND}, KIND, {}),
    "a list": (KIND, KIND, {}),
    "other fields": ({"id": 3, "messages": [{**m, "name": None} for m in KIND], "tools": []}, KIND, {}),
    "a list in a string": ({"messages": json.dumps(KIND)}, KIND, {}),
    "ShareGPT": (share(*SHARED), HI, {}),
    "ShareGPT with a system": ({"system": "be kind", **share(*SHARED)}, KIND, {}),
    "ShareGPT system turn": (share(("system", "be kind"), *SHARED), KIND, {}),
    "Alpaca": ({"instruction": "hi", "input": "", "output": "hello"}, HI, {}),
    "Alpaca with input": ({"instruction": "Add.", "input": "1, 2", "output": "3"}, talk((U, "Add.\n\n1, 2"), (A, "3")), {}),
    "Alpaca with history": ({"instruction": "a", "output": "b", "history": [["hi", "hello"]]}, [*HI, *MORE], {}),
    "Dolly": ({"instruction": "Add.", "context": "1, 2", "response": "3"}, talk((U, "Add.\n\n1, 2"), (A, "3")), {}),
    "prompt and completion": ({"prompt": "hi", "completion": "hello"}, HI, {}),
    "prompt and response": ({"prompt": "hi", "response": "hello"}, HI, {}),
    "prompt and completion of messages": ({"prompt": KIND[:2], "completion": KIND[2:]}, KIND, {}),
    "question and answer": ({"question": "hi", "answer": "hello"}, HI, {}),
    "developer": ([{"role": "developer", "content": "be kind"}, *HI], KIND, {}),
    "a system between": ([*HI, *talk((S, "be kind"), (U, "a"), (A, "b"))], [*KIND, *talk((U, "a"), (A, "b"))], {}),
    "parts": (talk((U, [{"type": "text", "text": "h"}, {"type": "text", "text": "i"}]), (A, "hello")), HI, {}),
    "an image": (
        talk((U, [{"type": "text", "text": "hi"}, {"type": "image_url", "image_url": {}}]), (A, "hello")),
        HI,
        {"parts that are not text": 1},
    ),
    "a tool": (
        [*talk((U, "How warm?")), CALL, {"role": "tool", "tool_call_id": "a", "content": "22 C"}, *talk((A, "Warm."))],
        talk((U, "How warm?\n\n22 C"), (A, "Warm.")),
        {"calls of tools": 1},
    ),
    "ShareGPT with a tool": (
        share(("human", "q"), ("function_call", "{}"), ("observation", "22"), ("gpt", "a")),
        talk((U, "q\n\n22"), (A, "a")),
        {"calls of tools": 1},
    ),
    "two users": (talk((U, "a"), (U, "b"), (A, "c")), talk((U, "a\n\nb"), (A, "c")), {}),
    "two assistants": (talk((U, "a"), (A, "b"), (A, "c")), talk((U, "a"), (A, "b\n\nc")), {}),
    "an assistant begins": (talk((A, "Welcome!"), *((m["role"], m["content"]) for m in HI)), HI, {"answers before the first question": 1}),
    "a user ends": ([*HI, *talk((U, "and?"))], HI, {"questions without an answer at the end": 1}),
    "an empty answer": ([*talk((U, "q"), (A, " \n")), *HI], HI, {EMPTY: 1}),
    "a null answer": ([*HI, *talk((U, "q"), (A, None))], HI, {EMPTY: 1}),
    "a null system": ([*talk((S, None)), *HI], HI, {}),
    "only empty": ({"prompt": "q", "completion": ""}, [], {EMPTY: 1, "conversations without an answer": 1}),
    "only a greeting": (talk((A, "hi")), [], {"answers before the first question": 1, "conversations without an answer": 1}),
    "null": (None, [], {"empty rows": 1}),
    "null messages": ({"messages": None}, [], {"empty rows": 1}),
    "null messages beside a pair": ({"messages": None, "prompt": "hi", "completion": "hello"}, HI, {}),
    "no messages": ({"messages": []}, [], {"empty rows": 1}),
    "weight 0": ([*UNLEARNED, *MORE], [*UNLEARNED, *MORE], {}),
    "weight 0 alone": (UNLEARNED, [], {"conversations whose every answer has weight 0": 1}),
}  # fmt: skip


@pytest.mark.parametrize("case", FORMS)
def test_each_form(case: str) -> None:
    row, conversation, reasons = FORMS[case]
    left: Counter[str] = Counter()
    before = json.dumps(row)
    assert understand(row, left)[1] == conversation
    assert dict(+left) == reasons and json.dumps(row) == before
    assert not conversation or conversation_fault(conversation, answered=True) is None


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text": "a"}, "no list of messages among the fields text"),
        ("hi", "a string instead of an object"),
        (["hi"], "message 1"),
        (talk(("nobody", "x")), "role 'nobody'"),
        (talk((U, 3), (A, "x")), "not a string"),
        (talk((U, "half \ud83d"), (A, "x")), "not valid text"),
        ({"messages": "[1, "}, "Expecting value"),
    ],
)
def test_what_is_no_conversation_is_refused(row: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        understand(row, Counter())


ROWS = [{"messages": talk((U, f"What is {i}?"), (A, f"{i}, as it is."))} for i in range(20)]
PACK = {"": bytes, ".gz": gzip.compress, ".zst": zstandard.compress, ".bz2": bz2.compress, ".xz": lzma.compress}


def write(path: Path, rows: list[Any], form: str) -> None:
    if form == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif form == "arrow":
        table = pa.Table.from_pylist(rows)
        with pa.ipc.new_stream(str(path), table.schema) as sink:
            sink.write_table(table)
    else:
        text = {
            "jsonl": lambda: "".join(json.dumps(row) + "\n" for row in rows),
            "json": lambda: json.dumps(rows),
            "pretty.json": lambda: json.dumps(rows, indent=2),
            "concatenated.json": lambda: "".join(json.dumps(row, indent=1) for row in rows),
            "lists.json": lambda: json.dumps([row["messages"] for row in rows], indent=1),
            "lists.jsonl": lambda: "".join(json.dumps(row["messages"]) + "\n\n" for row in rows),
        }[form]()
        path.write_bytes(PACK["" if path.suffix not in PACK else path.suffix](text.encode()))


@pytest.mark.parametrize("form", ["jsonl", "json", "pretty.json", "concatenated.json", "lists.json", "lists.jsonl", "parquet", "arrow"])
@pytest.mark.parametrize("pack", PACK)
def test_every_file_gives_the_same_conversations(tmp_path: Path, form: str, pack: str) -> None:
    if form in ("parquet", "arrow") and pack:
        pytest.skip("they are compressed within")
    path = tmp_path / f"a.{form}{pack}"
    write(path, ROWS, form)
    assert list(read_conversations(path)) == list(read_conversations(tmp_path)) == [row["messages"] for row in ROWS]


def test_one_conversation_alone_in_a_file(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps(KIND, indent=2))
    assert list(read_conversations(tmp_path / "a.json")) == [KIND]


def test_a_folder_of_all_forms_says_what_it_understood(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "a.parquet", ROWS, "parquet")
    write(
        tmp_path / "b.json",
        [{"instruction": "hi", "input": "", "output": "hello"}, {"instruction": "q", "input": "", "output": ""}],
        "json",
    )
    write(tmp_path / "c.jsonl", [share(*SHARED)], "jsonl")
    (tmp_path / "d.csv").write_text('prompt,completion\n"hi, you",hello\n')
    (tmp_path / "notes.txt").write_text("not these")
    found = read_conversations(tmp_path)
    lines = "\n".join(found.lines())
    assert len(found) == 23
    for said in (
        "20 understood as messages, such as user: What is 0? | assistant: 0,",
        "1 understood as Alpaca",
        "1 understood as ShareGPT",
        "1 understood as prompt and completion, such as user: hi, you",
        f"1 {EMPTY}, first in {tmp_path / 'b.json'}:1",
    ):
        assert said in lines, lines
    assert "1 file(s) left out: 1 (.txt)" in capsys.readouterr().err


def test_a_row_that_is_none_is_named_or_in_a_set_of_others_counted(tmp_path: Path) -> None:
    bad = [*ROWS, {"messages": talk((U, "half \ud83d"), (A, "x"))}]
    write(tmp_path / "a.jsonl", bad, "jsonl")
    with pytest.raises(DataError, match=r"a\.jsonl:21: the content of message 1 is not valid text"):
        read_conversations(tmp_path / "a.jsonl")
    pq.write_table(pa.Table.from_pylist([*ROWS, {"messages": talk(("nobody", "x"))}]), tmp_path / "a.parquet")
    found = read_conversations(tmp_path, [tmp_path / "a.parquet"], strict=False)
    assert len(found) == 20 and "1 rows that are no conversation (message 1 has the role 'nobody'" in "\n".join(found.lines())


def test_nothing_left_is_an_error_with_its_reasons(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", [{"prompt": "q", "completion": None}] * 3, "jsonl")
    with pytest.raises(DataError, match="has no conversations: left out are 3 empty answers"):
        read_conversations(tmp_path / "a.jsonl")


TEXT = st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=20).filter(str.strip)
TALKS = st.lists(st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=3), min_size=1, max_size=5)
AS_ROWS = {
    "messages": lambda turns: {"messages": [m for q, a in turns for m in talk((U, q), (A, a))]},
    "list": lambda turns: [m for q, a in turns for m in talk((U, q), (A, a))],
    "ShareGPT": lambda turns: share(*(said for q, a in turns for said in (("human", q), ("gpt", a)))),
    "Alpaca": lambda turns: {"instruction": turns[-1][0], "input": "", "output": turns[-1][1], "history": [*map(list, turns[:-1])]},
    "prompt": lambda turns: {"prompt": [m for q, a in turns for m in talk((U, q), (A, a))][:-1], "completion": talk((A, turns[-1][1]))},
    "parts": lambda turns: [m for q, a in turns for m in talk((U, [{"type": "text", "text": q}]), (A, a))],
}  # fmt: skip


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(talks=TALKS, form=st.sampled_from([*AS_ROWS]), indent=st.sampled_from([None, 1]), array=st.booleans(), pack=st.sampled_from([*PACK]))
def test_what_was_written_is_what_is_read(tmp_path: Path, talks: Any, form: str, indent: int | None, array: bool, pack: str) -> None:
    rows = [AS_ROWS[form](turns) for turns in talks]
    text = json.dumps(rows, indent=indent) if array else "\n".join(json.dumps(row, indent=indent, ensure_ascii=False) for row in rows)
    path = tmp_path / f"a.json{pack}"
    path.write_bytes(PACK[pack](text.encode()))
    assert list(read_conversations(path)) == [AS_ROWS["list"](turns) for turns in talks]
