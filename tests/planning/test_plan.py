"""The plans of the shipped profiles are what their comments say, and say so where they do not fit."""

import subprocess
import sys
from pathlib import Path

import pytest

from nanochat.config import PROFILE_NAMES, Config, build_config
from nanochat.data.shards import SHARD_BYTES
from nanochat.hardware.gpu_specs import GIB
from nanochat.hardware.machine import Hardware
from nanochat.planning import plan, rules
from nanochat.planning.describe import describe
from nanochat.planning.plan import make_plan
from nanochat.planning.rules import resolve
from tests.planning.machines import CPU, GPU, card


@pytest.fixture(autouse=True)
def nothing_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rules, "product_gain", lambda *_: 1.0)


def test_a_cards_run_keeps_its_length_on_a_cpu() -> None:
    assert resolve(build_config("rtx4090"), hardware=CPU).num_iterations == resolve(build_config("rtx4090"), hardware=GPU).num_iterations
    assert make_plan(build_config("rtx4090"), CPU).seconds > 30 * 86400


def test_the_plans_of_the_shipped_profiles(base: Path) -> None:
    plans = {name: make_plan(build_config(name), card(build_config(name))) for name in PROFILE_NAMES}
    assert all(each.fits for each in plans.values())
    assert 8 < plans["rtx4050"].seconds / 3600 < 10
    assert plans["rtx4050"].memory_bytes["total"] * 1.15 < 5.2e9
    assert 18 < plans["rtx4090"].seconds / 3600 < 24
    assert plans["rtx4090"].memory_bytes["total"] * 1.15 < 22.5e9
    assert plans["h100x8"].parameters == pytest.approx(2819e6, rel=1e-3)
    assert plans["h100x8"].max_device_batch_size == 16
    assert plans["t4"].config["dtype"] == "float16" and 5 < plans["t4"].seconds / 3600 < 9, "within one session of Colab or Kaggle"
    assert plans["t4"].memory_bytes["total"] * 1.15 < 13.9e9
    speedrun = plans["speedrun"]
    assert (speedrun.config["depth"], speedrun.config["target_param_data_ratio"], speedrun.cards) == (24, 8, 8)
    assert speedrun.parameters == pytest.approx(1384e6, rel=1e-3) and speedrun.tokens == pytest.approx(5.84e9, rel=1e-2)
    assert 2 < speedrun.seconds / 3600 < 5 and 50 < speedrun.cost < 120  # type: ignore[operator]
    assert min(build_config(name).max_seq_len for name in ("t4", "rtx4050", "rtx4090")) >= 1024
    assert plans["cpu"].download_bytes == 0
    for each in plans.values():
        assert each.max_device_batch_size >= each.config["device_batch_size"]
        assert max(size for part, size in each.memory_bytes.items() if part not in ("total", "usable")) < each.memory_bytes["total"]
        assert "usable: fits" in describe(each)


def test_a_plan_that_does_not_fit_says_so_and_what_would(base: Path) -> None:
    small = Hardware(name="a small card", cuda=True, memory=6 * GIB, usable=int(5.2e9), flops=1e13, bf16=True)
    big = make_plan(Config(depth=8, device_batch_size=32), small)
    assert not big.fits
    assert 1 <= big.max_device_batch_size < 32
    assert make_plan(Config(depth=8, device_batch_size=big.max_device_batch_size), small).fits
    assert make_plan(Config(depth=20), small).max_device_batch_size == 0
    assert "DOES NOT FIT" in describe(big)
    two = make_plan(Config(depth=4, device_batch_size=1, nproc_per_node=2), small)
    assert not two.fits
    assert "too few GPUs" in describe(two)


def test_shards_that_lie_there_are_not_downloaded_again(base: Path) -> None:
    config = build_config("rtx4050", True)
    before = make_plan(config, GPU).download_bytes
    folder = base / "data" / "climbmix"
    folder.mkdir(parents=True)
    (folder / "shard_00000.parquet").touch()
    assert before - make_plan(config, GPU).download_bytes == SHARD_BYTES


def test_a_plan_needs_no_torch() -> None:
    code = (
        "import sys; from nanochat.config import build_config; from nanochat.hardware import machine\n"
        "from nanochat.planning import plan; from nanochat.planning.describe import describe\n"
        "machine.has_gpu_driver = lambda: False\n"
        "print(describe(plan.make_plan(build_config('rtx4050')))); assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(plan.__file__).parents[2], check=False)
    assert done.returncode == 0, done.stderr
    assert "RTX 4050" in done.stdout
