"""What the page shows of a running training: the curve that belongs to its stage."""

import json
import time
from pathlib import Path
from typing import Any

import pytest

from nanochat.chat.training import CURVE_POINTS, TrainingView
from nanochat.train.heartbeat import heartbeat

STEPS = {"base": 700, "sft": 2, "rl": 3}


def line(stage: str, step: int, **more: Any) -> dict[str, Any]:
    return {"stage": stage, "step": step, "loss": 5.0 / step, "tokens_per_second": 100.0, "step_seconds": 2.0} | more


@pytest.mark.parametrize("stage", ["base", "sft", "rl"])
def test_the_curve_of_a_stage(stage: str, tmp_path: Path) -> None:
    """Losses of pretraining and fine-tuning together; of reinforcement learning the rewards, for its loss says nothing."""
    lines = [line("base", step) for step in range(1, 701)]
    lines += [line("sft", step) for step in (1, 2)] * (stage != "base")
    lines += [line("rl", step, loss=-0.01, reward=step / 10) for step in (1, 2)] * (stage == "rl")
    (tmp_path / "run").mkdir()
    view = TrainingView(tmp_path)
    assert view() is None
    with heartbeat(tmp_path / "run", {"steps": STEPS, "trial": False}):
        (tmp_path / "run" / "metrics.jsonl").write_text("".join(json.dumps(one) + "\n" for one in lines))
        end = time.monotonic() + 20
        while (shown := view()) is None and time.monotonic() < end:  # a thread writes the sign of life
            time.sleep(0.01)
    assert shown and (shown["stage"], shown["step"], shown["steps"]) == (stage, lines[-1]["step"], STEPS[stage])
    curve = shown["curve"]
    if stage == "rl":
        assert shown["measure"] == "reward" and shown["value"] == 0.2
        assert curve == [{"stage": "rl", "step": 1, "value": 0.1}, {"stage": "rl", "step": 2, "value": 0.2}]
    else:
        assert shown["measure"] == "loss" and shown["value"] == lines[-1]["loss"] == curve[-1]["value"]
        assert 200 < len(curve) <= CURVE_POINTS and {point["stage"] for point in curve} == {"base", stage}
