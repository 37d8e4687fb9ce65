"""The dataset of a user's text, identified by the content of its files, not by their paths or times.

data/user-<hash>/        the text as a dataset
data/user-texts.json     the imports by path, each with a stamp, so that unchanged files are not hashed again
"""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

from nanochat.console import Progress
from nanochat.data.shards import MANIFEST
from nanochat.paths import atomic_write_json, dataset_dir, read_json_object, sha256
from nanochat.readers.files import File

PACKER = 1  # raise it when the same files would give other documents
INDEX = "user-texts.json"
PREFIX = "user-"  # of the directory of a user's text


def stamp(path: Path, files: Sequence[File]) -> str:
    """Eight hex digits that change when the place, the files, their sizes or times, or PACKER do."""
    digest = hashlib.sha256(f"{PACKER}\n".encode() + os.fsencode(path.resolve()) + b"\n")
    for file in files:
        found = file.path.stat()
        digest.update(os.fsencode(file.path.relative_to(path)) + f"\t{found.st_size}\t{found.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:8]


def content_folder(path: Path, files: Sequence[File], how: str) -> Path:
    """The folder of the dataset that the files' content makes, read as `how` says (column, encoding)."""
    digest = hashlib.sha256(f"{PACKER}\n{how}\n".encode())
    with Progress(f"hashing {path}", sum(file.path.stat().st_size for file in files), "bytes") as progress:
        for file in files:
            name = b"" if file.path == path else os.fsencode(file.path.relative_to(path))
            digest.update(name + f"\t{file.kind}\t{sha256(file.path, progress)}\n".encode())
    return dataset_dir(f"{PREFIX}{digest.hexdigest()[:12]}")


def known_folder(path: Path, how: str, stamped: str = "") -> Path | None:
    """The folder of the dataset that was imported from `path`, if its files have not been touched; whatever they are without `stamped`."""
    entry = _index().get(_key(path, how))
    name = entry.get("folder") if isinstance(entry, dict) and (not stamped or entry.get("stamp") == stamped) else None
    if name is None and stamped and not how:
        name = f"{PREFIX}{stamped}"  # as earlier versions named it
    folder = dataset_dir(name) if isinstance(name, str) and name.startswith(PREFIX) and "/" not in name else None
    return folder if folder and (folder / MANIFEST).exists() else None


def remember(path: Path, how: str, stamped: str, folder: Path) -> None:
    """Write down that `path` was imported into `folder`."""
    atomic_write_json(dataset_dir(INDEX), _index() | {_key(path, how): {"stamp": stamped, "folder": folder.name}})


def entries(folder: str) -> dict[str, str]:
    """The imports into the dataset `folder`, for another machine's `add_entries`: path as it is remembered -> stamp."""
    found = {key: entry for key, entry in _index().items() if isinstance(entry, dict) and entry.get("folder") == folder}
    return {key: str(entry.get("stamp")) for key, entry in found.items()}


def add_entries(folder: str, stamps: dict[str, str]) -> None:
    """Remember imports of another machine; a path that was imported here stays as it is."""
    if stamps:
        atomic_write_json(dataset_dir(INDEX), {key: {"stamp": stamp, "folder": folder} for key, stamp in stamps.items()} | _index())


def _index() -> dict[str, object]:
    return read_json_object(dataset_dir(INDEX))


def _key(path: Path, how: str) -> str:
    return f"{str(path.resolve()).encode('utf-8', 'backslashreplace').decode()} {how}".strip()
