"""What the page shows of a running training run, and the heartbeat that tells whether it runs."""

import json
import os
import time
from pathlib import Path
from typing import Any

from nanochat.chat.training import TrainingView
from nanochat.runs.heartbeat import HEARTBEAT, heartbeat, read_heartbeat


def line(stage: str, step: int, **more: Any) -> str:
    return (
        json.dumps({"stage": stage, "step": step, "loss": 5.0 - step / 10, "tokens_per_second": 100.0, "step_seconds": 2.0} | more) + "\n"
    )


def test_the_training_view_follows_a_run(tmp_path: Path) -> None:
    view, run = TrainingView(tmp_path), tmp_path / "mine"
    assert view() is None
    run.mkdir()
    with heartbeat(run, lambda: {"device": "cpu", "steps": {"base": 10, "sft": 4}, "trial": True}):
        while not (run / HEARTBEAT).exists():
            time.sleep(0.01)
        assert view() == {"run": "mine", "stage": "base", "step": 0, "steps": 10, "measure": "loss", "value": None, "bpb": None} | {
            "tokens_per_second": None, "seconds_left": None, "alive": True, "trial": True, "curve": [], "samples": []
        }  # fmt: skip
        metrics = run / "metrics.jsonl"
        metrics.write_text(line("base", 1) + line("base", 2))
        state = view() or {}
        assert (state["step"], state["value"], state["seconds_left"]) == (2, 4.8, 2 * (8 + 4))
        with metrics.open("a") as file:
            file.write(line("base", 3)[:20])  # half a line is not there yet
        assert (view() or {})["step"] == 2
        metrics.write_text(line("base", 1) + line("base", 2) + line("base", 3, bpb=1.5) + line("base", 4))
        state = view() or {}
        assert (state["step"], state["bpb"], [point["step"] for point in state["curve"]]) == (4, 1.5, [1, 2, 3, 4])
        metrics.write_text(line("base", 1))  # a resumed run cuts what lies after its checkpoint
        assert (view() or {})["step"] == 1
        metrics.write_text("".join(line("base", i + 1) for i in range(2000)) + line("sft", 1))
        state = view() or {}
        assert (state["stage"], state["steps"], state["seconds_left"]) == ("sft", 4, 6)
        assert len(state["curve"]) <= 300
        assert state["curve"][-1] == {"stage": "sft", "step": 1, "value": 4.9}
        with metrics.open("a") as file:  # the loss of reinforcement learning only says which way it goes
            file.write("".join(line("rl", step, reward=step / 10) for step in (1, 2)))
        state = view() or {}
        assert (state["stage"], state["measure"], state["value"]) == ("rl", "reward", 0.2)
        assert state["curve"] == [{"stage": "rl", "step": 1, "value": 0.1}, {"stage": "rl", "step": 2, "value": 0.2}]
        (run / "samples.jsonl").write_text(
            "".join(json.dumps({"stage": "base", "step": i, "prompt": "a", "text": "b"}) + "\n" for i in range(9))
        )
        assert [sample["step"] for sample in (view() or {})["samples"]] == [3, 4, 5, 6, 7, 8]
    assert view() is None


def test_a_killed_trainings_heartbeat_grows_old(tmp_path: Path) -> None:
    about = {"device": "cuda", "steps": {"base": 3}, "trial": False, "pid": os.getpid(), "time": time.time() - 60}
    (tmp_path / HEARTBEAT).write_text(json.dumps(about))
    assert (read_heartbeat(tmp_path) or {})["alive"] is False
    (tmp_path / HEARTBEAT).write_text("{")
    assert read_heartbeat(tmp_path) is None
