"""A Tesla T4 on the null GPU: it has no bfloat16, so whole runs are in float16 with a scaled loss, as the plan says."""

from pathlib import Path
from typing import Any

import pytest

from nanochat.planning.memory import RESERVED
from tests.nullgpu.machine import steps, train
from tests.nullgpu.settings import other
from tests.nullgpu.test_train import SHAPE, steady


@pytest.mark.long
def test_a_run_on_a_t4(texts: list[str], tmp_path: Path) -> None:
    """Pretraining and fine-tuning, eager: a step copies back as much as in any other precision, and never waits more often."""
    options = [f"--{name}={value}" for name, value in SHAPE.items()]
    run = train("t4", tmp_path, "train", "--profile=auto", "--run=null", *texts, *options, "-v")
    assert run.code == 0, run.text
    assert "profile t4" in run.text or "plan: t4 on Tesla T4" in run.text
    assert "auto: dtype = float16: no bfloat16 units in Tesla T4; the loss is scaled" in run.text
    base, sft = steady(run, "base"), steady(run, "sft")
    assert base["downloads"] == sft["downloads"] == 1 and base["downloaded_bytes"] == 24
    assert base["stream_syncs"] <= 2 and base["products"] == sft["products"] > 100
    lines = (tmp_path / "base" / "runs" / "null" / "metrics.jsonl").read_text().splitlines()
    assert all('"loss_scale": 8192' in line for line in lines), "sixteen times the 512 tokens of a step"


def planned(request: dict[str, Any]) -> None:
    found = steps("t4", timeout=3000, **request)
    assert found["config"]["dtype"] == "float16"
    assert found["plan"]["total"] == pytest.approx(found["peak"], rel=0.03)
    assert found["peak"] <= found["reserved"] <= RESERVED * found["peak"] + (64 << 20)


@pytest.mark.long
def test_the_plans_memory_in_float16() -> None:
    """Activations of two bytes, tables and their moments of four."""
    planned(other(6, 8, 1024, False))


@pytest.mark.slow
@pytest.mark.parametrize("request_", [{"profile": "t4"}, other(8, 8, 1024, True), other(12, 1, 128, False)], ids=["t4", "d8", "update"])
def test_the_plans_memory_in_float16_at_more_settings(request_: dict[str, Any]) -> None:
    planned(request_)
