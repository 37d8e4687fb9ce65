"""Import of a directory as a run: of one that `export --to hf` wrote."""

import os
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from nanochat import paths, untrusted
from nanochat.console import log
from nanochat.errors import DataError, UsageError
from nanochat.export import vocabulary
from nanochat.export.folder import ABOUT, FORMAT, WEIGHTS
from nanochat.export.weights import fill, hf_shapes
from nanochat.hardware.memory import require_memory
from nanochat.hub.download import require_space
from nanochat.model.build import allocate_model
from nanochat.model.scaling import GPTConfig, count_parameters
from nanochat.model.transformer import Transformer
from nanochat.runs import record as runs
from nanochat.runs.checkpoint import import_checkpoint
from nanochat.runs.step_files import checked_meta, checked_run, tensor_shapes
from nanochat.tokenizer.tokenizer import Tokenizer

IMPORTED = ("stage", "step", "steps", "trial", "model", "tokenizer", "optimizer_steps", "skipped", "turn")  # keys of the metadata


def import_folder(folder: Path, run: str | None = None) -> str:
    """Import a directory of `write_folder` as the run `run` (default: its old name) and return the name.

    The directory is untrusted, so all of it is checked, and the run appears in one rename. Raises DataError if it is damaged or not such
    an export, UsageError if a run of that name exists, PreflightError if memory or disk space is insufficient.
    """
    try:
        meta, tokenizer, old_name = _read_about(folder)
        name = runs.plain_name(run) if run else checked_run(old_name)
        target = paths.run_dir(name)
        if os.path.lexists(target):
            raise _run_exists(name)
        gpt = GPTConfig.from_dict(meta["model"])
        model = _read_model(untrusted.inside(folder, WEIGHTS), gpt)
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise DataError(
            f"{folder} is not an export of `nanochat export --to hf`: {untrusted.reason(error)}", "export the run again"
        ) from error
    try:
        require_space(f"importing {folder}", 4 * count_parameters(gpt)["total"], target)
        tokenizer.save(paths.tokenizer_dir(tokenizer.id))
        with paths.atomic_folder(target, exclusive=True) as temporary:
            import_checkpoint(temporary / meta["stage"], model, meta | {"run": name, "imported": True})
    except FileExistsError as error:
        raise _run_exists(name) from error
    except OSError as error:
        raise paths.disk_error(error, f"importing into {target}") from error
    log(f"imported {folder} as the run {name}")
    return name


def _run_exists(name: str) -> UsageError:
    return UsageError(f"a run {name!r} exists already", "choose another name with --run NEW")


def _read_about(folder: Path) -> tuple[dict[str, Any], Tokenizer, Any]:
    """(checkpoint metadata, tokenizer, run's name) of a received directory, all checked. Raises ValueError, OSError."""
    about = untrusted.table(untrusted.read_json(untrusted.inside(folder, ABOUT)), ABOUT)
    meta = {name: value for name, value in checked_meta(about["meta"]).items() if name in IMPORTED}
    for name in ("stage", "tokenizer", "model"):
        if name not in meta:
            raise ValueError(f"{ABOUT} has no {name}")
    gpt, tokenizer = GPTConfig.from_dict(meta["model"]), vocabulary.read_tokenizer(untrusted.inside(folder, "tokenizer.json"))
    if about["format"] != FORMAT or tokenizer.id != meta["tokenizer"] or tokenizer.vocab_size != gpt.vocab_size:
        raise ValueError("its tokenizer or its format does not match")
    return meta, tokenizer, about["run"]


def _read_model(path: Path, gpt: GPTConfig) -> Transformer:
    """A model with the weights of an exported file. Raises ValueError if one is missing, left over or of another shape."""
    saved = tensor_shapes(path)
    if gpt.depth > len(saved):  # checked before the layers are built
        raise ValueError(f"{len(saved)} weights are too few for {gpt.depth} layers")
    for name, shape in hf_shapes(gpt).items():
        if (found := saved.pop(name, None)) != shape:
            raise ValueError(f"{name} is {found}, not {shape}")
    if saved:
        raise ValueError(f"unknown weights {', '.join(sorted(map(untrusted.shown, saved))[:10])}")
    require_memory("importing this model", 4 * count_parameters(gpt)["total"])
    model = allocate_model(gpt)
    with safe_open(path, "pt") as file:
        fill(model, file.get_tensor)
    return model
