"""metrics.jsonl: one line a step, whatever happens to the process or to the end of the file."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanochat.errors import PreflightError
from nanochat.runs.metrics import Metrics, read_metrics


def entry(step: int, stage: str = "base") -> dict[str, Any]:
    return {"stage": stage, "step": step, "loss": 1 / (step + 1)}


def write(path: Path, steps: range, stage: str = "base") -> None:
    """A process that begins after steps.start - 1 steps."""
    metrics = Metrics(path, stage, steps.start - 1)
    for step in steps:
        metrics.write(entry(step, stage))
    metrics.close()


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run" / "metrics.jsonl"


def test_resume_cuts_what_lies_after_the_loaded_step(path: Path) -> None:
    write(path, range(1, 8))
    metrics = Metrics(path, "base", 4)
    assert metrics.last == entry(4)
    metrics.write(entry(5))
    metrics.close()
    assert lines(path) == [entry(step) for step in range(1, 6)]


def test_resume_cuts_a_torn_last_line(path: Path) -> None:
    write(path, range(1, 4))
    with path.open("a") as file:
        file.write('{"stage": "base", "st')
    write(path, range(4, 6))
    assert lines(path) == [entry(step) for step in range(1, 6)]


def test_stages_follow_each_other(path: Path) -> None:
    write(path, range(1, 4))
    write(path, range(1, 3), "sft")
    assert Metrics(path, "sft", 1).last == entry(1, "sft")
    write(path, range(2, 4), "sft")
    assert lines(path) == [*map(entry, range(1, 4)), *(entry(step, "sft") for step in range(1, 4))]
    write(path, range(2, 3))  # base again, from a checkpoint before: everything after it goes
    assert lines(path) == [entry(1), entry(2)]


def test_a_new_run_begins_empty(path: Path) -> None:
    metrics = Metrics(path, "base", 0)
    assert metrics.last == {}
    metrics.close()
    assert path.read_bytes() == b""


def test_amend_adds_to_the_last_line(path: Path) -> None:
    write(path, range(1, 3))
    metrics = Metrics(path, "base", 2)
    metrics.amend(bpb=2.5)  # the line of before the crash
    metrics.write(entry(3))
    metrics.amend(bpb=2.25)
    metrics.amend(bpb=2.0)  # a shorter line leaves nothing of the longer one
    metrics.sync()
    assert metrics.last == entry(3) | {"bpb": 2.0}
    metrics.close()
    assert lines(path) == [entry(1), entry(2) | {"bpb": 2.5}, entry(3) | {"bpb": 2.0}]


def test_a_hand_edited_line_is_kept_as_it_is(path: Path) -> None:
    write(path, range(1, 3))
    path.write_text(path.read_text().replace(", ", " ,  "))
    metrics = Metrics(path, "base", 2)
    metrics.amend(bpb=2.5)
    metrics.close()
    assert lines(path) == [entry(1), entry(2) | {"bpb": 2.5}]


def test_a_kill_in_the_middle_of_amend_never_loses_the_line(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(path, range(1, 4))
    metrics = Metrics(path, "base", 3)
    seen = []

    class Watched:
        """The file, which tells what lies on the disk before and after each call."""

        def __init__(self, file: Any):
            self.file = file

        def __getattr__(self, name: str) -> Any:
            def call(*arguments: Any) -> Any:
                result = getattr(self.file, name)(*arguments)
                seen.append(path.read_bytes())
                return result

            return call

    monkeypatch.setattr(metrics, "file", Watched(metrics.file))
    metrics.amend(bpb=2.5)
    assert len(seen) >= 3
    for content in seen:
        path.write_bytes(content)
        assert Metrics(path, "base", 3).last["step"] == 3


@given(keep=st.integers(0, 10_000), amended=st.sets(st.integers(1, 9)), last=st.integers(0, 9))
def test_any_truncation_then_resume_yields_one_line_a_step(
    keep: int, amended: set[int], last: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("metrics") / "metrics.jsonl"
    metrics = Metrics(path, "base", 0)
    for step in range(1, 10):
        metrics.write(entry(step))
        if step in amended:
            metrics.amend(bpb=1.5)
    metrics.close()
    content = path.read_bytes()[:keep]
    path.write_bytes(content)
    start = min(last, content.count(b"\n"))  # a checkpoint is saved only after its line is durable
    write(path, range(start + 1, 12))
    assert [line["step"] for line in lines(path)] == list(range(1, 12))


def test_a_full_disk_is_said(path: Path) -> None:
    metrics = Metrics(path, "base", 0)
    metrics.close()
    metrics.file = Path("/dev/full").open("r+b")  # noqa: SIM115 (metrics closes it)
    with pytest.raises(PreflightError, match="disk is full"):
        metrics.write(entry(1))
    metrics.close()  # says nothing more


def test_a_reader_takes_whole_lines_with_a_finite_loss(path: Path) -> None:
    assert read_metrics(path) == []
    write(path, range(1, 4))
    with path.open("a") as file:
        file.write(json.dumps(entry(4) | {"loss": None}) + "\n" + json.dumps(entry(5) | {"stage": "other"}) + "\n")
        file.write(json.dumps(entry(6) | {"mfu": float("nan")}) + "\n" + '{"stage": "base", "st')
    assert read_metrics(path) == [*map(entry, range(1, 4)), entry(6)]
