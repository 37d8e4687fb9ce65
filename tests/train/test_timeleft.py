"""The time left of a stage and of a run: true at every tenth, at any step time, and a change is told once, with its reason."""

import itertools
import random
from collections.abc import Callable

import pytest

from nanochat.config import build_config
from nanochat.hardware.load import Busy
from nanochat.train import timeleft
from nanochat.train.timeleft import EVALUATION, FINISH, SAMPLE, SAVE, RunClock, StepTime, stage_works


class Clock:
    """A time that passes when the test says so."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.now = 1000.0
        monkeypatch.setattr(timeleft.awake, "monotonic", lambda: self.now)


@pytest.fixture
def time(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def step_time_of(*steps: float) -> float:
    newest, found = StepTime(), 0.0
    for step in steps:
        newest.add(step)
        found = newest.seconds() or 0.0
    return found


def test_one_long_step_says_nothing_and_repeated_ones_do() -> None:
    assert StepTime().seconds() is None
    assert step_time_of(40.0) == 40.0 and step_time_of(40.0, 0.1) == 0.1  # the first one compiles
    suspended = [0.1] * 100 + [600.0] + [0.1] * 50
    assert step_time_of(*suspended) == pytest.approx(0.1, rel=0.01)
    busy = ([0.1] * 19 + [5.0]) * 10  # a median would say 0.1
    assert step_time_of(*busy) == pytest.approx(6.9 / 20, rel=0.15)


def test_a_change_is_seen_within_seconds() -> None:
    quiet = [0.1] * 1200
    assert step_time_of(*quiet, *[0.3] * 70) == pytest.approx(0.3, rel=0.1)
    assert step_time_of(*quiet, *[0.3] * 100, *[0.1] * 250) == pytest.approx(0.1, rel=0.1)
    assert 0.1 < step_time_of(*quiet, *[0.11] * 100) < 0.11  # a small one moves the mean


def run(
    time: Clock, clock: RunClock, seconds: Callable[[float], float], usual: float = 0.07
) -> tuple[list[tuple[float, float, float]], list[str]]:
    """Run all stages of `clock` with steps of `seconds(at)`, `usual` on average: (time, stage left, run left) after each, and messages."""
    told, shown, began = [], [], time.now
    for name, work in clock.works.items():
        clock.begin(name, 0, work.steps)
        for done in range(1, work.steps + 1):
            time.now += seconds(time.now - began)
            clock.step(done, work.steps)
            shown.append((time.now - began, clock.left.stage, clock.left.run))
            if message := clock.change():
                told.append(message)
            for kind, cost in (
                ((SAVE, 2 * usual), (EVALUATION, 40 * usual)) if timeleft_due(done, work.every[EVALUATION], work.steps) else ()
            ):
                time.now += cost
                clock.event(kind)
            if timeleft_due(done, work.every[SAMPLE], work.steps):
                time.now += usual / 2
                clock.event(SAMPLE)
    clock.begin(FINISH)
    time.now += clock.left.run
    return shown, told


def timeleft_due(done: int, every: int, steps: int) -> bool:
    return done == steps or done % every == 0


def quickstart(rate: float = 1024 / 0.07) -> RunClock:
    config = build_config("cpu", overrides={"eval_tokens": 16384})
    return RunClock(stage_works(config), rate, end_tokens=50_000, end_seconds=4.0)


@pytest.mark.parametrize("planned", [1024 / 0.07, 5 * 1024 / 0.07])
def test_it_is_true_at_every_tenth(time: Clock, planned: float) -> None:
    """Beside other programs: steps of 0.1 s, of which one in ten takes 1 s, whatever the plan said."""
    random.seed(1)
    began, clock = time.now, quickstart(planned)
    shown, told = run(time, clock, lambda at: 1.0 if random.random() < 0.1 else 0.1, usual=0.19)
    total = time.now - began
    for tenth in range(1, 10):
        at, _, left = max(one for one in shown if one[0] <= total * tenth / 10)
        assert left == pytest.approx(total - at, rel=0.3), tenth
    assert len(told) == 1 and "instead of the planned" in told[0]
    assert shown[-1][1] < 10 and clock.place == "4/4" and clock.facts()["seconds_left"] == pytest.approx(0, abs=0.1)


def test_a_stage_ends_when_it_says(time: Clock) -> None:
    shown, _ = run(time, quickstart(), lambda at: 0.07)
    ends = [at for (at, left, _), after in itertools.pairwise(shown) if after[1] > left + 10]  # of pretraining
    assert len(ends) == 1
    for at, left, _ in shown[200:1600:100]:
        assert left == pytest.approx(ends[0] - at, rel=0.1, abs=4)


def test_a_change_is_told_once_with_its_reason(time: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = quickstart()
    monkeypatch.setattr(clock.load, "sample", lambda: clock.load.busy)
    clock.load.busy = Busy(others=0.62)
    shown, told = run(time, clock, lambda at: 0.21 if 40 < at < 100 else 0.07)
    assert len(told) == 2, told
    assert told[0].startswith("a step now takes 210 ms instead of the planned 70 ms, because other programs use 62% of the CPU: ")
    assert " instead of 210 ms: " in told[1] and told[1].endswith(" left of the run")
    before, after = (next(left for at, _, left in shown if at > when) for when in (39, 65))
    assert after > 2 * before


def test_a_resumed_run_counts_what_is_left_of_it(time: Clock) -> None:
    whole, resumed = quickstart(), quickstart()
    resumed.begin("sft", 100, 325)
    assert resumed.place == "3/4" and resumed.left.run < whole.left.run / 4
    assert resumed.left.stage == pytest.approx((225 * 1024 + 16384 / 3 + 2.5 * 512) * 0.07 / 1024, rel=0.05)


def test_work_within_a_stage_is_added(time: Clock) -> None:
    """Packing and downloads know their own time; the evaluation at the end takes at least what it says itself."""
    clock = quickstart()
    assert clock.remaining(60.0).run == pytest.approx(clock.left.run + 60)
    clock.begin(FINISH)
    assert clock.remaining(600.0).run == 600 and 4 < clock.remaining().run < 10


def test_reinforcement_learning_is_measured(time: Clock) -> None:
    """Its steps are a guess until the first ones, and do not change the estimate of the rest."""
    config = build_config("cpu", overrides={"eval_tokens": 16384, "rl_iterations": 50})
    clock = RunClock(stage_works(config), 1024 / 0.07)
    clock.begin("rl", 0, 50)
    for done in range(1, 11):
        time.now += 2.0
        clock.step(done, 50)
    clock.works["rl"].cost.clear()
    time.now += 2.0
    clock.step(11, 50)
    assert clock.left.stage == pytest.approx(39 * 2.0, rel=0.05) and clock.token_seconds == pytest.approx(0.07 / 1024)
