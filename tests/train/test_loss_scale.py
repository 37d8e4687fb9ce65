"""Training with float16 activations: the scale of the loss, and what a step with an overflow leaves. On a CPU, with torch's operations."""

import json
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from nanochat.distributed.ranks import single
from nanochat.errors import NonFiniteError
from nanochat.model.build import build_model
from nanochat.model.optim import orthogonalize
from nanochat.model.scaling import GPTConfig
from nanochat.runs.checkpoint import Checkpoints, verify
from nanochat.train import loss_scale, trainer
from nanochat.train.loss_scale import LossScale
from tests.tiny import call, chats, flags, losses, sentences, start, wait_for
from tests.train.test_trainer import STEPS, Run, poison, scatter

HALF: dict[str, Any] = {"dtype": "float16", "device": "cpu", "deterministic": False}


def half_run(folder: Path, scale: LossScale, **stage: Any) -> Run:
    """A run in float16 whose next step has `scale`."""
    run = Run(folder, loss_scale=scale, **stage)
    run.model.use(torch.float16)
    return run


def test_a_scale_begins_with_the_tokens_of_a_step() -> None:
    assert [LossScale.begin(tokens, {}).scale for tokens in (1, 256, 2**19, 600_000)] == [16, 2**12, 2**23, 2**23]
    assert LossScale.begin(256, {"loss_scale": 8, "loss_scale_steps": 3}).meta() == {"loss_scale": 8, "loss_scale_steps": 3}


def test_a_scale_changes_no_float32_step(tmp_path: Path) -> None:
    """A power of two, which is divided out again: the losses are the same to the last digit."""
    plain, scaled = Run(tmp_path / "plain"), Run(tmp_path / "scaled", loss_scale=LossScale(2**12))
    for run in (plain, scaled):
        scatter(run.model)
    assert [line["loss"] for line in plain.go()] == [line["loss"] for line in scaled.go()]


def test_small_gradients_need_the_scale(tmp_path: Path) -> None:
    """Without it, float16 rounds the gradients of a batch of half a million tokens to multiples of 6e-8."""
    here = single()

    def gradient(dtype: torch.dtype, scale: int) -> torch.Tensor:
        run = Run(tmp_path / f"{dtype} {scale}")
        run.model.use(dtype)
        scatter(run.model)
        batch = replace(run.stage.source.batch(0, here), counted=2**19)
        trainer.accumulate_gradients(batch, 4, run.model, run.model, here, scale)
        weight = run.model.blocks[0].attn.v.weight  # type: ignore[union-attr]
        assert isinstance(weight.grad, torch.Tensor)
        return weight.grad

    exact = gradient(torch.float32, 1)
    errors = [float((gradient(torch.float16, scale) - exact).norm() / exact.norm()) for scale in (1, 2**23)]
    assert errors[0] > 0.2 and errors[1] < 0.01, errors


def test_an_overflow_halves_the_scale_and_updates_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = half_run(tmp_path, LossScale(2**40), save_every=1)
    scatter(run.model)
    before = run.weights()
    run.stage.schedule = run.stage.schedule.rescaled(0, 1)
    lines = run.go()
    assert [(line["skipped"], line["loss_scale"]) for line in lines] == [(True, 2**39)]
    assert all(torch.equal(one, other) for one, other in zip(before, run.weights(), strict=True)) and run.optimizer.steps == 0
    assert not (tmp_path / "nonfinite").exists(), "an overflow is no fault of the run"
    assert f"a gradient overflowed float16; step skipped, loss scale halved to {2**39}" in capsys.readouterr().err


def test_a_scale_grows_after_steps_without_overflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss_scale, "GROWTH_STEPS", 4)
    run = half_run(tmp_path, LossScale(64, steps=1), save_every=2)
    assert [line["loss_scale"] for line in run.go()] == [64, 64, 128, 128, 128, 128]
    saved = [verify(path).meta for path in run.store.steps()]
    assert [(meta["loss_scale"], meta["loss_scale_steps"]) for meta in saved][-1] == (128, STEPS - 3)


def test_a_gradient_that_no_scale_mends_stops_the_run(tmp_path: Path) -> None:
    run = half_run(tmp_path, LossScale(4))
    run.model.blocks[1].attn.q.weight.register_hook(lambda gradient: gradient * float("inf"))  # type: ignore[union-attr]
    with pytest.raises(NonFiniteError, match="base step 3"):
        run.go()
    assert [line["loss_scale"] for line in run.lines()] == [2, 1]


def test_a_loss_that_is_not_finite_is_not_the_scales(tmp_path: Path) -> None:
    run = half_run(tmp_path, LossScale(2**12))
    poison(run.model, float("nan"))
    with pytest.raises(NonFiniteError, match="base step 1"):
        run.go()


def test_updates_are_orthogonal_in_float16_too() -> None:
    """Of gradients that float16 itself would round to zero."""
    updates = torch.randn(2, 48, 96, generator=torch.Generator().manual_seed(0)) * 1e-9
    exact, half = orthogonalize(updates), orthogonalize(updates, torch.float16)
    assert half.isfinite().all() and (exact - half).norm() < 0.02 * exact.norm()


def test_a_checkpoint_with_a_bad_scale_is_refused(tmp_path: Path) -> None:
    shape = GPTConfig(depth=1, dim=32, n_head=2, n_kv_head=2, head_dim=16, vocab_size=40, max_seq_len=16)
    run = Run(tmp_path)
    run.stage.meta = {"model": shape.to_dict(), "loss_scale": "large"}
    run.model = build_model(shape)
    run.store = Checkpoints(tmp_path / "base")
    run.store.save(run.model, run.optimizer, run.stage.meta | {"step": 1}, single(), 1)
    assert run.store.newest() is None


# ---- whole runs -------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_killed_run_resumes_exactly_and_learns_as_in_float32(base: Path, tmp_path: Path) -> None:
    text, talk = sentences(tmp_path / "text.txt"), chats(tmp_path / "chats.jsonl")
    options = {"depth": 2, "num_iterations": 40, "sft_iterations": 6, "save_every": 4, "chat_data": str(talk)}
    for name, more in (("exact", {"dtype": "float32"}), ("half", {"dtype": "float16"})):
        done = call(base, "entrypoint.py", *flags(text, run=name, **HALF | options | more))
        assert done.returncode == 0, done.stderr
    process = start(base, "entrypoint.py", *flags(text, run="killed", **HALF | options))
    wait_for(process, "base step 1/40")
    while not list((base / "runs" / "killed").glob("base/step_*/manifest.json")) and process.poll() is None:
        pass
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    done = call(base, "entrypoint.py", *flags(text, run="killed", **HALF | options))
    assert done.returncode == 0 and "resuming at step" in done.stderr, done.stderr
    assert losses(base, "killed") == losses(base, "half")
    scales = [[json.loads(line)["loss_scale"] for line in read(base, name)] for name in ("killed", "half")]
    assert scales[0] == scales[1] and max(scales[0]) == 2**12
    exact, half = ([loss for stage, _, loss in losses(base, name) if stage == "base"] for name in ("exact", "half"))
    assert half[-1] == pytest.approx(exact[-1], rel=0.02) and half[-1] < 0.7 * half[0]
    newest = Checkpoints(base / "runs" / "half" / "sft").newest()
    assert newest is not None and newest.meta["loss_scale"] == scales[1][-1]


def read(base: Path, run: str) -> list[str]:
    return (base / "runs" / run / "metrics.jsonl").read_text().splitlines()
