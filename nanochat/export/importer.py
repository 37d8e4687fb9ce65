"""`import`: a received directory as a run, either one that `export --to hf` wrote or a Hugging Face directory of a Qwen3."""

import dataclasses
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from nanochat import paths, untrusted
from nanochat.console import log
from nanochat.errors import DataError, UsageError
from nanochat.export import vocabulary
from nanochat.export.folder import ABOUT, FORMAT
from nanochat.export.foreign_folder import licence, read_tokenizer
from nanochat.export.qwen3_config import CONFIG, SUPPORTED, read_config
from nanochat.export.received import Weights
from nanochat.export.weights import fill, hf_shapes
from nanochat.hardware.memory import require_memory
from nanochat.hub.download import require_space
from nanochat.model.build import allocate_model
from nanochat.model.scaling import GPTConfig, count_parameters
from nanochat.model.transformer import Transformer
from nanochat.runs.checkpoint import import_checkpoint
from nanochat.runs.names import plain_name
from nanochat.runs.step_files import ORIGIN_TEXT, checked_meta, checked_run
from nanochat.tokenizer.foreign import KIND
from nanochat.tokenizer.tokenizer import Tokenizer

IMPORTED = ("stage", "step", "steps", "trial", "model", "tokenizer", "optimizer_steps", "skipped", "turn")  # keys of the metadata
HEAD = "lm_head.weight"


@dataclass(frozen=True)
class Received:
    """A directory whose metadata and tokenizer were read and checked; its weights only by their headers."""

    name: str  # of the run, unless the user names another
    meta: dict[str, Any]
    tokenizer: Tokenizer
    gpt: GPTConfig
    weights: Weights


def import_folder(folder: Path, run: str | None = None, context: int = 0) -> str:
    """Import a directory as the run `run` (default: the name that it had, or the directory's) and return the name.

    `context` shortens a Qwen3's context to so many tokens (0: the model's own), because a long one needs much memory for each answer.
    The directory is untrusted, so all of it is checked, and the run appears in one rename. Raises DataError if it is damaged or of a kind
    that is not supported, UsageError if a run of that name exists, PreflightError if memory or disk space is insufficient.
    """
    own = os.path.lexists(folder / ABOUT)
    if not os.path.isdir(folder):
        raise DataError(f"there is no directory {folder}", "name a directory that an export with --to hf or Hugging Face's tools wrote")
    if not own and not os.path.lexists(folder / CONFIG):
        message = f"{folder} is not an export with --to hf, and has no {CONFIG} of a Hugging Face model"
        raise DataError(message, "name the directory that holds config.json, model.safetensors and tokenizer.json")
    with _reading(folder, own):
        if own and context:
            raise UsageError("--max_seq_len is for other models than this project's exports", "leave out --max_seq_len")
        received = _read_own(folder) if own else _read_qwen3(folder, run, context)
        name = plain_name(run) if run else checked_run(received.name)
        target = paths.run_dir(name)
        if os.path.lexists(target):
            raise _run_exists(name)
        model = _read_model(received.weights, received.gpt)
    try:
        require_space(f"importing {folder}", 4 * count_parameters(received.gpt)["total"], target)
        received.tokenizer.save(paths.tokenizer_dir(received.tokenizer.id))
        with paths.atomic_folder(target, exclusive=True) as temporary:
            import_checkpoint(temporary / received.meta["stage"], model, received.meta | {"run": name, "imported": True})
    except FileExistsError as error:
        raise _run_exists(name) from error
    except OSError as error:
        raise paths.disk_error(error, f"importing into {target}") from error
    log(f"imported {folder} as the run {name}; licence: {received.meta['origin']['licence']}")
    return name


@contextmanager
def _reading(folder: Path, own: bool) -> Iterator[None]:
    """Turn errors of reading damaged files into DataError."""
    try:
        yield
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        if own:
            message, hint = f"{folder} is not an export with --to hf", "export the run again"
        else:
            message, hint = f"{folder} cannot be imported", SUPPORTED
        raise DataError(f"{message}: {untrusted.reason(error)}", hint) from error


def _run_exists(name: str) -> UsageError:
    return UsageError(f"a run {name!r} exists already", "choose another name with --run NEW")


def _read_own(folder: Path) -> Received:
    """A directory of `export --to hf`. Raises ValueError, KeyError, OSError, DataError."""
    about = untrusted.table(untrusted.read_json(untrusted.inside(folder, ABOUT)), ABOUT)
    meta = {name: value for name, value in checked_meta(about["meta"]).items() if name in IMPORTED}
    for name in ("stage", "tokenizer", "model"):
        if name not in meta:
            raise ValueError(f"{ABOUT} has no {name}")
    gpt = GPTConfig.from_dict(meta["model"])
    tokenizer: Tokenizer
    if about.get("tokenizer") == KIND:
        tokenizer, _ = read_tokenizer(folder, untrusted.table(untrusted.read_json(untrusted.inside(folder, CONFIG)), CONFIG))
    else:
        tokenizer = vocabulary.read_tokenizer(untrusted.inside(folder, "tokenizer.json"))
    if about["format"] != FORMAT or tokenizer.id != meta["tokenizer"] or tokenizer.vocab_size != gpt.vocab_size:
        raise ValueError("its tokenizer or its format does not match")
    text = untrusted.text(about.get("licence", "unknown"), "licence", ORIGIN_TEXT)
    origin = {"name": f"an export of the run {checked_run(about['run'])}", "licence": text if text.isprintable() else "unknown"}
    return Received(about["run"], meta | {"origin": origin}, tokenizer, gpt, Weights(folder))


def _read_qwen3(folder: Path, run: str | None, context: int) -> Received:
    """A Hugging Face directory of a Qwen3. Raises ValueError, KeyError, OSError, DataError, UsageError."""
    config, gpt = read_config(folder)
    if not 0 <= context <= gpt.max_seq_len:
        raise UsageError(f"--max_seq_len={context} is out of range", f"use at most the model's context, --max_seq_len={gpt.max_seq_len}")
    gpt = dataclasses.replace(gpt, max_seq_len=context or gpt.max_seq_len)
    weights = Weights(folder)
    _require_shapes(weights, gpt)  # first, because a vocabulary takes time to read
    name = folder.resolve().name
    if run is None:
        try:
            checked_run(name)
        except ValueError as error:
            raise UsageError(f"the directory's name is no run's name: {error}", "name the run with --run NAME") from error
    tokenizer, chats = read_tokenizer(folder, config)
    origin = {"name": name[:ORIGIN_TEXT] if name.isprintable() else "a directory", "licence": licence(folder)}
    stage = "sft" if chats else "base"
    meta = {"stage": stage, "step": 0, "trial": False, "model": gpt.to_dict(), "tokenizer": tokenizer.id, "origin": origin}
    return Received(name, meta, tokenizer, gpt, weights)


def _require_shapes(weights: Weights, gpt: GPTConfig) -> None:
    """Raise ValueError if a weight is missing, left over or of another shape, by the files' headers."""
    saved = dict(weights.shapes)
    if gpt.depth > len(saved):  # checked before the layers are built
        raise ValueError(f"{len(saved)} weights are too few for {gpt.depth} layers")
    expected = hf_shapes(gpt)
    if gpt.tied and saved.get(HEAD) == (gpt.vocab_size, gpt.dim):  # a second copy of the embedding, which some files have
        del saved[HEAD]
    for name, shape in expected.items():
        if (found := saved.pop(name, None)) != shape:
            raise ValueError(f"{name} is {found}, not {shape}" if found is not None else f"the weight {name} is missing")
    if saved:
        raise ValueError(f"unknown weights {', '.join(sorted(map(untrusted.shown, saved))[:10])}")


def _read_model(weights: Weights, gpt: GPTConfig) -> Transformer:
    """A model with the received weights. Raises ValueError as `_require_shapes`."""
    _require_shapes(weights, gpt)
    require_memory("importing this model", 4 * count_parameters(gpt)["total"])
    model = allocate_model(gpt)
    fill(model, weights.read)
    return model
