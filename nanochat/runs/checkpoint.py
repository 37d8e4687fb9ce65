"""Checkpoints: written so that a crash at any moment leaves the older ones whole, and never loaded unless every byte is right.

    runs/<run>/<stage>/step_000100/  model.safetensors, optimizer_00000.safetensors (one a rank), meta.json, manifest.json

Each file is written under a temporary name, made durable and renamed; the manifest, with every file's hash and its
own, comes last. A step without a good manifest does not exist.
"""

import hashlib
import json
import os
import re
import shutil
import uuid
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from nanochat import paths
from nanochat.console import log
from nanochat.distributed.ranks import Ranks
from nanochat.errors import DataError, UsageError
from nanochat.model.build import allocate_model
from nanochat.model.optim import MuonAdamW
from nanochat.model.scaling import GPTConfig
from nanochat.model.transformer import Transformer

MANIFEST = "manifest.json"
MODEL = "model.safetensors"
META = "meta.json"
BEST = "best.json"  # beside the steps: which of them had the fewest bits per byte


def _seal(files: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class Checkpoint:
    """One complete, verified step."""

    folder: Path
    meta: dict[str, Any]
    files: tuple[str, ...]

    @property
    def step(self) -> int:
        """Steps of the stage that were done when it was saved."""
        return int(self.meta["step"])

    def read_model(self, device: torch.device | str = "cpu") -> Transformer:
        """A model with the saved weights on `device`."""
        model = allocate_model(GPTConfig.from_dict(self.meta["model"]), device)
        self.load_model(model)
        return model

    def load_model(self, model: Transformer) -> None:
        """Put the saved weights into `model`. Raises UsageError where it is another model's checkpoint."""
        expected = {name: tuple(weight.shape) for name, weight in model.named_parameters()}
        with safe_open(self.folder / MODEL, "pt") as file:
            saved = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 (no mapping)
            if saved != expected:
                other = sorted(name for name in saved.keys() | expected.keys() if saved.get(name) != expected.get(name))
                raise UsageError(
                    f"{self.folder} is the checkpoint of another model ({other[0]} is {saved.get(other[0])}, not {expected.get(other[0])})",
                    "choose another --run, or give the options that this one was trained with (its config.toml has them)",
                )
            with torch.no_grad():
                for name, weight in model.named_parameters():
                    weight.copy_(file.get_tensor(name))

    def load_optimizer(self, optimizer: MuonAdamW) -> None:
        """Put the saved state into `optimizer`, however many ranks saved it."""
        parts: dict[tuple[str, str], list[tuple[int, Path, str]]] = {}
        for path in (self.folder / name for name in self.files if name.startswith("optimizer_")):
            with safe_open(path, "pt") as file:
                for key in file.keys():  # noqa: SIM118 (no mapping)
                    name, kind, first = key.split("|")
                    parts.setdefault((name, kind), []).append((int(first), path, key))

        def read(name: str, kind: str) -> Tensor:
            tensors = []
            for _, path, key in sorted(parts[name, kind]):
                with safe_open(path, "pt") as file:
                    tensors.append(file.get_tensor(key))
            return torch.cat(tensors) if len(tensors) > 1 else tensors[0]

        optimizer.load_state(read, int(self.meta["optimizer_steps"]))


def verify(folder: Path) -> Checkpoint:
    """The checkpoint in `folder`, every hash checked. Raises DataError with what is wrong."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        if _seal(manifest["files"]) != manifest["sha256"]:
            raise DataError(f"{folder / MANIFEST} is damaged")
        for name, entry in manifest["files"].items():
            path = folder / name
            if path.stat().st_size != entry["bytes"] or paths.sha256(path) != entry["sha256"]:
                raise DataError(f"{path} is damaged")
        return Checkpoint(folder, json.loads((folder / META).read_text(encoding="utf-8")), tuple(manifest["files"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{folder} holds no complete checkpoint ({error})") from error


class Checkpoints:
    """The checkpoints of one stage of one run."""

    def __init__(self, folder: Path, in_use: Callable[[], Path | None] = lambda: None):
        """`in_use` names a step that is being copied elsewhere, and is not removed meanwhile."""
        self.folder, self.in_use = folder, in_use

    def steps(self) -> list[Path]:
        """Folders of finished steps, oldest first; unverified."""
        if not self.folder.is_dir():
            return []
        found = (path for path in self.folder.iterdir() if re.fullmatch(r"step_\d{6,}", path.name))
        return sorted((path for path in found if (path / MANIFEST).exists()), key=lambda path: int(path.name[5:]))

    def newest(self) -> Checkpoint | None:
        """The newest good step, or None; a damaged one is passed over, with a warning."""
        for folder in reversed(self.steps()):
            try:
                return verify(folder)
            except DataError as error:
                log(f"warning: {error.message}; falling back to the step before it")
        return None

    def best(self) -> tuple[Path, float] | None:
        """The step with the fewest bits per byte, and how many; None where none was evaluated or it is gone."""
        try:
            told = json.loads((self.folder / BEST).read_text(encoding="utf-8"))
            folder, bpb = self.folder / str(told["step"]), float(told["bpb"])
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return (folder, bpb) if folder in self.steps() else None

    def evaluated(self, step: int, bpb: float) -> None:
        """Remember `step`, which is saved, where no other one is better; such a step is kept however old it gets."""
        best = self.best()
        if best is None or bpb <= best[1]:
            try:
                paths.atomic_write_json(self.folder / BEST, {"step": f"step_{step:06d}", "bpb": bpb})
            except OSError as error:
                log(f"warning: that step {step} is the best so far could not be written down: {error}")

    def save(self, model: Transformer, optimizer: MuonAdamW, meta: dict[str, Any], ranks: Ranks, keep: int) -> Path:
        """Write a step (every rank calls this), then remove all but the newest `keep` and the best.

        Raises PreflightError where the disk is full or cannot be written; older steps stay as they are.
        """
        folder = self.folder / f"step_{meta['step']:06d}"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / MANIFEST).unlink(missing_ok=True)  # it no longer speaks for what is being written
            files = dict([_write_tensors(folder, f"optimizer_{ranks.rank:05d}.safetensors", optimizer.state_tensors())])
            if ranks.main:
                weights = {name: weight.detach() for name, weight in model.named_parameters()}
                files |= dict([_write_tensors(folder, MODEL, weights)])
                paths.atomic_write_json(folder / META, meta)
                files[META] = _entry(folder / META)
            every = {name: entry for part in ranks.gather_objects(files) for name, entry in part.items()}
            if ranks.main:
                paths.fsync_dir(self.folder)
                paths.atomic_write_json(folder / MANIFEST, {"files": every, "sha256": _seal(every)})
            ranks.gather_objects(None)  # nobody leaves before the step exists: the first to exit has the others stopped
        except OSError as error:
            if ranks.world_size == 1:
                shutil.rmtree(folder, ignore_errors=True)
            raise paths.disk_error(error, f"saving the checkpoint of step {meta['step']}") from error
        if ranks.main:
            self._prune(folder, every, keep)
        return folder

    def _prune(self, saved: Path, files: Collection[str], keep: int) -> None:
        """Remove old steps, steps after `saved` (refused ones, or we would have gone on from them), and what unfinished saves left."""
        finished = self.steps()
        valid, best = finished[: finished.index(saved) + 1], self.best()
        kept = [*valid[-keep:], self.in_use(), *([best[0]] if best and best[0] in valid else [])]
        for folder in self.folder.iterdir():
            if folder.is_dir() and folder not in kept:
                shutil.rmtree(folder, ignore_errors=True)
        for path in saved.iterdir():
            if path.name not in (MANIFEST, *files):
                path.unlink(missing_ok=True)


def import_checkpoint(stage: Path, model: Transformer, meta: dict[str, Any]) -> None:
    """A finished step in the folder `stage` from weights alone; it answers, but is not trained on: there is no optimizer's state."""
    folder = stage / f"step_{meta['step']:06d}"
    try:
        folder.mkdir(parents=True)
        files = dict([_write_tensors(folder, MODEL, {name: weight.detach() for name, weight in model.named_parameters()})])
        paths.atomic_write_json(folder / META, meta)
        files[META] = _entry(folder / META)
        paths.atomic_write_json(folder / MANIFEST, {"files": files, "sha256": _seal(files)})
    except OSError as error:
        shutil.rmtree(stage.parent, ignore_errors=True)
        raise paths.disk_error(error, f"importing into {stage}") from error


def _entry(path: Path) -> dict[str, Any]:
    return {"bytes": path.stat().st_size, "sha256": paths.sha256(path)}


def _write_tensors(folder: Path, name: str, tensors: dict[str, Tensor]) -> tuple[str, dict[str, Any]]:
    """Write one safetensors file durably; returns its name and its entry in the manifest."""
    temporary = folder / f"{paths.TEMPORARY}{uuid.uuid4().hex}"
    try:
        save_file({key: value.contiguous() for key, value in tensors.items()}, temporary)
        paths.fsync_file(temporary)
        entry = _entry(temporary)
        temporary.replace(folder / name)
        paths.fsync_dir(folder)
        return name, entry
    except SafetensorError as error:  # it hides the error number in its text
        number = re.search(r"os error (\d+)", str(error))
        code = int(number[1]) if number else 0
        raise OSError(code, os.strerror(code) if code else str(error), str(folder / name)) from error
    finally:
        temporary.unlink(missing_ok=True)
