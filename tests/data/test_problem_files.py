"""A user's problems: what a right answer is, which are held out, and what is refused with its line."""

import json
from pathlib import Path
from typing import Any

import pytest

from nanochat.config import Config
from nanochat.data.problem_files import exact, number, problem, problems_hash, read_problems
from nanochat.data.source import text_source
from nanochat.errors import DataError


def written(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def sums(count: int) -> list[dict[str, Any]]:
    return [{"question": f"What is {i} + 1?", "answer": str(i + 1)} for i in range(count)]


@pytest.mark.parametrize(
    ("answer", "right", "wrong"),
    [
        (
            "5",
            ["5", "It is 5.", "5.0", "= 5", "2 + 3 makes 5", "x\n#### 5", "005"],
            ["50", "", "five", "5 or 6", "#### 6", "-5"],
        ),
        ("1,234", ["1234", "1,234", "about 1,234.00"], ["1.234", "234"]),
        ("-0.50", ["-.5", "-0.5"], ["0.5", "-5"]),
        ("We add.\n#### 7", ["7", "So 7.\n#### 7"], ["8"]),
        ("Paris", ["Paris", " Paris ", "The capital.\n#### Paris"], ["paris", "It is Paris", "Paris."]),
        ("a  b", ["a b", "a\nb"], ["ab"]),
        ("台北", ["台北"], ["台南"]),
    ],
)
def test_what_is_right(answer: str, right: list[str], wrong: list[str]) -> None:
    one = problem("?", answer)
    assert [one.reward(said) for said in right] == [1.0] * len(right)
    assert [one.reward(said) for said in wrong] == [0.0] * len(wrong)


def test_which_comparison_is_said_and_a_tenth_is_held_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [*sums(90), *({"prompt": f"Say {i}", "target": f"w{i}"} for i in range(10))]
    path = written(tmp_path / "p.jsonl", [*rows, rows[0]])
    learned, held_out = read_problems(path, 400)
    assert len(learned) == 90 and len(held_out) == 10 and not {one.prompt for one in learned} & {one.prompt for one in held_out}
    assert (
        "100 in" in (said := capsys.readouterr().err)
        and "90 with a number" in said
        and "10 compared exactly" in said
        and "1 repeated" in said
    )
    assert {one.final for one in learned + held_out} == {exact, number}
    assert len(read_problems(path, 3)[1]) == 3
    again = read_problems(written(tmp_path / "q.jsonl", rows[::-1]), 400)
    assert {one.prompt for one in again[1]} == {one.prompt for one in held_out}  # whatever their order


def test_numbers_need_no_quotes(tmp_path: Path) -> None:
    learned, _ = read_problems(written(tmp_path / "p.jsonl", [{"question": str(i), "answer": i + 0.5} for i in range(3)]), 1)
    assert all(one.final is number for one in learned)


def test_other_files_of_rows(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    (tmp_path / "p.json").write_text(json.dumps(sums(4)), encoding="utf-8")
    (tmp_path / "p.csv").write_text("question,answer\n" + "".join(f"q{i},{i}\n" for i in range(4)), encoding="utf-8")
    pq.write_table(pa.Table.from_pylist(sums(4)), tmp_path / "p.parquet")
    for name in ("p.json", "p.csv", "p.parquet"):
        learned, held_out = read_problems(tmp_path / name, 1)
        assert (len(learned), len(held_out)) == (3, 1) and learned[0].final is number


@pytest.mark.parametrize(
    ("row", "match"),
    [
        ("text", "instead of an object"),
        ({"question": "?", "reply": "1"}, 'has no field "answer"; its fields are: question, reply'),
        ({"question": "?", "answer": ""}, '"answer" is empty'),
        ({"question": "?", "answer": None}, '"answer" is a NoneType'),
        ({"question": "?", "answer": True}, '"answer" is a bool'),
        ({"question": "?", "answer": ["1"]}, '"answer" is a list'),
        ({"question": "What is 0 + 1?", "answer": "2"}, "has another answer before: '1'"),
    ],
)
def test_a_fault_has_its_line(tmp_path: Path, row: Any, match: str) -> None:
    path = written(tmp_path / "p.jsonl", [*sums(3), row])
    with pytest.raises(DataError, match=match) as raised:
        read_problems(path, 1)
    assert f"{path}:4" in raised.value.message and raised.value.hint


def test_a_lone_surrogate_and_too_few(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text('{"question": "\\ud800", "answer": "1"}\n', encoding="utf-8")
    with pytest.raises(DataError, match="lone surrogate"):
        read_problems(path, 1)
    with pytest.raises(DataError, match="at least 2 are needed"):
        read_problems(written(path, sums(1)), 1)
    with pytest.raises(DataError, match="does not exist"):
        read_problems(tmp_path / "none.jsonl", 1)


def test_a_run_takes_them_instead_of_its_texts_own(tmp_path: Path) -> None:
    path = written(tmp_path / "p.jsonl", sums(20))
    source = text_source(Config(dataset="embedded", problems=str(path)))
    assert [len(part) for part in source.problems(400)] == [18, 2]
    before = source.problems_hash()
    assert before and before == problems_hash(path) and text_source(Config(dataset="embedded")).problems_hash() == ""
    assert problems_hash(written(path, sums(21))) != before
