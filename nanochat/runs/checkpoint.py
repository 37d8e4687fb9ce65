"""Crash-safe checkpoints: a crash leaves the older ones intact, and only a step whose hashes are right is loaded.

    runs/<run>/<stage>/step_000100/  model.safetensors, optimizer_00000.safetensors (one per rank), meta.json, manifest.json

Each file is written to a temporary name, synced and renamed. The manifest, with the hashes of all files and of itself, comes last. A
step without a valid manifest does not exist.
"""

import contextlib
import errno
import fcntl
import re
import shutil
import uuid
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from nanochat import paths, untrusted
from nanochat.console import log
from nanochat.distributed.ranks import Ranks
from nanochat.errors import DataError, NewerFormat, UsageError
from nanochat.hardware.memory import require_memory
from nanochat.model.build import allocate_model
from nanochat.model.optim import MuonAdamW
from nanochat.model.scaling import GPTConfig, count_parameters
from nanochat.model.transformer import Transformer
from nanochat.runs.names import MANIFEST, step_dir
from nanochat.runs.step_files import (
    META,
    MODEL,
    check_sizes,
    checked_manifest,
    checked_meta,
    saving,
    sealed_manifest,
    tensor_shapes,
)

STEP = re.compile(r"step_(\d{6,12})")  # a step's folder
OPTIMIZER = "optimizer_"  # its state's files begin so
BEST = "best.json"  # beside the steps: which of them had the fewest bits per byte


@dataclass(frozen=True)
class Checkpoint:
    """One complete, verified step."""

    folder: Path
    meta: dict[str, Any]
    files: tuple[str, ...]
    digest: str = ""  # the manifest's hash, which covers all files

    @property
    def step(self) -> int:
        """Number of completed steps of the stage."""
        return int(self.meta["step"])

    @property
    def has_optimizer(self) -> bool:
        """Whether the optimizer's state was saved with it: not with an imported one."""
        return any(name.startswith(OPTIMIZER) for name in self.files)

    def read_model(self, device: torch.device | str = "cpu") -> Transformer:
        """A new model with the saved weights on `device`. Raises PreflightError if main memory does not suffice for them."""
        config = GPTConfig.from_dict(self.meta["model"])
        if torch.device(device).type == "cpu":  # without memory the system would end this process, and a server's other answers with it
            require_memory(f"the model of {self.folder.parts[-3]}", 4 * count_parameters(config)["total"])
        model = allocate_model(config, device)
        self.load_model(model)
        return model

    def load_model(self, model: Transformer) -> None:
        """Load the saved weights into `model`. Raises UsageError if the checkpoint is of another model, DataError if it is damaged."""
        expected = {name: tuple(weight.shape) for name, weight in model.named_parameters()}
        with self._reading("weights"):
            saved = tensor_shapes(self.folder / MODEL)
            if saved != expected:
                other = sorted(name for name in saved.keys() | expected.keys() if saved.get(name) != expected.get(name))
                raise UsageError(
                    f"{self.folder} is the checkpoint of another model ({other[0]} is {saved.get(other[0])}, not {expected.get(other[0])})",
                    "choose another --run, or use the options that this run was trained with (see its config.toml)",
                )
            with safe_open(self.folder / MODEL, "pt") as file, torch.no_grad():
                for name, weight in model.named_parameters():
                    weight.copy_(file.get_tensor(name))

    @contextlib.contextmanager
    def _reading(self, what: str) -> Iterator[None]:
        """Turn any error of reading the step's `what` from damaged files into DataError."""
        try:
            yield
        except (OSError, SafetensorError, ValueError, KeyError, TypeError, RuntimeError) as error:
            raise DataError(
                f"the {what} in {self.folder} cannot be read: {untrusted.reason(error)}", "restore that directory, or remove it"
            ) from error

    def load_optimizer(self, optimizer: MuonAdamW) -> None:
        """Load the saved state into `optimizer`, for any number of ranks. Raises DataError if it does not match the model."""
        with self._reading("optimizer's state"):
            self._load_optimizer(optimizer)

    def _load_optimizer(self, optimizer: MuonAdamW) -> None:
        parts: dict[tuple[str, str], list[tuple[int, Path, str]]] = {}
        for path in (self.folder / name for name in self.files if name.startswith(OPTIMIZER)):
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
    """The checkpoint in `folder`, with all hashes checked. Raises DataError with the reason, NewerFormat for a newer version's."""
    try:
        manifest = untrusted.read_json(folder / MANIFEST)
        files = checked_manifest(manifest, str(folder))
        for name, entry in files.items():
            if untrusted.regular_file(untrusted.inside(folder, name)) != entry["bytes"]:
                raise DataError(f"{folder / name} is damaged")
        meta = checked_meta(untrusted.read_json(folder / META))
        check_sizes(meta, files)
        if (named := STEP.fullmatch(folder.name)) and int(named[1]) != meta["step"]:
            raise DataError(f"{folder} contains step {meta['step']}")
        for name, entry in files.items():  # last, so that no file of a wrong size is read
            if paths.sha256(folder / name) != entry["sha256"]:
                raise DataError(f"{folder / name} is damaged")
        return Checkpoint(folder, meta, tuple(files), manifest["sha256"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{folder} has no complete checkpoint ({untrusted.reason(error)})") from error


@contextlib.contextmanager
def held(folder: Path, digest: str = "") -> Iterator[None]:
    """Prevent another process from pruning the step in `folder` while the block reads it.

    Raises DataError if it was removed, or replaced by one with another manifest hash than `digest`.
    """
    with contextlib.ExitStack() as stack:
        try:
            _lock(stack.enter_context((folder / MANIFEST).open("rb")), fcntl.LOCK_SH)
            if digest and untrusted.read_json(folder / MANIFEST)["sha256"] != digest:
                raise ValueError("it was replaced by another one")
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise StepGone(f"{folder} was removed before it was read ({untrusted.reason(error)})", "run the same command again") from error
        yield


class StepGone(DataError):
    """A step was removed between listing and reading."""


def _lock(file: IO[bytes], kind: int) -> bool:
    """Lock a manifest; False if another process holds it. True on a file system without locks."""
    try:
        fcntl.flock(file, kind)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EBADF):
            raise
    return True


def _remove(folder: Path) -> None:
    """Remove a step's directory, unless another process holds it; it is then removed after a later save."""
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):  # an unfinished step has no manifest
            if not _lock(stack.enter_context((folder / MANIFEST).open("r+b")), fcntl.LOCK_EX | fcntl.LOCK_NB):
                return
        shutil.rmtree(folder, ignore_errors=True)


class Checkpoints:
    """The checkpoints of one stage of one run."""

    def __init__(self, folder: Path, in_use: Callable[[], Path | None] = lambda: None):
        """`in_use` returns a step that is being uploaded, which is not removed."""
        self.folder, self.in_use = folder, in_use

    def steps(self) -> list[Path]:
        """Directories of finished steps, oldest first, not verified."""
        if not self.folder.is_dir():
            return []
        found = (path for path in self.folder.iterdir() if STEP.fullmatch(path.name))
        return sorted((path for path in found if (path / MANIFEST).exists()), key=lambda path: int(path.name[5:]))

    def newest(self) -> Checkpoint | None:
        """The newest verified step, or None; damaged ones are skipped with a warning. Raises NewerFormat."""
        tried: set[Path] = set()
        while untried := [folder for folder in reversed(self.steps()) if folder not in tried]:
            for folder in untried:
                tried.add(folder)
                try:
                    return verify(folder)
                except NewerFormat:  # it is not damaged: training from an older step would remove it
                    raise
                except DataError as error:
                    if not (folder / MANIFEST).exists():  # pruned by a training run, which has saved newer steps
                        break
                    log(f"warning: {error.message}; falling back to the step before it")
        return None

    def best(self) -> tuple[Path, float] | None:
        """(step with the lowest bits per byte, its bits per byte); None if no step was evaluated or it was removed."""
        try:
            told = untrusted.read_json(self.folder / BEST)
            folder, bpb = self.folder / str(told["step"]), float(told["bpb"])
        except (OSError, ValueError, KeyError, TypeError, OverflowError):
            return None
        return (folder, bpb) if folder in self.steps() else None

    def evaluated(self, step: int, bpb: float) -> None:
        """Record the saved `step` if it is the best so far; the best step is never pruned."""
        best = self.best()
        if best is None or bpb <= best[1]:
            try:
                paths.atomic_write_json(self.folder / BEST, {"step": step_dir(self.folder, step).name, "bpb": bpb})
            except OSError as error:
                log(f"warning: cannot write {BEST}, which records step {step} as the best: {error}")

    def save(self, model: Transformer, optimizer: MuonAdamW, meta: dict[str, Any], ranks: Ranks, keep: int) -> Path:
        """Write a step (called on every rank), then remove all but the newest `keep` and the best.

        Raises PreflightError if the disk is full or cannot be written; older steps are not changed.
        """
        folder = step_dir(self.folder, meta["step"])
        try:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / MANIFEST).unlink(missing_ok=True)  # it no longer speaks for what is being written
            files = dict([_write_tensors(folder, f"{OPTIMIZER}{ranks.rank:05d}.safetensors", optimizer.state_tensors())])
            if ranks.main:
                files |= dict([_write_tensors(folder, MODEL, _weights(model))])
                paths.atomic_write_json(folder / META, meta)
                files[META] = _entry(folder / META)
            every = {name: entry for part in ranks.gather_objects(files) for name, entry in part.items()}
            if ranks.main:
                paths.fsync_dir(self.folder)
                paths.atomic_write_json(folder / MANIFEST, sealed_manifest(every))
            ranks.gather_objects(None)  # no rank leaves before the step exists, because the first to exit stops the others
        except OSError as error:
            if ranks.world_size == 1:
                shutil.rmtree(folder, ignore_errors=True)
            raise paths.disk_error(error, f"saving the checkpoint of step {meta['step']}") from error
        if ranks.main:
            self._prune(folder, every, keep)
        return folder

    def _prune(self, saved: Path, files: Collection[str], keep: int) -> None:
        """Remove old steps, damaged steps after `saved` (valid ones would have been resumed), and remains of unfinished saves."""
        finished = self.steps()
        valid, best = finished[: finished.index(saved) + 1], self.best()
        kept = [*valid[-keep:], self.in_use(), *([best[0]] if best and best[0] in valid else [])]
        for folder in self.folder.iterdir():
            if folder not in kept and (STEP.fullmatch(folder.name) or folder.name.startswith(paths.TEMPORARY)) and folder.is_dir():
                _remove(folder)
        for path in saved.iterdir():
            if path.name not in (MANIFEST, *files):
                path.unlink(missing_ok=True)


def import_checkpoint(stage: Path, model: Transformer, meta: dict[str, Any]) -> None:
    """Write a finished step into the directory `stage` from weights without optimizer state, so it can answer but not be resumed.

    Raises OSError if it cannot be written; the caller removes the remains.
    """
    folder = step_dir(stage, meta["step"])
    folder.mkdir(parents=True)
    files = dict([_write_tensors(folder, MODEL, _weights(model))])
    paths.atomic_write_json(folder / META, meta)
    files[META] = _entry(folder / META)
    paths.atomic_write_json(folder / MANIFEST, sealed_manifest(files))


def _weights(model: Transformer) -> dict[str, Tensor]:
    """The weights by name, in float32; bfloat16 tables are cast on the CPU, because a GPU may lack the memory."""
    weights = {name: weight.detach() for name, weight in model.named_parameters()}
    return {name: weight if weight.dtype == torch.float32 else weight.cpu().float() for name, weight in weights.items()}


def _entry(path: Path) -> dict[str, Any]:
    return {"bytes": path.stat().st_size, "sha256": paths.sha256(path)}


def _write_tensors(folder: Path, name: str, tensors: dict[str, Tensor]) -> tuple[str, dict[str, Any]]:
    """Write one safetensors file durably and return its name and manifest entry."""
    temporary = folder / f"{paths.TEMPORARY}{uuid.uuid4().hex}"
    try:
        with saving(temporary, folder / name):
            save_file({key: value.contiguous() for key, value in tensors.items()}, temporary)
        paths.fsync_file(temporary)
        entry = _entry(temporary)
        temporary.replace(folder / name)
        paths.fsync_dir(folder)
        return name, entry
    finally:
        temporary.unlink(missing_ok=True)
