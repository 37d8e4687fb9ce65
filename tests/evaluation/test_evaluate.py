"""`eval` on a trained run: all parts, what is not there, and that nothing of it can cost the run."""

import json
from pathlib import Path

import pytest
import torch

from nanochat import paths
from nanochat.distributed.ranks import single
from nanochat.errors import DataError, UsageError
from nanochat.evaluation import evaluate as evaluation
from nanochat.evaluation import scorer
from nanochat.evaluation.results import read_results
from nanochat.pipeline.train import train
from nanochat.report.collect import write_report
from nanochat.runs.storage import list_storage, prunable, prune
from tests import tiny
from tests.evaluation.bundle import write_bundle, write_chat_sets

pytestmark = pytest.mark.long


def trained(base: Path, tmp_path: Path, **changes: object) -> Path:
    text, talks = tiny.sentences(tmp_path / "text.txt"), tiny.chats(tmp_path / "talks.jsonl")
    assert train(tiny.config(text, chat_data=str(talks), sft_iterations=2, **changes)) == 0
    return paths.run_dir("tiny")


def test_a_run_asks_at_its_end_and_eval_asks_again(base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_bundle(base / "eval_bundle")
    write_chat_sets()
    folder = trained(base, tmp_path, core_metric_max_per_task=6)
    kept = json.loads((folder / "evaluation.json").read_text())
    assert kept["core"]["stage"] == "base" and kept["chat"]["stage"] == "sft"
    assert {task["questions"] for task in kept["core"]["tasks"].values()} == {6}
    assert list(kept["chat"]["tasks"]) == ["ARC-Easy", "ARC-Challenge", "MMLU", "GSM8K"]
    for name in ("report.md", "report.html"):
        text = (folder / name).read_text()
        assert "MMLU" in text and "0.2565" in text and "dev/estimate" in text

    capsys.readouterr()
    found = evaluation.evaluate("tiny", ("bpb", "core", "chat"), None, 6, "cpu")
    assert found is not None and found["core"] == kept["core"] and found["chat"] == kept["chat"]
    assert "18 of 18 questions are in the cache" in capsys.readouterr().err  # 3 tasks of 6
    measured = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    bpb = [line["bpb"] for line in measured if line["stage"] == "base" and "bpb" in line][-1]
    assert found["bpb"]["validation"] == pytest.approx(bpb, rel=1e-4) and 0 < found["bpb"]["train"] < 10
    assert evaluation.evaluate_part("tiny", "core", 6, single(), again=True) == kept["core"]
    assert "before" not in capsys.readouterr().err
    evaluation.print_results(found)
    assert "CORE (base step 6" in capsys.readouterr().out
    assert set(read_results(folder)) == {"summary", "bpb", "core", "chat"}


def test_a_text_that_was_pruned_is_made_again(base: Path, tmp_path: Path) -> None:
    embedded = tiny.config(tmp_path, data="", dataset="embedded", vocab_size=300, num_iterations=2, sft_iterations=0, eval_tokens=1024)
    assert train(embedded) == 0
    before = evaluation.evaluate("tiny", ("bpb",), None, -1, "cpu")
    prune(prunable(list_storage(), downloads=True))
    assert not paths.dataset_dir("embedded").exists()
    assert before is not None and evaluation.evaluate("tiny", ("bpb",), None, -1, "cpu") == before


def test_no_evaluation_costs_a_run(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Memory for not even one text, and an unreadable set: the run is finished all the same."""
    write_bundle(base / "eval_bundle")
    write_chat_sets()
    (base / "data/tasks/mmlu-test/test-00000-of-00001.parquet").write_bytes(b"broken")

    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("injected")

    monkeypatch.setattr(scorer, "score_batch", full)
    folder = trained(base, tmp_path, core_metric_max_per_task=6)
    said = capsys.readouterr().err
    assert "warning: no core scores: out of memory reading texts, at batch size 1" in said
    assert "warning: no chat scores: the files in" in said
    assert (folder / "report.json").exists() and set(read_results(folder)) == {"summary"}


def test_what_is_not_there_is_said(base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = trained(base, tmp_path, core_metric_max_per_task=6)
    said = capsys.readouterr().err
    assert said.count("skipped: core tasks, because there is no") == said.count("skipped: chat tasks, because there is no") == 1
    found = evaluation.evaluate(None, (), None, 6, "cpu")
    assert found is not None and set(found) == {"run", "bpb"}
    for part in ("core", "chat"):
        with pytest.raises(DataError, match=f"no {part} score: there is no"):
            evaluation.evaluate("tiny", (part,), None, 6, "cpu")
    with pytest.raises(UsageError, match="--only humaneval is unknown"):
        evaluation.evaluate("tiny", ("humaneval",), None, 6, "cpu")
    (folder / "config.toml").unlink()  # as of a run that was imported
    with pytest.raises(DataError, match="no questions to evaluate"):
        evaluation.evaluate("tiny", (), None, 6, "cpu")
    report = write_report(folder)
    assert report["tasks"] == {"bpb": found["bpb"]} and report["finished"]
