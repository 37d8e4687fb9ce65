"""Two processes, a kill in the middle, a fault on one rank: the same scores, or the fault.

Run as a script, this file is the worker of its own tests.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nanochat.distributed.ranks import join, launch, single
from nanochat.errors import NanochatError
from nanochat.evaluation import runner
from nanochat.evaluation.core import CoreTask, read_core
from nanochat.evaluation.runner import AnswerCache, evaluate_tasks
from nanochat.evaluation.scorer import Scorer
from tests.evaluation.bundle import model, tokenizer, write_bundle

ROOT = Path(__file__).resolve().parents[2]


def worker(bundle: Path, folder: Path, seconds: float) -> None:
    """Ask the bundle's tasks, waiting `seconds` before each group; rank 0 writes what came out."""
    tok = tokenizer()
    grade = CoreTask.grade

    def slowly(self, scorer, indices):  # type: ignore[no-untyped-def]
        time.sleep(seconds)
        return grade(self, scorer, indices)

    CoreTask.grade = slowly  # type: ignore[method-assign]
    runner.SAVE_SECONDS = 0.0  # keep each group at once
    with join("cpu") as here:
        found = evaluate_tasks("core", read_core(bundle), Scorer(model(tok.vocab_size), tok), here, folder, "a model")
        if here.main:
            (folder / "found.json").write_text(json.dumps(found))


def alone(bundle: Path, folder: Path) -> dict:
    tok = tokenizer()
    return evaluate_tasks("core", read_core(bundle), Scorer(model(tok.vocab_size), tok), single(), folder, "a model")


@pytest.mark.long
def test_two_ranks_score_as_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    bundle, folder = write_bundle(tmp_path / "bundle", 200), tmp_path / "two"
    folder.mkdir()
    assert launch([__file__, str(bundle), str(folder), "0"], processes=2, restarts=0) == 0
    assert json.loads((folder / "found.json").read_text()) == alone(bundle, tmp_path / "one")
    answered = [json.loads((folder / f"core_{rank:05d}.json").read_text()) for rank in range(2)]
    counts = [sum(map(len, found.values())) for found in answered]
    assert sum(counts) == 600 and min(counts) > 200


@pytest.mark.long
def test_what_is_killed_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    bundle, folder = write_bundle(tmp_path / "bundle", 200), tmp_path / "killed"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen([sys.executable, __file__, str(bundle), str(folder), "0.3"], env=environment)
    path, count = folder / "core_00000.json", 0
    deadline = time.monotonic() + 60
    while count < 64 and time.monotonic() < deadline:
        time.sleep(0.02)
        if path.exists():
            count = sum(map(len, json.loads(path.read_text()).values()))
    process.send_signal(signal.SIGKILL)
    process.wait()
    left = sum(map(len, json.loads(path.read_text()).values()))
    assert 64 <= left < 600

    asked: list[int] = []
    grade = CoreTask.grade
    monkeypatch.setattr(CoreTask, "grade", lambda self, scorer, indices: asked.extend(indices) or grade(self, scorer, indices))
    found = alone(bundle, folder)
    assert f"{left} of 600 questions are in the cache" in capsys.readouterr().err
    assert len(asked) == 600 - left
    assert found == alone(bundle, tmp_path / "whole")
    asked.clear()
    assert alone(bundle, folder) == found and asked == []


def test_a_fault_keeps_what_was_answered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle, calls = write_bundle(tmp_path / "bundle"), []
    grade = CoreTask.grade

    def failing(self, scorer, indices):  # type: ignore[no-untyped-def]
        calls.append(indices)
        if len(calls) == 2:
            raise RuntimeError("injected")
        return grade(self, scorer, indices)

    monkeypatch.setattr(CoreTask, "grade", failing)
    with pytest.raises(NanochatError, match="RuntimeError: injected"):
        alone(bundle, tmp_path / "answers")
    (found,) = json.loads((tmp_path / "answers" / "core_00000.json").read_text()).values()
    assert len(found) == 32
    assert alone(bundle, tmp_path / "answers") == alone(bundle, tmp_path / "other")


def test_damaged_answers_are_asked_again(tmp_path: Path) -> None:
    (tmp_path / "core_00000.json").write_text('{"a": {"0": tr')
    (tmp_path / "core_00001.json").write_text('{"a": {"1": true}}')
    cache = AnswerCache(tmp_path, "core", single())
    assert cache.known == {"a": {1: True}}


def test_another_model_is_asked_anew(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = write_bundle(tmp_path / "bundle")
    alone(bundle, tmp_path)
    capsys.readouterr()
    tok = tokenizer()
    evaluate_tasks("core", read_core(bundle), Scorer(model(tok.vocab_size), tok), single(), tmp_path, "another")
    assert "before" not in capsys.readouterr().err


if __name__ == "__main__":
    worker(Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3]))
