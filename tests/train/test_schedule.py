"""Schedules: what a step's learning rate, momentum and weight decay are, also where the number of steps was changed."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanochat.train.schedule import Schedule


def test_the_learning_rate_warms_up_stays_and_falls() -> None:
    schedule = Schedule(1000, warmup_steps=40, warmdown_ratio=0.65, final_lr_frac=0.05, weight_decay=0.2)
    lr = [schedule.lr(step) for step in range(1000)]
    assert lr[0] == 1 / 40 and lr[19] == 0.5 and lr[39] == 1
    assert set(lr[39:351]) == {1.0}
    assert lr[350 + 325] == pytest.approx(0.05 + 0.95 * 0.5)
    assert lr[-1] == pytest.approx(0.05 + 0.95 / 650)
    assert all(one > other for one, other in pairwise(lr[350:]))


def test_muons_momentum_rises_and_falls() -> None:
    schedule = Schedule(2000, warmup_steps=0, warmdown_ratio=0.65, final_lr_frac=0.05, weight_decay=0.2)
    assert schedule.beta(0) == 0.85
    assert schedule.beta(200) == pytest.approx(0.91)
    assert schedule.beta(400) == schedule.beta(700) == pytest.approx(0.97)
    assert schedule.beta(700 + 650) == pytest.approx(0.935)
    assert schedule.beta(1999) == pytest.approx(0.90, abs=1e-3)
    short = Schedule(528, warmup_steps=40, warmdown_ratio=0.65, final_lr_frac=0.05, weight_decay=0.2)
    assert short.beta(528 - 343) == pytest.approx(0.97)  # a short run reaches the peak before its cooldown


def test_weight_decay_is_a_cosine_to_zero() -> None:
    schedule = Schedule(100, warmup_steps=0, warmdown_ratio=0.65, final_lr_frac=0.05, weight_decay=0.2)
    assert schedule.decay(0) == 0.2
    assert schedule.decay(50) == pytest.approx(0.1)
    assert schedule.decay(99) == pytest.approx(0, abs=1e-3)


@given(
    steps=st.integers(1, 3000),
    warmup=st.integers(0, 60),
    ratio=st.floats(0, 1),
    final=st.floats(0, 1),
    place=st.floats(0, 1, exclude_max=True),
)
def test_any_schedule_stays_in_bounds(steps: int, warmup: int, ratio: float, final: float, place: float) -> None:
    schedule = Schedule(steps, warmup, ratio, final, weight_decay=0.3, peak=0.8)
    step = int(place * steps)
    assert 0 < schedule.lr(step) <= 0.8 + 1e-9
    assert 0.85 - 1e-9 <= schedule.beta(step) <= 0.97 + 1e-9
    assert 0 <= schedule.decay(step) <= 0.3


@given(st.integers(40, 400), st.lists(st.tuples(st.floats(0.2, 0.95), st.floats(0.3, 4.0)), max_size=6))
def test_a_schedule_that_is_rescaled_never_jumps(steps: int, changes: list[tuple[float, float]]) -> None:
    schedule, step = Schedule(steps, warmup_steps=0, warmdown_ratio=0.65, final_lr_frac=0.05, weight_decay=0.1), 0
    for place, factor in changes:
        step += int((schedule.steps - step) * place)
        new = step + max(int((schedule.steps - step) * factor), 1)
        before, schedule = schedule, schedule.rescaled(step, new)
        assert schedule.lr(step) == pytest.approx(before.lr(step), abs=0.1) and schedule.decay(step) == pytest.approx(before.decay(step))
        assert schedule.progress(schedule.steps) == pytest.approx(schedule.steps)
    lr = [schedule.lr(at) for at in range(step, schedule.steps)]
    assert all(one >= other - 1e-9 for one, other in pairwise(lr)) and all(0.05 <= value <= 1 for value in lr)
