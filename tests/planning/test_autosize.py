"""`--hours`: what is chosen takes the time that was given, fits, and grows with it."""

import time
from pathlib import Path

import pytest

from nanochat.config import Config, build_config
from nanochat.errors import PreflightError, UsageError
from nanochat.hardware.gpu_specs import require_spec
from nanochat.hardware.machine import Hardware
from nanochat.model import scaling
from nanochat.planning import autosize as budget
from nanochat.planning import plan as planning
from nanochat.planning.autosize import decide, fit
from nanochat.planning.calibrate import Measured
from nanochat.planning.hardware import gpu_hardware
from nanochat.planning.plan import Plan
from nanochat.runs import record as runs
from nanochat.train.schedule import Pacer

CPU = Hardware(name="a CPU", cuda=False, memory=16 << 30, usable=12 << 30, flops=30e9, here=False)
TEXT = 4 * 10**8


def user_text(hours: float, **changes: object) -> Config:
    rules = {"data": "texts", "vocab_size": -1, "num_iterations": -1, "sft_iterations": 0}
    return build_config("cpu", overrides=rules | {"hours": hours} | changes)


@pytest.mark.parametrize("hours", [0.1, 0.2, 1.0, 8.0])
def test_a_cpu_uses_its_time(base: Path, hours: float) -> None:
    resolved, plan = decide(user_text(hours), CPU, text_bytes=TEXT)
    assert plan.seconds == pytest.approx(3600 * hours * budget.RESERVE, rel=0.02)
    assert plan.config == resolved.config.to_dict() and resolved.config.hours == hours
    assert any(rule.startswith("depth = ") for rule in resolved.rules)


@pytest.mark.parametrize("card", ["4050", "4090", "H100"])
def test_a_card_uses_its_time_and_memory(base: Path, card: str) -> None:
    before: Plan | None = None
    for hours in (1.0, 8.0, 24.0):
        config = build_config("rtx4090", overrides={"hours": hours, "device": "cuda"})
        _, plan = decide(config, gpu_hardware(require_spec(card), 1))
        assert plan.fits and plan.seconds == pytest.approx(3600 * hours * budget.RESERVE, rel=0.05)
        ratio = plan.tokens / scaling.scaling_parameters(scaling.gpt_config(Config(**plan.config)))
        assert 5 < ratio < 22 or plan.config["depth"] in (budget.DEPTHS[0], budget.DEPTHS[-1]), (hours, ratio)
        if before:
            assert plan.config["depth"] >= before.config["depth"] and plan.tokens > before.tokens
        before = plan


def test_what_was_measured_decides(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that turns out four times as slow gets a smaller model, and still ends in time."""
    rough = fit(user_text(1.0), CPU, text_bytes=TEXT).config

    def slow(config: Config, plan: Plan) -> Measured:
        return Measured(4 * config.device_batch_size * config.max_seq_len / plan.tokens_per_second, 0.01, 0)

    monkeypatch.setattr(budget, "measured_steps", slow)
    resolved = fit(user_text(1.0), CPU, text_bytes=TEXT).config
    assert resolved.num_iterations * resolved.depth < rough.num_iterations * rough.depth


def test_the_time_that_has_gone_counts(base: Path) -> None:
    late = fit(user_text(1.0), CPU, text_bytes=TEXT, spent=1800).config
    half = fit(user_text(0.5), CPU, text_bytes=TEXT).config
    assert late.replace(hours=0.5) == half


@pytest.mark.parametrize(("slower", "steps"), [(1.0, 1000), (1.01, 1000), (0.5, 1650), (1.3, 850), (10.0, 512), (0.01, 2950)])
def test_steps_that_took_another_time_than_planned(slower: float, steps: int) -> None:
    """A thousand steps of 0.1 s, and an evaluation of ten, in 101 s and what the end takes; 350 are done."""
    config = user_text(0.1, num_iterations=1000, total_batch_size=1024, eval_every=-1, eval_tokens=30 * 1024)
    pace = 0.1 - planning.LOOP_SECONDS
    left = (650 * 0.1 + 1 + planning.END_SECONDS) / budget.RETIMED_RESERVE
    found = budget.retimed(config, 350, slower * (pace + planning.LOOP_SECONDS) - planning.LOOP_SECONDS, left)
    assert found == pytest.approx(steps, rel=0.01)


def test_the_pacer_writes_its_steps_into_the_record(base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Once where they differ; what a training run's heartbeat tells follows, and a mirror's older record is of the same run."""
    config = user_text(0.1, num_iterations=1000, total_batch_size=1024, eval_every=-1, eval_tokens=1024)
    begun = runs.Record(config, "text", ("shard",), "tokenizer")
    begun.write()
    pacer: Pacer = budget.HoursPacer(begun, time.monotonic() - 240)
    steps = pacer.steps(350, 0.1)
    assert steps > 1000 and f"{steps:,} pretraining steps instead of 1,000" in capsys.readouterr().err
    written = runs.read_record(config.run)
    assert written and written.config == config.replace(num_iterations=steps) and written.shards == begun.shards
    assert runs.current_steps(config)["base"] == steps
    assert written.paced == {"num_iterations": steps} != begun.paced
    assert pacer.steps(351, 0.1) == steps and capsys.readouterr().err == ""


def test_a_run_without_hours_has_no_paced_settings(base: Path) -> None:
    record = runs.Record(build_config("cpu"), "text", ("shard",), "tokenizer")
    assert record.paced == {} and runs.current_steps(record.config) == record.config.steps


def test_too_short(base: Path) -> None:
    with pytest.raises(PreflightError, match="too short"):
        fit(user_text(0.003), CPU, text_bytes=TEXT)
    with pytest.raises(UsageError, match="hours"):
        user_text(-1)


def test_the_same_command_goes_on_with_what_was_chosen(base: Path) -> None:
    config = user_text(0.2)
    begun = fit(config, CPU, text_bytes=TEXT).config
    record = runs.Record(begun, "text", ("shard",), "tokenizer")
    assert runs.inherit(budget.as_begun(config, begun), record) == begun
    with pytest.raises(UsageError, match="hours was"):
        runs.inherit(budget.as_begun(user_text(0.3), begun), record)
