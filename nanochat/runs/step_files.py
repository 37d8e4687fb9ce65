"""Validation of a step's JSON and safetensors files, before any path, size or model follows from them.

A step may come from a mirror or another machine, so nothing in it is trusted. Every function raises ValueError.
"""

import hashlib
import json
import math
import os
import re
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from nanochat import untrusted
from nanochat.config import Config
from nanochat.errors import UsageError
from nanochat.model.scaling import GPTConfig, count_parameters
from nanochat.runs.metrics import STAGES
from nanochat.untrusted import integer, regular_file, shown

FORMAT = 1  # version of a step's files; a manifest without a number has the first one
MODEL = "model.safetensors"
META = "meta.json"
HEADER_BYTES = 16 << 20  # limit for a safetensors file's header: names, types and shapes
ITEM_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
OPTIMIZER_BYTES = 8  # limit per parameter: AdamW's two moments in float32
ORIGIN_TEXT = 300  # characters of an imported model's name and licence
COUNTS = ("step", "optimizer_steps", "skipped", "loss_scale", "loss_scale_steps")


def seal(manifest: dict[str, Any]) -> str:
    """The hash of a manifest's content, of its files alone if it has no format number."""
    content = {key: manifest[key] for key in ("format", "files")} if "format" in manifest else manifest["files"]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def sealed_manifest(files: dict[str, Any]) -> dict[str, Any]:
    """The manifest of a step with these files."""
    manifest = {"format": FORMAT, "files": files}
    return manifest | {"sha256": seal(manifest)}


def checked_manifest(value: Any, what: str) -> dict[str, dict[str, Any]]:
    """The files of a manifest: plain name -> {bytes, sha256}. Raises NewerFormat, naming `what`, for a step of a newer version."""
    manifest = untrusted.table(value, "the manifest")
    if seal(manifest) != manifest["sha256"]:
        raise ValueError("the manifest's hash differs")
    untrusted.require_format(manifest.get("format", 1), FORMAT, what)
    files = untrusted.table(untrusted.table(value, "the manifest")["files"], "files")
    for name, entry in files.items():
        untrusted.file_name(name)
        integer(untrusted.table(entry, name)["bytes"], f"the size of {name}")
        untrusted.sha256(entry["sha256"], f"the hash of {name}")
    for name in (MODEL, META):
        if name not in files:
            raise ValueError(f"the manifest lacks {name}")
    return files


def checked_meta(value: Any) -> dict[str, Any]:
    """A checkpoint's metadata with all known values checked; values that older versions do not write may be missing."""
    meta = untrusted.table(value, META)
    integer(meta["step"], "step", high=10**12)
    for name in meta.keys() & set(COUNTS):
        integer(meta[name], name)
    if "stage" in meta and meta["stage"] not in STAGES:
        raise ValueError(f"stage is {shown(meta['stage'])}, not one of {', '.join(STAGES)}")
    if "run" in meta:
        checked_run(meta["run"])
    if "tokenizer" in meta:
        untrusted.file_name(meta["tokenizer"], "tokenizer")
    for name in meta.keys() & {"trial", "imported"}:
        if not isinstance(meta[name], bool):
            raise ValueError(f"{name} is {shown(meta[name])}, not true or false")
    if "turn" in meta and not (isinstance(meta["turn"], list) and all(_is_number(number) for number in meta["turn"])):
        raise ValueError(f"turn is {shown(meta['turn'])}, not a list of numbers")
    if "origin" in meta:
        origin = untrusted.table(meta["origin"], "origin")
        for name in ("name", "licence"):
            if not untrusted.text(origin[name], name, ORIGIN_TEXT).isprintable():
                raise ValueError(f"{name} is {shown(origin[name])}, which has control characters")
    if "model" in meta:
        GPTConfig.from_dict(untrusted.table(meta["model"], "model"))
    return meta


def checked_run(value: Any) -> str:
    """Return `value` if it is a valid name of a run."""
    name = untrusted.file_name(value, "run")
    try:
        return Config(run=name).run
    except UsageError as error:
        raise ValueError(error.message) from error


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def check_sizes(meta: dict[str, Any], files: dict[str, dict[str, Any]]) -> None:
    """Raise ValueError unless the files' sizes match the model that `meta` describes."""
    if "model" not in meta:
        return
    parameters = count_parameters(GPTConfig.from_dict(meta["model"]))["total"]
    for name, entry in files.items():
        least, most = 0, untrusted.JSON_BYTES
        if name == MODEL:
            least, most = 4 * parameters, 4 * parameters + HEADER_BYTES
        elif name.endswith(".safetensors"):
            most = OPTIMIZER_BYTES * parameters + HEADER_BYTES
        if not least <= entry["bytes"] <= most:
            raise ValueError(f"{name} has {entry['bytes']:,} bytes, which do not match a model of {parameters:,} parameters")


def tensor_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """The shape of each tensor in a safetensors file, from its header. Checks that all are floating-point and fill the file."""
    size = regular_file(path)
    with path.open("rb") as file:
        prefix = file.read(8)
        length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else size
        if not 2 <= length <= min(HEADER_BYTES, size - 8):
            raise ValueError(f"{path.name} is not a safetensors file (header of {length:,} bytes)")
        header = untrusted.table(untrusted.parse_json(file.read(length).decode("utf-8")), "the header")
    for key, value in untrusted.table(header.pop("__metadata__", {}), "__metadata__").items():
        untrusted.text(value, f"the metadata {shown(key)}")
    total, shapes = 0, {}
    for name, entry in header.items():
        kind, shape = untrusted.table(entry, name)["dtype"], entry["shape"]
        if kind not in ITEM_BYTES or not isinstance(shape, list) or len(shape) > 8:
            raise ValueError(f"{shown(name)} is of type {shown(kind)} and shape {shown(shape)}")
        shapes[name] = tuple(integer(number, f"the shape of {shown(name)}", high=2**40) for number in shape)
        total += math.prod(shapes[name]) * ITEM_BYTES[kind]
    if total != size - 8 - length:
        raise ValueError(f"{path.name} has {size - 8 - length:,} bytes of numbers instead of the header's {total:,}")
    return shapes


@contextmanager
def saving(file: Path, path: Path) -> Iterator[None]:
    """For a block in which safetensors writes `file`: give it the permissions of any new file, where safetensors makes it private.

    Turns safetensors' errors into OSError about `path`, whose number is only in their text.
    """
    try:
        file.touch()
        mode = file.stat().st_mode
        yield
        file.chmod(mode)
    except SafetensorError as error:
        number = re.search(r"os error (\d+)", str(error))
        code = int(number[1]) if number else 0
        raise OSError(code, os.strerror(code) if code else str(error), str(path)) from error
