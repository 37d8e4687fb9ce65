"""The number of threads by measurement: on a simulated machine whose load changes, and the losses of real steps with other numbers."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from nanochat.distributed.ranks import Ranks, single
from nanochat.pipeline import train as pipeline
from nanochat.train import threads
from nanochat.train.signals import StopSignal
from nanochat.train.threads import ThreadTuner
from nanochat.train.trainer import Trainer
from tests import tiny

TOKENS = 1000


class Machine:
    """Steps of a run on `cores` processors beside `busy` programs; `rate` has an undisturbed step's seconds by number of threads."""

    def __init__(self, cores: int, rate: Callable[[int], float], tells: bool = True):
        self.cores, self.rate, self.tells, self.busy = cores, rate, tells, 0
        self.used, self.clock, self.random = 0, 0.0, random.Random(1)
        self.taken: list[int] = []  # threads of each step
        self.tuner = ThreadTuner(cores, self.use, self.free, lambda: self.clock)

    def use(self, number: int) -> None:
        self.used = number

    def free(self) -> float | None:
        """What the threads of this run get beside the others, or what the others leave, if that is more."""
        return max(self.cores - self.busy, self.cores * self.used / max(self.used + self.busy, 1)) if self.tells else None

    def seconds(self, number: int) -> float:
        """A step's time: several threads wait for each other when they do not have a processor each."""
        crowded = number + self.busy > self.cores
        slow = 1 + self.busy * (number if number > 1 else 0.25) if crowded else 1
        return self.rate(number) * slow * self.random.uniform(0.97, 1.03)

    def run(self, steps: int) -> float:
        """Seconds of so many steps."""
        began = self.clock
        for _ in range(steps):
            took = self.seconds(self.used)
            self.clock += took
            self.taken.append(self.used)
            self.tuner(took, TOKENS)
        return self.clock - began


def two_cores(tells: bool = True) -> Machine:
    """With the times of the quickstart's model."""
    return Machine(2, lambda number: {1: 0.06, 2: 0.04}[number], tells)


@pytest.mark.parametrize("best", [1, 2, 4, 7])
def test_the_fastest_number_is_chosen(best: int) -> None:
    machine = Machine(7, lambda number: 0.05 * (1 + abs(number - best)))
    machine.run(7 * threads.SAMPLE)
    assert machine.used == {1: 1, 2: 2, 4: 4, 7: 7}[best]


def test_many_cores_cost_few_steps() -> None:
    """Numbers below one that is slower than the best are not tried: with one of 64 threads a step would take a minute."""
    machine = Machine(64, lambda number: 60 / number)
    machine.run(3 * threads.SAMPLE)
    assert machine.used == 64 and min(machine.taken) == 32


@pytest.mark.parametrize("tells", [True, False], ids=["the system tells", "it does not"])
@pytest.mark.parametrize("busy", [1, 2, 4])
def test_load_comes_and_goes(busy: int, tells: bool) -> None:
    """Beside others one thread, and alone two again; each phase takes at most 1.1 times the best fixed number's time."""
    machine = two_cores(tells)
    machine.run(400)
    assert machine.used == 2
    for _ in range(3):
        machine.busy = busy
        took, best = machine.run(400), min(sum(machine.seconds(number) for _ in range(400)) for number in (1, 2))
        assert machine.used == 1 and took < 1.1 * best, (took, best)
        machine.busy = 0
        took = machine.run(800)
        if tells or busy > 1:  # else one thread beside one other program is as fast as alone
            assert machine.used == 2 and took < (1.1 if tells else 1.5) * 800 * 0.04


def test_measurements_cost_two_percent() -> None:
    """Also where the steps' times are so noisy that drift is seen again and again."""
    machine = two_cores()
    machine.rate = lambda number: {1: 0.08, 2: 0.04}[number] * machine.random.choice((0.6, 1, 1.4))
    took = machine.run(5000)
    slower = sum(number == 1 for number in machine.taken) * 0.04
    assert 0 < slower < 0.03 * took + threads.ALLOWANCE


def test_one_wrong_measurement_is_mended() -> None:
    """A pause during the first measurement of two threads: one thread is taken, without drift or a change of load, until the next try."""
    machine = two_cores()
    seconds, machine.seconds = machine.seconds, lambda number: 3 * seconds(number) if number == 2 else seconds(number)  # type: ignore
    machine.run(2 * threads.SAMPLE)
    assert machine.used == 1
    machine.seconds = seconds  # type: ignore[method-assign]
    machine.run(200)
    assert machine.used == 2


def test_a_number_that_turns_out_slower_is_left_without_a_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    """Programs begin that the system does not tell of, and nothing may be spent: what was measured of another number is enough."""
    monkeypatch.setattr(threads, "SHARE", 0.0)
    monkeypatch.setattr(threads, "ALLOWANCE", 0.0)
    machine = two_cores(tells=False)
    machine.run(100)
    assert machine.used == 2
    machine.busy = 2
    machine.run(threads.RECENT)
    assert machine.used == 1
    machine.run(200)
    assert set(machine.taken[-200:]) == {1}


def test_changes_are_said_once(capsys: pytest.CaptureFixture[str]) -> None:
    machine = two_cores()
    machine.run(100)
    machine.busy = 2
    machine.run(600)
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("threads: ")]
    assert len(said) == 1 and said[0].startswith("threads: now 1 of 2: other programs leave 1.0 of the processors free")


def test_losses_do_not_depend_on_the_number(base: Path, tmp_path: Path) -> None:
    """A run whose threads change in every step has the losses of one thread, but for rounding."""
    text, changes = tiny.sentences(tmp_path / "text.txt"), tiny.GENTLE | {"deterministic": False, "dtype": "float32", "num_iterations": 6}
    found = {}
    before, rounds = torch.get_num_threads(), iter(range(1000))
    try:
        for run, number in (("one", lambda: 1), ("changing", lambda: 1 + next(rounds) % 2)):
            config = tiny.config(text, run, **changes, depth=2)
            with pytest.MonkeyPatch.context() as patch:
                step = Trainer.step
                patch.setattr(Trainer, "step", lambda self, number=number, step=step: torch.set_num_threads(number()) or step(self))
                pipeline.train(config, ("base",), [])
            found[run] = [loss for _, _, loss in tiny.losses(base, run)]
    finally:
        torch.set_num_threads(before)
    assert len(found["one"]) == 6 and next(rounds) == 6
    assert found["changing"] == pytest.approx(found["one"], rel=1e-5)


@pytest.mark.parametrize(
    ("changes", "measures"),
    [({}, True), ({"deterministic": True}, False), ({"threads": 2}, False), ({"compile": "on"}, False)],
    ids=["auto", "deterministic", "a number of the user's", "compiled"],
)
def test_when_it_is_measured(changes: dict[str, Any], measures: bool, tmp_path: Path) -> None:
    asked = tiny.config(tmp_path / "text.txt", **{"threads": -1, "deterministic": False, "compile": "off"} | changes)
    call = pipeline.Call(pipeline.Request(asked, ("base",), 0.0), StopSignal())
    resolved = asked.replace(threads=2, device="cpu")
    assert call._measures_threads(resolved, single("cpu")) is measures
    assert not call._measures_threads(resolved.replace(threads=1), single("cpu"))
    assert not call._measures_threads(resolved, Ranks(0, 0, 2, torch.device("cpu")))


def test_the_number_is_torchs() -> None:
    """torch, and with it the compiled operations, which ask its OpenMP for the number of their threads."""
    before = torch.get_num_threads()
    try:
        ThreadTuner(3, free=lambda: 3.0)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
