"""`--hours`: what is chosen takes the time that was given, fits, and grows with it."""

from collections.abc import Callable
from pathlib import Path

import pytest

from nanochat.config import PROFILE_NAMES, Config, build_config
from nanochat.errors import PreflightError, UsageError
from nanochat.hardware.gpu_specs import require_spec
from nanochat.hardware.machine import Hardware
from nanochat.model import scaling
from nanochat.planning import autosize as budget
from nanochat.planning.autosize import decide, fit
from nanochat.planning.calibrate import Measured
from nanochat.planning.hardware import gpu_hardware
from nanochat.planning.plan import Plan
from nanochat.runs import record as runs
from nanochat.train.schedule import Pacer
from nanochat.train.timeleft import EVALUATION, FINISH, RunClock, stage_works

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


def test_a_new_model_with_windows_is_refused_on_a_gpu(base: Path) -> None:
    """Where they save nothing. A run that has begun with them, and one that begins from such a model, go on; a CPU has them."""
    card = gpu_hardware(require_spec("4090"), 1)
    windows = Config(depth=4, window_pattern="SSSL", num_iterations=200)
    with pytest.raises(UsageError, match="--window_pattern=SSSL saves nothing on a GPU") as caught:
        decide(windows, card)
    assert "--window_pattern=L" in caught.value.hint
    assert decide(windows, card, begun=True)[1].config["window_pattern"] == "SSSL"
    assert decide(windows.replace(from_run="older"), card)[1].fits
    assert decide(windows.replace(device="cpu", max_seq_len=256, device_batch_size=1), CPU)[1].config["window_pattern"] == "SSSL"
    assert decide(windows.replace(max_seq_len=128), card)[1].fits, "a window is at least 128 tokens"
    assert decide(build_config("cpu", overrides={"device": "cuda"}), card)[1].fits, "the quickstart on a GPU"


@pytest.mark.parametrize("name", [name for name in PROFILE_NAMES if name != "cpu"])
def test_no_profile_of_a_gpu_has_windows(name: str) -> None:
    assert {build_config(name, trial).window_pattern for trial in (False, True)} == {"L"}


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


@pytest.mark.parametrize(
    ("over", "steps"),
    [(0.0, 1000), (0.9, 1000), (20.0, 1200), (-20.0, 800), (-1000.0, 512), (1000.0, 11000)],
)
def test_steps_that_end_in_time(over: float, steps: int) -> None:
    """Of a thousand steps of 0.1 s, 350 are done, and the run would end so many seconds early."""
    assert budget.retimed(350, 1000, over, 0.1) == steps


class Machine:
    """A machine whose steps take `seconds(at)`, and a run on it by a plan of `planned` seconds each; its own clock."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.now = 5000.0
        monkeypatch.setattr("nanochat.planning.autosize.time.monotonic", lambda: self.now)
        monkeypatch.setattr("nanochat.train.timeleft.awake.monotonic", lambda: self.now)

    def run(self, config: Config, seconds: Callable[[float], float], planned: float) -> float:
        """Train base and sft as the trainer does, and evaluate; returns the run's seconds."""
        began, record = self.now, runs.Record(config, "text", ("shard",), "tokenizer")
        record.write()
        self.now += 10
        clock = RunClock(stage_works(config), config.total_batch_size / planned, 20_000.0, 4.0)
        pacer: Pacer = budget.HoursPacer(record, began, clock)
        current = config.steps
        for stage in ("base", "sft"):
            done, steps = 0, current[stage]
            clock.begin(stage, 0, steps)
            review = False
            while done < steps:
                if review:
                    steps = pacer.steps(stage, done, steps)
                review = pacer.due()
                self.now += seconds(self.now - began)
                done += 1
                clock.step(done, steps)
            config = config.replace(**pacer.after(stage, steps))
            current = config.steps
            self.now += seconds(self.now - began) * 5
            clock.event(EVALUATION)
        clock.begin(FINISH)
        self.now += 20_000 / 1024 * seconds(self.now - began) + 4
        return self.now - began


@pytest.mark.parametrize("slower", [3.0, 30.0])
@pytest.mark.parametrize(("begin", "end"), [(0, 120), (120, 240), (240, 360), (300, 330), (0, 360), (400, 400)])
def test_hours_keep_their_word(begin: float, end: float, slower: float, base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Load that comes and goes, in any part of the time, also where steps take thirty times as long."""
    config = user_text(0.1, num_iterations=2900, sft_iterations=360, total_batch_size=1024, eval_every=500, eval_tokens=8192)
    took = Machine(monkeypatch).run(config, lambda at: 0.1 * (slower if begin <= at < end else 1.0), planned=0.1)
    assert took == pytest.approx(360, rel=0.1)


def test_the_pacer_writes_its_steps_into_the_record(
    base: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a training run's heartbeat tells follows, and a mirror's older record is of the same run; a change is told once."""
    config = user_text(0.1, num_iterations=1000, sft_iterations=100, total_batch_size=1024, eval_every=-1, eval_tokens=1024)
    begun = runs.Record(config, "text", ("shard",), "tokenizer")
    begun.write()
    machine = Machine(monkeypatch)
    clock = RunClock(stage_works(config), 1024 / 0.1)
    pacer = budget.HoursPacer(begun, machine.now - 240, clock)
    clock.begin("base", 0, 1000)
    assert not pacer.due()
    for done in range(1, 351):
        machine.now += 0.05
        clock.step(done, 1000)
    assert pacer.due()
    steps = pacer.steps("base", 350, 1000)
    assert steps > 1000 and f"base: {steps:,} steps instead of 1,000" in capsys.readouterr().err and not pacer.due()
    written = runs.read_record(config.run)
    changed = {"num_iterations": steps, "sft_iterations": round(steps / 10)}
    assert written and written.config == config.replace(**changed) and written.shards == begun.shards
    assert runs.current_steps(config)["base"] == steps
    assert written.paced == changed != begun.paced
    for done in range(351, 361):
        machine.now += 0.05
        clock.step(done, steps)
    assert pacer.steps("base", 360, steps) == pytest.approx(steps, rel=0.02) and capsys.readouterr().err == ""
    assert pacer.steps("sft", 0, 100) <= 200 and pacer.after("sft", 30) == {"sft_iterations": 30}


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
