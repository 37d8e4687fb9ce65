"""The results file of a run: parts that are written one by one, and what older runs kept in scores.json."""

import json
from pathlib import Path

import pytest

from nanochat.evaluation.results import OLD_SUMMARY, RESULTS, SUMMARY, forget_summary, read_results, write_part


def test_parts_are_written_one_by_one(tmp_path: Path) -> None:
    assert read_results(tmp_path) == {}
    write_part(tmp_path, "core", {"score": 0.1})
    write_part(tmp_path, SUMMARY, {"bpb": 1.5})
    write_part(tmp_path, "core", {"score": 0.2})
    assert read_results(tmp_path) == {"core": {"score": 0.2}, SUMMARY: {"bpb": 1.5}}
    assert json.loads((tmp_path / RESULTS).read_text()) == read_results(tmp_path)


def test_a_run_that_goes_on_has_no_summary(tmp_path: Path) -> None:
    forget_summary(tmp_path)
    write_part(tmp_path, SUMMARY, {"bpb": 1.5})
    forget_summary(tmp_path)
    assert list(tmp_path.iterdir()) == []
    write_part(tmp_path, SUMMARY, {"bpb": 1.5})
    write_part(tmp_path, "chat", {"score": 0.5})
    forget_summary(tmp_path)
    assert read_results(tmp_path) == {"chat": {"score": 0.5}}


def test_an_older_runs_summary_is_read(tmp_path: Path) -> None:
    (tmp_path / OLD_SUMMARY).write_text('{"bpb": 1.5}')
    (tmp_path / RESULTS).write_text('{"core": {"score": 0.1}}')
    assert read_results(tmp_path) == {"core": {"score": 0.1}, SUMMARY: {"bpb": 1.5}}
    write_part(tmp_path, "bpb", {"train": 1.0})
    assert read_results(tmp_path).keys() == {"core", "bpb", SUMMARY}
    forget_summary(tmp_path)
    assert read_results(tmp_path).keys() == {"core", "bpb"}


@pytest.mark.parametrize("text", ["", '{"summary": ', "[1]", "null"])
def test_a_damaged_file_is_none(text: str, tmp_path: Path) -> None:
    for name in (RESULTS, OLD_SUMMARY):
        (tmp_path / name).write_text(text)
    assert read_results(tmp_path) == {}
    forget_summary(tmp_path)
    write_part(tmp_path, "chat", {"score": 0.5})
    assert read_results(tmp_path) == {"chat": {"score": 0.5}}
