"""Checkpoints: only a complete step whose every byte is right is ever loaded, and no failure costs an older one."""

import errno
import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError

from nanochat import paths
from nanochat.distributed.ranks import single
from nanochat.errors import DataError, PreflightError, UsageError
from nanochat.hardware import memory
from nanochat.model.build import build_model
from nanochat.model.loss import cross_entropy_sum
from nanochat.model.optim import LearningRates, MuonAdamW
from nanochat.model.scaling import GPTConfig
from nanochat.model.transformer import Transformer
from nanochat.runs import checkpoint
from nanochat.runs.checkpoint import Checkpoints, verify

FILES = ("model.safetensors", "optimizer_00000.safetensors", "meta.json", "manifest.json")


def tiny(seed: int = 0, **changes: Any) -> tuple[Transformer, MuonAdamW]:
    torch.set_num_threads(1)
    shape = {"depth": 2, "dim": 32, "n_head": 2, "n_kv_head": 2, "head_dim": 16, "vocab_size": 40, "max_seq_len": 16}
    model = build_model(GPTConfig(**shape | changes), seed=seed)
    return model, MuonAdamW(model, LearningRates(), 1024, single())


def train(model: Transformer, optimizer: MuonAdamW, steps: range) -> None:
    for step in steps:
        ids = torch.randint(0, 40, (2, 17), generator=torch.Generator().manual_seed(step))
        cross_entropy_sum(model, model(ids[:, :-1]), ids[:, 1:]).backward()
        optimizer.step()
        optimizer.zero_grad()


def save(store: Checkpoints, step: int, made: tuple[Transformer, MuonAdamW] | None = None, keep: int = 10, **more: Any) -> Path:
    model, optimizer = made or tiny()
    meta = {"step": step, "optimizer_steps": optimizer.steps, "model": model.config.to_dict()} | more
    return store.save(model, optimizer, meta, single(), keep)


def names(store: Checkpoints) -> list[str]:
    return sorted(path.name for path in store.folder.iterdir())


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture
def store(tmp_path: Path) -> Checkpoints:
    return Checkpoints(tmp_path / "run" / "base")


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600)])
def test_every_file_has_the_permissions_of_the_umask(store: Checkpoints, umask: int, mode: int) -> None:
    """The weights too, which the safetensors package makes private."""
    before = os.umask(umask)
    try:
        step = save(store, 1)
    finally:
        os.umask(before)
    assert {path.name: path.stat().st_mode & 0o777 for path in step.iterdir()} == dict.fromkeys(FILES, mode)


@pytest.fixture
def two_steps(store: Checkpoints) -> Checkpoints:
    """Steps 5 and 10, both good."""
    save(store, 5)
    save(store, 10)
    return store


def test_save_and_resume_equal_going_straight_on(store: Checkpoints) -> None:
    straight = tiny()
    train(*straight, range(6))
    stopped = tiny()
    train(*stopped, range(3))
    save(store, 3, stopped)
    newest = store.newest()
    assert newest is not None and newest.step == 3
    model, optimizer = tiny(seed=7)
    newest.load_model(model)
    newest.load_optimizer(optimizer)
    assert optimizer.steps == 3
    train(model, optimizer, range(3, 6))
    assert all(torch.equal(one, other) for one, other in zip(model.parameters(), straight[0].parameters(), strict=True))


def test_read_model_needs_nothing_but_the_folder(store: Checkpoints) -> None:
    model, optimizer = tiny(seed=3)
    save(store, 1, (model, optimizer))
    read = verify(store.folder / "step_000001").read_model()
    ids = torch.arange(16)[None]
    assert read.config == model.config
    assert torch.equal(read(ids), model(ids))


def test_a_model_that_does_not_fit_into_memory_is_refused(store: Checkpoints, monkeypatch: pytest.MonkeyPatch) -> None:
    save(store, 1, tiny(seed=3))
    monkeypatch.setattr(memory, "available", lambda: memory.Memory(10_000))
    with pytest.raises(PreflightError, match=r"needs .* GB of memory; 0\.0 GB are free"):
        verify(store.folder / "step_000001").read_model()


def test_a_step_holds_the_named_files_and_no_pickle(store: Checkpoints) -> None:
    folder = save(store, 1)
    assert sorted(path.name for path in folder.iterdir()) == sorted(FILES)
    assert json.loads((folder / "meta.json").read_text())["step"] == 1


def test_nothing_saved(store: Checkpoints) -> None:
    assert store.newest() is None and store.steps() == []
    with pytest.raises(DataError, match="no complete checkpoint"):
        verify(store.folder / "step_000001")


@pytest.mark.parametrize("name", FILES)
def test_one_flipped_bit_refuses_the_step(name: str, two_steps: Checkpoints, capsys: pytest.CaptureFixture[str]) -> None:
    path = two_steps.folder / "step_000010" / name
    good = bytearray(path.read_bytes())
    for place in sorted({*range(0, len(good), max(len(good) // 12, 1)), len(good) - 1}):
        bad = bytearray(good)
        bad[place] ^= 1 << (place % 8)
        path.write_bytes(bad)
        newest = two_steps.newest()
        assert newest is not None and newest.step == 5, f"{name}, byte {place}"
        assert "warning:" in capsys.readouterr().err
    path.write_bytes(good)
    newest = two_steps.newest()
    assert newest is not None and newest.step == 10
    assert capsys.readouterr().err == ""


def test_every_byte_of_the_manifest_counts(store: Checkpoints) -> None:
    """Its own seal covers it: no flip is read as the same manifest."""
    path = save(store, 1) / "manifest.json"
    good = path.read_bytes()
    for place in range(len(good)):
        bad = bytearray(good)
        bad[place] ^= 1 << (place % 8)
        path.write_bytes(bad)
        with pytest.raises(DataError):
            verify(path.parent)


def test_two_hundred_random_flips_and_truncations_are_noticed(store: Checkpoints) -> None:
    folder, rng = save(store, 1), random.Random(7)
    for case in range(200):
        path = folder / FILES[case % len(FILES)]
        good = path.read_bytes()
        place = rng.randrange(len(good))
        bad = bytearray(good)
        bad[place] ^= 1 << rng.randrange(8)
        path.write_bytes(bad if case % 3 else good[:place])
        with pytest.raises(DataError):
            verify(folder)
        path.write_bytes(good)
    assert verify(folder).step == 1


def damage_truncate(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def damage_empty(folder: Path) -> None:
    (folder / "optimizer_00000.safetensors").write_bytes(b"")


def damage_missing(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def damage_no_manifest(folder: Path) -> None:
    (folder / "manifest.json").unlink()


def damage_odd_manifest(folder: Path) -> None:
    (folder / "manifest.json").write_text('["not", "a", "manifest"]')


def damage_other_manifest(folder: Path) -> None:
    """A valid manifest, of another step."""
    shutil.copy(folder.parent / "step_000005" / "manifest.json", folder / "manifest.json")


@pytest.mark.parametrize(
    "damage", [damage_truncate, damage_empty, damage_missing, damage_no_manifest, damage_odd_manifest, damage_other_manifest]
)
def test_a_damaged_step_is_passed_over(damage: Callable[[Path], None], two_steps: Checkpoints) -> None:
    damage(two_steps.folder / "step_000010")
    newest = two_steps.newest()
    assert newest is not None and newest.step == 5


def test_all_damaged_is_none(two_steps: Checkpoints) -> None:
    for folder in two_steps.steps():
        damage_truncate(folder)
    assert two_steps.newest() is None


@pytest.mark.parametrize("change", [{"depth": 3}, {"dim": 48, "n_head": 3, "n_kv_head": 3}, {"vocab_size": 100}, {"architecture": "qwen3"}])
def test_another_models_checkpoint_is_refused(change: dict[str, Any], store: Checkpoints) -> None:
    save(store, 1)
    model, _ = tiny(**change)
    before = [weight.detach().clone() for weight in model.parameters()]
    with pytest.raises(UsageError, match="another model"):
        verify(store.folder / "step_000001").load_model(model)
    assert all(torch.equal(one, other) for one, other in zip(before, model.parameters(), strict=True))


def test_only_the_last_ones_are_kept(store: Checkpoints) -> None:
    for step in (2, 4, 999_999, 1_000_000):
        save(store, step, keep=2)
    assert names(store) == ["step_1000000", "step_999999"]
    assert [path.name for path in store.steps()] == ["step_999999", "step_1000000"]


def test_the_best_one_is_kept_however_old(store: Checkpoints) -> None:
    for step, bpb in ((2, 1.5), (4, 1.2), (6, 1.3), (8, 1.4), (10, None)):
        save(store, step, keep=2)
        if bpb:
            store.evaluated(step, bpb)
    assert names(store) == ["best.json", "step_000004", "step_000008", "step_000010"]
    best, newest = store.best(), store.newest()
    assert best == (store.folder / "step_000004", 1.2) and newest is not None and newest.step == 10
    save(store, 12, keep=1)
    store.evaluated(12, 1.1)
    save(store, 14, keep=1)
    assert names(store) == ["best.json", "step_000012", "step_000014"]


def test_the_best_one_is_also_what_is_fallen_back_to(store: Checkpoints) -> None:
    for step in (2, 4, 6):
        save(store, step, keep=1)
        store.evaluated(step, float(step))
    damage_truncate(store.folder / "step_000006")
    newest = store.newest()
    assert newest is not None and newest.step == 2


def test_a_best_one_that_is_gone_is_forgotten(store: Checkpoints) -> None:
    save(store, 2)
    store.evaluated(2, 1.0)
    save(store, 4)
    shutil.rmtree(store.folder / "step_000002")
    assert store.best() is None
    store.evaluated(4, 9.0)
    assert store.best() == (store.folder / "step_000004", 9.0)
    (store.folder / "best.json").write_text("[")
    assert store.best() is None
    save(store, 6, keep=1)
    assert names(store) == ["best.json", "step_000006"]


def test_a_step_in_use_is_not_removed(store: Checkpoints) -> None:
    held = save(store, 2)
    store.in_use = lambda: held
    save(store, 4, keep=1)
    assert names(store) == ["step_000002", "step_000004"]


def test_a_refused_later_step_never_displaces_a_good_one(two_steps: Checkpoints) -> None:
    """Step 10 is damaged, so training went on from 5: its next step is kept although 10 is the larger number."""
    damage_truncate(two_steps.folder / "step_000010")
    save(two_steps, 7, keep=1)
    assert names(two_steps) == ["step_000007"]
    newest = two_steps.newest()
    assert newest is not None and newest.step == 7


def test_what_unfinished_saves_left_is_swept(two_steps: Checkpoints) -> None:
    unfinished = two_steps.folder / "step_000012"
    unfinished.mkdir()
    (unfinished / "model.safetensors").write_bytes(b"half")
    again = two_steps.folder / "step_000015"  # a killed save of the step that is now saved again, by more ranks than now
    again.mkdir()
    for name in (".tmp-0123", "optimizer_00001.safetensors"):
        (again / name).write_bytes(b"half")
    save(two_steps, 15)
    assert names(two_steps) == ["step_000005", "step_000010", "step_000015"]
    assert sorted(path.name for path in again.iterdir()) == sorted(FILES)
    assert verify(again).step == 15


def test_a_step_saved_again_replaces_the_old_one(store: Checkpoints) -> None:
    save(store, 5, tiny(seed=1))
    other = tiny(seed=2)
    save(store, 5, other)
    read = verify(store.folder / "step_000005").read_model()
    assert torch.equal(read.embed.weight, other[0].embed.weight)


def full_safetensors(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(tensors: object, path: Path) -> None:
        Path(path).write_bytes(b"what still fitted")
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(checkpoint, "save_file", refuse)


def full_model_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """The optimizer's file still fits."""
    written, real = [], checkpoint.save_file

    def refuse(tensors: dict[str, torch.Tensor], path: Path) -> None:
        if written:
            raise SafetensorError("I/O error: No space left on device (os error 28)")
        written.append(path)
        real(tensors, path)

    monkeypatch.setattr(checkpoint, "save_file", refuse)


def full_json(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, data: bytes | str) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(paths, "atomic_write", refuse)


@pytest.mark.parametrize("full", [full_safetensors, full_model_file, full_json])
def test_a_full_disk_keeps_the_older_steps(
    full: Callable[[pytest.MonkeyPatch], None], two_steps: Checkpoints, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = content(two_steps.folder)
    with monkeypatch.context() as patch:
        full(patch)
        with pytest.raises(PreflightError, match="disk is full while saving the checkpoint of step 15") as caught:
            save(two_steps, 15, keep=1)
    assert caught.value.hint
    assert content(two_steps.folder) == before
    save(two_steps, 15, keep=2)  # space was made
    assert names(two_steps) == ["step_000010", "step_000015"]


def test_a_folder_that_cannot_be_written(two_steps: Checkpoints, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(tensors: object, path: Path) -> None:
        raise SafetensorError("I/O error: Permission denied (os error 13)")

    monkeypatch.setattr(checkpoint, "save_file", refuse)
    with pytest.raises(PreflightError, match="cannot write"):
        save(two_steps, 15)


class Killed(BaseException):
    """The process ends here: no handler of ours runs after it."""


def test_a_kill_at_any_write_leaves_a_good_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Dies at each rename and each unlink in turn, while step 10 is saved over step 5, with and without an older try of 10."""
    moments = 0
    for half_done in (False, True):
        count = 0
        while True:
            store = Checkpoints(tmp_path / f"{half_done}-{count}")
            save(store, 5)
            if half_done:
                shutil.copytree(save(store, 10), store.folder / "old")
                damage_no_manifest(store.folder / "step_000010")
            left = [count]

            def tick(real: Callable[..., Any], left: list[int] = left) -> Callable[..., Any]:
                def call(*arguments: Any, **more: Any) -> Any:
                    if left[0] == 0:
                        raise Killed
                    left[0] -= 1
                    return real(*arguments, **more)

                return call

            with monkeypatch.context() as patch:
                patch.setattr(Path, "replace", tick(Path.replace))
                patch.setattr(shutil, "rmtree", tick(shutil.rmtree))
                try:
                    save(store, 10, keep=1)
                    finished = True
                except Killed:
                    finished = False
            newest = store.newest()
            assert newest is not None and newest.step in (5, 10)
            if finished:
                assert newest.step == 10
                break
            count += 1
            moments += 1
    assert moments >= 8
