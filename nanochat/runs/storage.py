"""Disk space of the data directory by part, and removal of what can be made again.

Never removed: runs, tokenizers, a user's own text, files that were put there by hand, and anything that a run in training uses.
"""

import contextlib
import dataclasses
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nanochat import paths
from nanochat.data.embedded import corpus
from nanochat.data.published import sets
from nanochat.data.shards import Shard, read_manifest
from nanochat.data.text import imported
from nanochat.errors import DataError, NanochatError
from nanochat.hub.assets import BUNDLE
from nanochat.runs.listing import size_on_disk
from nanochat.runs.lock import holder_of
from nanochat.runs.record import read_record

PARTS = ("data", "tokens", "tokenizer", "runs", "cache", "other")
MADE, DOWNLOADED = "made", "downloaded"  # how a part comes back: computed again, or downloaded again


@dataclasses.dataclass(frozen=True)
class Item:
    """Files of one part with one purpose. `again` is how they come back after removal: "made", "downloaded" or "" (never removed)."""

    part: str
    name: str
    bytes: int
    again: str = ""
    runs: tuple[str, ...] = ()  # that use it
    in_use: bool = False  # by a run in training
    removable: tuple[Path, ...] = ()  # files and directories, whose size is `frees`
    frees: int = 0


@dataclasses.dataclass(frozen=True)
class _Use:
    """The runs by what they use: name of a dataset or tokenizer -> runs; and the runs in training."""

    datasets: dict[str, list[str]]
    tokenizers: dict[str, list[str]]
    training: frozenset[str]

    def live(self, runs: list[str]) -> bool:
        return not self.training.isdisjoint(runs)


def list_storage() -> list[Item]:
    """Everything in the data directory, by part, the largest of each first."""
    use = _uses()
    found = [item for item in (*_data(use), *_tokens(use), *_tokenizers(use), *_runs(use), *_caches(use), *_others()) if item.bytes]
    return sorted(found, key=lambda item: (PARTS.index(item.part), -item.bytes, item.name))


def prunable(items: list[Item], downloads: bool) -> list[Item]:
    """The items that `prune` removes: what is computed again and, with `downloads`, what is downloaded again."""
    kinds = (MADE, DOWNLOADED) if downloads else (MADE,)
    return [item for item in items if item.again in kinds and item.frees and not item.in_use]


def prune(items: list[Item]) -> int:
    """Remove the removable files of `items`; returns the freed bytes. Leaves all that a run in training uses by now."""
    freed, now = 0, {(item.part, item.name): item for item in list_storage()}
    for item in items:
        current = now.get((item.part, item.name))
        if current is None or current.in_use:
            continue
        for path in current.removable:
            size = _size(path)
            _remove(path)
            freed += size
    return freed


def _remove(path: Path) -> None:
    """Remove a file, or a directory at once and as a whole, so that no half of it is left."""
    try:
        if not path.is_dir():
            path.unlink(missing_ok=True)
            return
        aside = path.parent / f"{paths.TEMPORARY}{uuid.uuid4().hex}"
        path.rename(aside)
    except OSError as error:
        raise paths.disk_error(error, f"removing {path}") from error
    shutil.rmtree(aside, ignore_errors=True)


def _uses() -> _Use:
    datasets: dict[str, list[str]] = {}
    tokenizers: dict[str, list[str]] = {}
    training = set()
    for folder in _folders(paths.runs_dir()):
        with contextlib.suppress(OSError):
            if holder_of(folder):
                training.add(folder.name)
        with contextlib.suppress(NanochatError):  # a damaged record: its run is listed, and its parts are not removed with it
            if record := read_record(folder.name):
                datasets.setdefault(record.dataset, []).append(folder.name)
                tokenizers.setdefault(record.tokenizer, []).append(folder.name)
    return _Use(datasets, tokenizers, frozenset(training))


def _folders(place: Path) -> list[Path]:
    """The directories in `place`, links and unfinished ones left out."""
    if not place.is_dir():
        return []
    return sorted(path for path in place.iterdir() if path.is_dir() and not path.is_symlink() and not path.name.startswith("."))


def _size(path: Path) -> int:
    """Bytes of a file or of all files in a directory."""
    return size_on_disk(path) if path.is_dir() else path.stat().st_size


def _item(part: str, path: Path, again: str, runs: list[str], live: bool, removable: tuple[Path, ...]) -> Item:
    return Item(part, path.name, _size(path), again, tuple(runs), live, removable, sum(map(_size, removable)))


def _data(use: _Use) -> Iterator[Item]:
    for folder in _folders(paths.base_dir() / "data"):
        if folder.name == "tasks":
            for each in _folders(folder):
                yield _item("data", each, DOWNLOADED, [], bool(use.training), _indexed(each))
            continue
        runs = use.datasets.get(folder.name, [])
        # A run that begins now reads its text before it writes its record: then no dataset is removed.
        live = bool(use.training)
        if folder.name == corpus.NAME:
            yield _item("data", folder, MADE, runs, live, (folder,))
        elif folder.name.startswith(imported.PREFIX):
            yield _item("data", folder, "", runs, live, ())
        else:
            yield _item("data", folder, DOWNLOADED, runs, live, _downloaded(folder))


def _downloaded(folder: Path) -> tuple[Path, ...]:
    """The shards that this program downloaded, by the manifest; those that were put there by hand may be the only copy."""
    try:
        dataset = read_manifest(folder)
    except DataError:
        return ()
    shards: tuple[Shard, ...] = (*dataset.training, dataset.validation)
    return tuple(shard.path for shard in shards if shard.downloaded and shard.path.is_file() and not shard.path.is_symlink())


def _indexed(folder: Path) -> tuple[Path, ...]:
    """The files of a downloaded set and their index, which names what was downloaded."""
    return tuple(path for path in (*sets.downloaded_files(folder), folder / sets.INDEX) if path.is_file() and not path.is_symlink())


def _tokens(use: _Use) -> Iterator[Item]:
    for folder in _folders(paths.base_dir() / "tokens"):
        runs = use.tokenizers.get(folder.name, [])
        rows = tuple(path for each in _folders(folder) for path in sorted(each.glob("*.bin")) if path.is_file())
        yield _item("tokens", folder, MADE, runs, use.live(runs), rows)  # the row counts stay


def _tokenizers(use: _Use) -> Iterator[Item]:
    for folder in _folders(paths.base_dir() / "tokenizer"):
        runs = use.tokenizers.get(folder.name, [])
        yield _item("tokenizer", folder, "", runs, use.live(runs), ())


def _runs(use: _Use) -> Iterator[Item]:
    for folder in _folders(paths.runs_dir()):
        yield _item("runs", folder, "", [], folder.name in use.training, ())


def _caches(use: _Use) -> Iterator[Item]:
    cache = paths.base_dir() / "cache"
    for path in sorted(cache.iterdir()) if cache.is_dir() else []:
        if str(path) == os.environ.get("TMPDIR"):  # as in the image: of the processes that run now
            continue
        if path.is_file() or (path.is_dir() and not path.is_symlink()):
            yield _item("cache", path, MADE, [], bool(use.training), (path,))


def _others() -> Iterator[Item]:
    """The evaluation files, and what is unfinished and older than a day, which no process writes any more."""
    bundle = paths.base_dir() / BUNDLE
    if bundle.is_dir() and not bundle.is_symlink():
        yield _item("other", bundle, "", [], False, ())
    old = tuple(paths.stale())
    size = sum(map(_size, old))
    yield Item("other", "unfinished files", size, MADE, (), False, old, size)


def to_json(items: list[Item]) -> dict[str, Any]:
    """The items and their sums, for `disk --json`."""
    base = paths.base_dir()
    present = next((path for path in (base, *base.parents) if path.is_dir()), Path("/"))
    listed = [
        {"part": item.part, "name": item.name, "bytes": item.bytes, "again": item.again, "prunable_bytes": item.frees}
        | {"runs": list(item.runs), "in_use": item.in_use}
        for item in items
    ]
    value = {"directory": str(base), "bytes": sum(item.bytes for item in items), "free_bytes": shutil.disk_usage(present).free}
    return value | {"parts": {part: sum(item.bytes for item in items if item.part == part) for part in PARTS}, "items": listed}
