"""The training loop: what a step computes, and what it does when something goes wrong."""

import gc
import json
import math
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nanochat.distributed.ranks import Ranks, single
from nanochat.errors import NonFiniteError, OutOfMemoryError, Preempted
from nanochat.model.build import build_model
from nanochat.model.loss import IGNORE
from nanochat.model.optim import LearningRates, MuonAdamW
from nanochat.model.scaling import GPTConfig
from nanochat.model.transformer import Transformer
from nanochat.runs.checkpoint import Checkpoints
from nanochat.runs.metrics import Metrics
from nanochat.train.batch import StepBatch
from nanochat.train.schedule import Schedule
from nanochat.train.signals import StopSignal
from nanochat.train.stage import Stage, due
from nanochat.train.trainer import Trainer

STEPS = 6


class Rows:
    """Four rows of 16 tokens a step; `ignored(step, row)` rows have no target."""

    def __init__(self, ignored: Callable[[int, int], bool] = lambda step, row: False):
        self.ignored = ignored

    def batch(self, step: int, ranks: Ranks) -> StepBatch:
        ids = np.random.default_rng(step).integers(0, 40, (4, 17))
        targets = ids[:, 1:].copy()
        targets[:, :3] = IGNORE
        for row in range(4):
            if self.ignored(step, row):
                targets[row] = IGNORE
        return StepBatch(ids[:, :-1], targets, counted=int((targets != IGNORE).sum()), tokens=64)


class Run:
    """One process's call of the loop in `folder`, from its newest checkpoint, as Session.run does it."""

    def __init__(self, folder: Path, **stage: Any):
        torch.set_num_threads(1)
        shape = GPTConfig(depth=2, dim=32, n_head=2, n_kv_head=2, head_dim=16, vocab_size=40, max_seq_len=16)
        self.folder, self.model = folder, build_model(shape)
        self.optimizer = MuonAdamW(self.model, LearningRates(), 64, single())
        self.store = Checkpoints(folder / "base")
        self.stop = StopSignal()
        schedule = Schedule(STEPS, warmup_steps=2, warmdown_ratio=0.5, final_lr_frac=0.1, weight_decay=0.1)
        defaults = {"source": Rows(), "schedule": schedule, "device_batch_size": 4, "save_seconds": 1e9}
        self.stage = Stage("base", **defaults | stage)  # type: ignore[arg-type]
        self.forward: Callable[[torch.Tensor], torch.Tensor] = self.model

    def go(self) -> list[dict[str, Any]]:
        """Train to the end; returns the metrics."""
        newest = self.store.newest()
        if newest:
            newest.load_model(self.model)
            newest.load_optimizer(self.optimizer)
        start = newest.step if newest else 0
        metrics = Metrics(self.folder / "metrics.jsonl", "base", start)
        try:
            Trainer(self.stage, self.model, self.forward, self.optimizer, single(), self.store, metrics, self.stop, start).run()
        finally:
            metrics.close()
        return self.lines()

    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.folder / "metrics.jsonl").read_text().splitlines()]

    def saved(self) -> list[int]:
        return [int(path.name[5:]) for path in self.store.steps()]

    def weights(self) -> list[torch.Tensor]:
        return [weight.detach().clone() for weight in self.model.parameters()]


def losses(lines: list[dict[str, Any]]) -> list[float]:
    return [line["loss"] for line in lines]


def scatter(model: Transformer) -> None:
    """Random weights everywhere. In a new model some gradients are zero but for rounding, and Adam would blow that up."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(torch.randn(weight.shape, generator=generator) * 0.3)


def test_due() -> None:
    assert [step for step in range(1, 11) if due(step, 4, 10)] == [4, 8, 10]
    assert [step for step in range(1, 11) if due(step, -1, 10)] == [10]


def test_the_garbage_collector_leaves_the_model_alone_while_it_trains(tmp_path: Path) -> None:
    """Frozen from the second step on, and not after the stage, whatever ends it."""
    frozen = []

    class Watched(Rows):
        def batch(self, step: int, ranks: Ranks) -> StepBatch:
            frozen.append(gc.get_freeze_count() > 1000)
            if step == 3:
                raise RuntimeError("no more rows")
            return super().batch(step, ranks)

    with pytest.raises(RuntimeError, match="no more rows"):
        Run(tmp_path, source=Watched()).go()
    assert frozen == [False, True, True, True] and gc.get_freeze_count() == 0


# ---- steps ----------------------------------------------------------------------------------------------------


def test_gradient_accumulation_equals_one_big_batch(tmp_path: Path) -> None:
    """Also where the targets are spread unevenly over the micro-batches, and where one of them has none."""
    source = Rows(lambda step, row: row == step % 4)
    whole, parts = (Run(tmp_path / str(size), source=source, device_batch_size=size) for size in (4, 1))
    for run in (whole, parts):
        scatter(run.model)
    assert losses(parts.go()) == pytest.approx(losses(whole.go()), rel=1e-5)
    for one, other in zip(whole.model.parameters(), parts.model.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_the_first_loss_is_the_mean_over_counted_targets(tmp_path: Path) -> None:
    assert Run(tmp_path, source=Rows(lambda step, row: row < 2)).go()[0]["loss"] == pytest.approx(math.log(40), abs=1e-2)


def test_micro_batches_without_a_target_are_skipped(tmp_path: Path) -> None:
    run = Run(tmp_path, source=Rows(lambda step, row: row > 0), device_batch_size=1)
    calls = []
    run.forward = lambda ids: calls.append(len(ids)) or run.model(ids)  # type: ignore[func-returns-value]
    lines = run.go()
    assert calls == [1] * STEPS
    assert all(math.isfinite(loss) for loss in losses(lines))


def test_a_step_without_any_target_breaks_nothing(tmp_path: Path) -> None:
    run = Run(tmp_path, source=Rows(lambda step, row: step in (0, 3)))
    lines = run.go()
    assert losses(lines)[0] == losses(lines)[3] == 0
    assert all(math.isfinite(loss) for loss in losses(lines))
    assert all(weight.isfinite().all() for weight in run.model.parameters())


def test_metrics_of_a_step(tmp_path: Path) -> None:
    lines = Run(tmp_path, evaluate=lambda: {"bpb": 2.5, "eval_tokens": 99}, eval_every=4).go()
    assert [(line["stage"], line["step"]) for line in lines] == [("base", step) for step in range(1, STEPS + 1)]
    assert [line["tokens"] for line in lines] == [64 * step for step in range(1, STEPS + 1)]
    assert {line["step"]: line["bpb"] for line in lines if "bpb" in line} == {4: 2.5, 6: 2.5}
    assert {line["eval_tokens"] for line in lines if "bpb" in line} == {99}
    for line in lines:
        assert line["tokens_per_second"] > 0 and line["step_seconds"] > 0 and line["peak_memory_bytes"] > 1e6
        assert line["lr"] == Schedule(STEPS, 2, 0.5, 0.1, 0.1).lr(line["step"] - 1)
    elapsed = [line["elapsed_seconds"] for line in lines]
    assert elapsed == sorted(elapsed)


@pytest.mark.parametrize("steps", [60, 100, 52])
def test_a_pacer_may_change_the_steps(steps: int, tmp_path: Path) -> None:
    """What is left of the schedule is stretched over the steps that are left, and the pacer is asked when it says so."""
    asked: list[tuple[str, int, int]] = []
    calls: list[int] = []

    class Asked:
        def due(self) -> bool:
            calls.append(1)
            return len(calls) % 3 == 0 and len(calls) >= 30

        def steps(self, stage: str, done: int, now: int) -> int:
            asked.append((stage, done, now))
            return steps

        def after(self, stage: str, steps: int) -> dict[str, int]:
            raise AssertionError("a session asks")

    schedule = Schedule(60, warmup_steps=2, warmdown_ratio=0.5, final_lr_frac=0.1, weight_decay=0.1)
    run = Run(tmp_path, schedule=schedule, pacer=Asked(), meta={"steps": 60})
    lines = run.go()
    assert [line["step"] for line in lines] == list(range(1, steps + 1)) and run.saved()[-1] == steps
    lr = [line["lr"] for line in lines]
    assert lr[2:31] == [1.0] * 29 and lr[-1] == pytest.approx(0.1 + 0.9 / (steps - 30))
    assert [one - other for one, other in pairwise(lr[30:])] == pytest.approx([0.9 / (steps - 30)] * (steps - 31))
    assert run.store.newest().meta["steps"] == steps  # type: ignore[union-attr]
    assert asked[:2] == [("base", 30, 60), ("base", 33, steps)] and len(asked) == (steps - 28) // 3


def test_sampling_is_due_as_asked(tmp_path: Path) -> None:
    seen: list[int] = []
    Run(tmp_path, sample=seen.append, sample_every=4).go()
    assert seen == [4, 6]


# ---- what goes wrong ------------------------------------------------------------------------------------------


def poison(model: Transformer, weight: float) -> None:
    with torch.no_grad():
        model.blocks[0].mlp.fc.weight[0, 0] = weight  # type: ignore[union-attr]
        model.blocks[0].mlp.proj.weight.fill_(0.1)  # type: ignore[union-attr]


def test_a_loss_that_is_not_finite_stops_before_the_update(tmp_path: Path) -> None:
    run = Run(tmp_path, save_every=1)
    poison(run.model, math.nan)
    before = run.weights()
    with pytest.raises(NonFiniteError, match="base step 1"):
        run.go()
    assert all(torch.equal(one, other) or one.isnan().any() for one, other in zip(before, run.weights(), strict=True))
    assert run.saved() == [] and run.lines() == []


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_stops_before_the_update(bad: float, tmp_path: Path) -> None:
    """The loss may still look well."""
    run = Run(tmp_path, save_every=1)

    def spoil(gradient: torch.Tensor) -> torch.Tensor:
        return gradient.index_fill(0, torch.tensor([0]), bad)

    run.model.blocks[1].attn.q.weight.register_hook(spoil)  # type: ignore[union-attr]
    before = run.weights()
    with pytest.raises(NonFiniteError, match="gradient"):
        run.go()
    assert all(torch.equal(one, other) for one, other in zip(before, run.weights(), strict=True))
    assert run.saved() == []


class Poisoned(Rows):
    """Step `bad` (from 0) has NaN gradients: the run's hook spoils them while `now` is set."""

    def __init__(self, run: Run, *bad: int):
        super().__init__()
        self.bad, self.now = bad, False
        run.stage.source = self
        run.model.blocks[1].attn.q.weight.register_hook(lambda gradient: gradient * math.nan if self.now else gradient)  # type: ignore[union-attr]

    def batch(self, step: int, ranks: Ranks) -> StepBatch:
        self.now = step in self.bad
        return super().batch(step, ranks)


def test_what_led_to_it_is_written_down(tmp_path: Path) -> None:
    run = Run(tmp_path, save_every=1)
    batch = Poisoned(run, 3).batch(3, single())
    with pytest.raises(NonFiniteError, match="base step 4") as caught:
        run.go()
    folder = tmp_path / "nonfinite" / "base_step_000004"
    assert str(folder) in caught.value.message and "--skip_bad_batches=1" in caught.value.hint
    about = json.loads((folder / "rank_00000.json").read_text())
    assert (about["stage"], about["step"], about["gradient_norm"]) == ("base", 4, "nan")
    assert about["gradients_not_finite"] == ["blocks.1.attn.q.weight"] and about["weights_not_finite"] == []
    assert len(about["row_losses"]) == 4 and all(0 < loss < 10 for loss in about["row_losses"]) and about["rows_not_finite"] == []
    assert [line["step"] for line in about["before"]] == [1, 2, 3]
    rows = np.load(folder / "rank_00000.npz", allow_pickle=False)
    assert np.array_equal(rows["inputs"], batch.inputs) and np.array_equal(rows["targets"], batch.targets)


def test_bad_weights_are_named_and_bad_rows_counted(tmp_path: Path) -> None:
    run = Run(tmp_path)
    poison(run.model, math.nan)
    with pytest.raises(NonFiniteError):
        run.go()
    about = json.loads((tmp_path / "nonfinite" / "base_step_000001" / "rank_00000.json").read_text())
    assert about["weights_not_finite"] == ["blocks.0.mlp.fc.weight"] and about["rows_not_finite"] == [0, 1, 2, 3]


def test_a_bad_batch_is_skipped_where_that_is_allowed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = Run(tmp_path, save_every=1, skip_bad_batches=1)
    Poisoned(run, 3)
    lines = run.go()
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    assert [line["step"] for line in lines if line.get("skipped")] == [4]
    assert run.optimizer.steps == STEPS - 1 and all(weight.isfinite().all() for weight in run.model.parameters())
    assert "step skipped (1 of at most 1" in capsys.readouterr().err


def test_a_loss_that_is_not_finite_has_a_line_that_is_json(tmp_path: Path) -> None:
    run = Run(tmp_path, skip_bad_batches=STEPS)
    poison(run.model, math.nan)
    assert [(line["loss"], line["skipped"]) for line in run.go()] == [(None, True)] * STEPS
    assert run.optimizer.steps == 0 and "NaN" not in (tmp_path / "metrics.jsonl").read_text()


def test_no_more_are_skipped_than_allowed_also_over_a_restart(tmp_path: Path) -> None:
    run = Run(tmp_path, save_every=1, skip_bad_batches=1)
    Poisoned(run, 1)
    run.forward = stop_at(run, 4)
    with pytest.raises(Preempted):
        run.go()
    newest = run.store.newest()
    assert newest is not None and newest.meta["skipped"] == 1
    again = Run(tmp_path, save_every=1, skip_bad_batches=1, skipped=1)
    Poisoned(again, 4)
    with pytest.raises(NonFiniteError, match="base step 5"):
        again.go()


class Full:
    """A forward pass that runs out of memory with more than `rows` rows, from its call number `first` on, after it has computed."""

    def __init__(self, run: Run, rows: int, first: int = 0, error: type[Exception] = torch.OutOfMemoryError):
        self.run, self.rows, self.first, self.error, self.calls = run, rows, first, error, []  # type: ignore[var-annotated]

    def __call__(self, ids: torch.Tensor) -> torch.Tensor:
        self.calls.append(len(ids))
        hidden = self.run.model(ids)
        if len(ids) > self.rows and len(self.calls) > self.first:
            raise self.error("CUDA out of memory: can't allocate memory")
        return hidden


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, MemoryError, RuntimeError])
def test_out_of_memory_halves_the_batch_and_goes_on(error: type[Exception], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The third step's first micro-batch of two is computed and backward before its second one fails."""
    straight, run = (Run(tmp_path / name, device_batch_size=4) for name in ("straight", "short"))
    for one in (straight, run):
        scatter(one.model)
    run.forward = full = Full(run, 1, first=2, error=error)
    assert losses(run.go()) == pytest.approx(losses(straight.go()), rel=1e-5)
    assert full.calls == [4] * 2 + [4, 2] + [1] * 4 * (STEPS - 2)
    assert run.saved() == [STEPS]
    said = capsys.readouterr().err
    assert (
        "out of memory in base step 3 with micro-batches of 4 sequences of 16 tokens" in said
        and "continuing with 2, " in said
        and "--device_batch_size=1" in said
    )
    for one, other in zip(straight.weights(), run.weights(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_a_failed_micro_batch_leaves_no_gradient_behind(tmp_path: Path) -> None:
    """Two rows at a time; the second half of a step fails when the first half's gradient is there already."""
    straight, run = (Run(tmp_path / name, device_batch_size=2) for name in ("straight", "short"))
    for one in (straight, run):
        scatter(one.model)
    run.forward = Full(run, 1, first=1)
    assert losses(run.go()) == pytest.approx(losses(straight.go()), rel=1e-5)


def test_out_of_memory_with_one_row_ends_with_what_to_lower(tmp_path: Path) -> None:
    run = Run(tmp_path, save_every=1)
    run.forward = Full(run, 0, first=2)
    with pytest.raises(OutOfMemoryError, match="base step 3 with one sequence of 16 tokens") as caught:
        run.go()
    assert "--depth" in caught.value.hint and run.saved() == [1, 2]


def test_out_of_memory_in_the_optimizer_says_what_helps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(tmp_path)

    def full(*_: Any, **__: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(run.optimizer, "step", full)
    with pytest.raises(OutOfMemoryError, match="optimizer") as caught:
        run.go()
    assert "--nproc_per_node" in caught.value.hint


def test_another_error_is_no_lack_of_memory(tmp_path: Path) -> None:
    run = Run(tmp_path)

    def fail(_: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    run.forward = fail
    with pytest.raises(RuntimeError, match="shapes"):
        run.go()


@pytest.mark.parametrize("hook", ["evaluate", "sample"])
def test_what_is_no_training_never_costs_the_run(hook: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def full(_: int) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    hooks: dict[str, Any] = {"evaluate": lambda: None} if hook == "evaluate" else {"sample": full, "sample_every": 4}
    run = Run(tmp_path, eval_every=4, **hooks)
    assert len(run.go()) == STEPS and run.saved()[-1] == STEPS
    assert not any("bpb" in line for line in run.lines())
    assert ("sample skipped, out of memory" in capsys.readouterr().err) == (hook == "sample")


def test_a_stop_saves_and_the_next_call_goes_on_exactly(tmp_path: Path) -> None:
    straight = Run(tmp_path / "straight").go()
    run = Run(tmp_path / "stopped")
    run.forward = stop_at(run, 3)
    with pytest.raises(Preempted, match="step 3 of 6"):
        run.go()
    assert run.saved() == [3]
    assert losses(run.lines()) == losses(straight)[:3]
    again = Run(tmp_path / "stopped")
    assert losses(again.go()) == losses(straight)
    assert [line["tokens"] for line in again.lines()] == [line["tokens"] for line in straight]
    assert again.saved() == [3, 6]


def stop_at(run: Run, step: int) -> Callable[[torch.Tensor], torch.Tensor]:
    """A forward pass in whose call number `step` the signal comes."""
    calls = [0]

    def forward(ids: torch.Tensor) -> torch.Tensor:
        calls[0] += 1
        run.stop.set = run.stop.set or calls[0] == step
        return run.model(ids)

    return forward


def test_a_crash_between_saves_repeats_the_same_losses(tmp_path: Path) -> None:
    straight = Run(tmp_path / "straight").go()
    run = Run(tmp_path / "killed", save_every=2)
    calls = []

    def forward(ids: torch.Tensor) -> torch.Tensor:
        calls.append(0)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return run.model(ids)

    run.forward = forward
    with pytest.raises(KeyboardInterrupt):
        run.go()
    assert run.saved() == [2, 4] and len(run.lines()) == 5
    assert losses(Run(tmp_path / "killed", save_every=2).go()) == losses(straight)


@pytest.mark.parametrize("hook", ["evaluate", "sample"])
def test_the_checkpoint_comes_before_what_may_fail(hook: str, tmp_path: Path) -> None:
    def fail(*_: Any) -> float:
        raise ValueError("in the evaluation")

    run = Run(tmp_path, **{"eval_every": 4, "evaluate": lambda: {"bpb": 1.0}, "sample_every": 4, hook: fail})
    with pytest.raises(ValueError, match="in the evaluation"):
        run.go()
    assert run.saved() == [4]


def test_an_evaluation_that_a_crash_left_out_is_made_up_for(tmp_path: Path) -> None:
    def fail() -> float:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Run(tmp_path, eval_every=4, evaluate=fail).go()
    lines = Run(tmp_path, eval_every=4, evaluate=lambda: {"bpb": 1.5}).go()
    assert [line.get("bpb") for line in lines] == [None, None, None, 1.5, None, 1.5]


def test_lost_metrics_do_not_stop_a_resume(tmp_path: Path) -> None:
    run = Run(tmp_path, eval_every=2, evaluate=lambda: {"bpb": 1.0})
    run.forward = stop_at(run, 2)
    with pytest.raises(Preempted):
        run.go()
    (tmp_path / "metrics.jsonl").unlink()
    lines = Run(tmp_path, eval_every=2, evaluate=lambda: {"bpb": 1.0}).go()
    assert [line["step"] for line in lines] == [3, 4, 5, 6]


def test_saves_are_due_by_time_too(tmp_path: Path) -> None:
    run = Run(tmp_path, save_seconds=0.0, keep_last=100)
    run.go()
    assert run.saved() == list(range(1, STEPS + 1))
