"""Reinforcement learning on the user's own problems, in a run of its own and in one that begins with another one's model."""

import json
from pathlib import Path
from typing import Any

import pytest

from nanochat.cli.options import run_config
from nanochat.errors import DataError, UsageError
from nanochat.pipeline import train as run
from nanochat.runs import record as runs
from tests.tiny import WORDS, config, losses

pytestmark = pytest.mark.long
RL = {"rl_iterations": 2, "rl_examples_per_step": 2, "rl_num_samples": 4, "rl_max_new_tokens": 4, "rl_eval_examples": 5}
STAGES = ("base", "sft", "rl")


def problems(path: Path, answers: int = 2) -> Path:
    rows = [{"question": f"{word}?", "answer": str(number)} for number, word in enumerate(WORDS[: 4 * answers])]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_a_fault_is_found_before_the_first_step(base: Path, files: dict[str, Path], tmp_path: Path) -> None:
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"question": "1 + 1?", "answer": "2"}\n{"question": "2 + 2?"}\n')
    asked: dict[str, Any] = {"chat_data": str(files["chats"]), "sft_iterations": 2, "problems": str(bad)}
    with pytest.raises(DataError, match=f'{bad}:2 has no field "answer"'):
        run.train(config(files["text"], **asked, **RL), STAGES)
    assert not (base / "runs/tiny").exists() and not list((base / "tokenizer").glob("*"))


def test_they_are_learned_from_and_belong_to_the_run(
    base: Path,
    files: dict[str, Path],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    path = problems(tmp_path / "p.jsonl")
    asked: dict[str, Any] = {"chat_data": str(files["chats"]), "sft_iterations": 2, "problems": str(path)}
    assert run.train(config(files["text"], **asked, **RL), STAGES) == 0
    assert "problems: 8 in" in capfd.readouterr().err
    assert [line[:2] for line in losses(base)[-2:]] == [("rl", 1), ("rl", 2)]
    assert runs.open_model("tiny").checkpoint.meta["stage"] == "rl"
    problems(path, 3)
    (base / "runs/tiny/report.json").unlink()
    with pytest.raises(UsageError, match="the problems file has changed"):
        run.train(config(files["text"], **asked, **RL), STAGES)

    options = [f"--{name}={value}" for name, value in RL.items()]
    assert run.train(run_config("auto", False, ["--from=tiny", "--run=new", f"--problems={path}", *options], "rl"), ("rl",)) == 0
    record = runs.read_record("new")
    assert record is not None and record.config.from_run == "tiny:sft:2" and record.first_row == 0 and record.config.sft_iterations == 0
    assert [line[:2] for line in losses(base, "new")] == [("rl", 1), ("rl", 2)]
    again = ["--from=tiny:rl", "--run=more", f"--problems={path}", *options]
    assert run.train(run_config("auto", False, again, "rl"), ("rl",)) == 0
    more = runs.read_record("more")
    assert more is not None and more.first_row == 0  # the file had other problems then
    assert run.train(run_config("auto", False, ["--from=new:rl", "--run=last", *options], "rl"), ("rl",)) == 0
    last = runs.read_record("last")
    assert last is not None and last.first_row == 4 and last.config.problems == str(path)  # the next problems of the same file
