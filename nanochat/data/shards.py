"""A dataset on disk: parquet shards of one column `text`, and a manifest that names, sizes and hashes them.

    data/<dataset>/shard_00000.parquet ... manifest.json

The manifest also names the validation shard, which is never trained on. Nothing here goes by "the last file".
"""

import dataclasses
import hashlib
import itertools
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from nanochat import untrusted
from nanochat.console import Progress
from nanochat.errors import DataError
from nanochat.paths import atomic_folder, atomic_write_json, disk_error, sha256
from nanochat.readers.columns import COLUMN, ROW_GROUP, find_column, text_arrays

MANIFEST = "manifest.json"
MANIFEST_BYTES = 64 << 20  # at most: some 200 bytes a shard
FORMAT = 1
SHARD_BYTES = 100_000_000  # of a shard's file, about: published ones, and those that are written here
SHARD_TEXT_BYTES = 250_000_000  # of the text in it


@dataclasses.dataclass(frozen=True)
class Shard:
    """One parquet file. `bytes` is the file's size; `text_bytes` its documents' UTF-8 bytes, 0 where nobody counted them.

    The text is in `column`.
    """

    path: Path
    bytes: int
    sha256: str
    documents: int
    text_bytes: int = 0
    column: str = COLUMN
    downloaded: bool = False  # by this program; False where somebody put it there, and in older manifests

    @property
    def content(self) -> str:
        """The hash that stands for this text: the file's, and where the column is not the usual one, that of both."""
        return self.sha256 if self.column == COLUMN else hashlib.sha256(f"{self.sha256} {self.column}".encode()).hexdigest()


@dataclasses.dataclass(frozen=True)
class Dataset:
    """Training shards, in order, and the validation shard; `source` and `licence` are for people to read."""

    name: str
    folder: Path
    source: str
    licence: str
    training: tuple[Shard, ...]
    validation: Shard

    @property
    def text_bytes(self) -> int | None:
        """UTF-8 bytes of the training text; None if they were not counted (downloaded and adopted shards)."""
        counted = [shard.text_bytes for shard in self.training]
        return sum(counted) if all(counted) else None

    def first(self, shards: int) -> "Dataset":
        """The same dataset with its first `shards` training shards only."""
        return dataclasses.replace(self, training=self.training[:shards])


def shard_name(index: int) -> str:
    """File name of shard `index`, as upstream's datasets have it: shard_00042.parquet."""
    return f"shard_{index:05d}.parquet"


def mend(name: str, folder: Path) -> str:
    """The hint for a dataset that is incomplete or broken: what restores it. `name` may be its folder's name too."""
    if name.startswith(("user-", "mixture-")) or name == "embedded":
        return f"remove the directory {folder}, if it is there, and run the run's `train` command, which creates it again"
    if name.startswith("hf--"):  # see `Origin.folder`
        name = "hf:" + name.removeprefix("hf--").replace("--", "/", 1).replace("--", ":", 1).replace("+", "/", 1)
    return f"run `nanochat download --dataset {name}` to download what is missing"


# --- the manifest


def write_manifest(dataset: Dataset) -> None:
    """Write `dataset`'s manifest into its folder, atomically."""
    atomic_write_json(dataset.folder / MANIFEST, _manifest(dataset))


def _manifest(dataset: Dataset) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "name": dataset.name,
        "source": dataset.source,
        "licence": dataset.licence,
        "validation": _entry(dataset.validation),
        "training": [_entry(shard) for shard in dataset.training],
    }


def _entry(shard: Shard) -> dict[str, Any]:
    return {"file": shard.path.name} | {key: value for key, value in dataclasses.asdict(shard).items() if key != "path"}


def read_manifest(folder: Path) -> Dataset:
    """The dataset that the manifest in `folder` describes, its files not looked at. Raises DataError if it is missing or broken."""
    path = folder / MANIFEST
    try:
        found = untrusted.table(untrusted.read_json(path, MANIFEST_BYTES), "the manifest")
        untrusted.require_format(found["format"], FORMAT, str(path))
        return Dataset(
            name=untrusted.text(found["name"], "name"),
            folder=folder,
            source=untrusted.text(found["source"], "source", 5000),
            licence=untrusted.text(found["licence"], "licence"),
            training=tuple(_shard(folder, entry) for entry in found["training"]),
            validation=_shard(folder, found["validation"]),
        )
    except FileNotFoundError:
        raise DataError(f"no dataset in {folder}: {MANIFEST} is missing", mend(folder.name, folder)) from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        hint = f"remove {path}; then {mend(folder.name, folder)}"
        raise DataError(f"the manifest {path} cannot be read ({type(error).__name__}: {untrusted.reason(error)})", hint) from error


def _shard(folder: Path, entry: dict[str, Any]) -> Shard:
    name = untrusted.file_name(untrusted.table(entry, "a shard")["file"])
    size, documents = (untrusted.integer(entry[key], f"{key} of {name}") for key in ("bytes", "documents"))
    digest = untrusted.sha256(entry["sha256"], f"the hash of {name}")  # names files, too: of the rows that are packed from it
    text_bytes = untrusted.integer(entry.get("text_bytes", 0), f"text_bytes of {name}")
    column, downloaded = untrusted.text(entry.get("column", COLUMN), f"column of {name}"), entry.get("downloaded") is True
    return Shard(folder / name, size, digest, documents, text_bytes, column, downloaded)


def open_dataset(folder: Path) -> Dataset:
    """The dataset in `folder`, every file there and of the right size. Raises DataError that names the file and what mends it."""
    dataset = read_manifest(folder)
    if not dataset.training:
        raise DataError(f"the dataset in {folder} has no training shard", mend(dataset.name, folder))
    if dataset.validation.path in {shard.path for shard in dataset.training}:
        raise DataError(f"the manifest in {folder} names its validation shard as a training shard too", mend(dataset.name, folder))
    for shard in (*dataset.training, dataset.validation):
        if wrong := damage(shard):
            raise DataError(wrong, mend(dataset.name, folder))
    return dataset


def damage(shard: Shard) -> str | None:
    """The damage that a file's metadata shows (missing, wrong size), or None."""
    try:
        size = untrusted.regular_file(shard.path)
    except ValueError as error:
        return f"{shard.path}: {error}"
    except OSError as error:
        return f"{shard.path} is missing" if isinstance(error, FileNotFoundError) else f"{shard.path}: {error.strerror}"
    return None if size == shard.bytes else f"{shard.path} has {size} bytes instead of {shard.bytes}"


def verify(dataset: Dataset) -> None:
    """Hash every file again. Raises DataError at the first that differs from the manifest."""
    shards = (*dataset.training, dataset.validation)
    with Progress(f"verifying {dataset.name}", sum(shard.bytes for shard in shards), "bytes") as progress:
        for shard in shards:
            wrong = damage(shard)
            if not wrong and sha256(shard.path, progress) != shard.sha256:
                wrong = f"{shard.path} is corrupt: its hash is not the manifest's"
            if wrong:
                raise DataError(wrong, f"remove {shard.path}; then {mend(dataset.name, dataset.folder)}")


# --- reading


def texts(shard: Shard | Path) -> Iterator[list[str]]:
    """The shard's documents, in order, some `ROW_GROUP` at a time; nulls are left out. Raises DataError if it cannot be read."""
    for column in columns(shard):
        yield column.to_pylist()


def columns(shard: Shard | Path) -> Iterator[Any]:
    """The same as pyarrow's arrays, their UTF-8 checked: what needs no str is spared making them."""
    if isinstance(shard, Shard):
        hint = f"remove {shard.path}; then {mend(shard.path.parent.name, shard.path.parent)}"
        arrays = text_arrays(shard.path, shard.column, hint=hint)
    else:
        arrays = text_arrays(shard, COLUMN)
    return (values.drop_null() for values in arrays)


def inspect(path: Path, digest: str | None = None, progress: Progress | None = None, column: str = "") -> Shard:
    """The Shard that a parquet file is: footer read, hashed unless `digest` is given; the text's column is found unless named.

    Raises DataError if it is not one of text.
    """
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            column = find_column(file.schema_arrow, path, column)
            documents = file.metadata.num_rows
        return Shard(path, path.stat().st_size, digest or sha256(path, progress), documents, column=column)
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(
            f"{path} is not a complete parquet file: {untrusted.reason(error)}",
            f"remove {path} and put a good copy there, or download it again",
        ) from error


# --- writing


def write_dataset(
    folder: Path,
    *,
    name: str,
    source: str,
    licence: str,
    training: Iterable[str],
    validation: Iterable[str],
    shard_bytes: int = SHARD_BYTES,
) -> Dataset:
    """Write documents as shards of about `shard_bytes` each, and the manifest; `folder` appears whole or not at all.

    Both iterables are streamed. Raises DataError if either is empty, PreflightError where the disk refuses.
    """
    try:
        with atomic_folder(folder) as temporary:
            held_out = _write_shards(temporary, itertools.repeat("validation.parquet"), validation, None)
            shards = _write_shards(temporary, map(shard_name, itertools.count()), training, shard_bytes)
            if not held_out or not shards:
                raise DataError(f"{source}: no text for {'training' if held_out else 'validation'}", "add more text")
            atomic_write_json(temporary / MANIFEST, _manifest(Dataset(name, temporary, source, licence, tuple(shards), held_out[0])))
    except OSError as error:
        raise disk_error(error, f"writing the dataset {name}") from error
    return open_dataset(folder)


def _write_shards(folder: Path, names: Iterator[str], documents: Iterable[str], shard_bytes: int | None) -> list[Shard]:
    """Write `documents` as zstd parquet in row groups of ROW_GROUP, a new file whenever one has reached `shard_bytes`."""
    import pyarrow
    import pyarrow.parquet

    schema = pyarrow.schema([(COLUMN, pyarrow.string())])
    source, shards = iter(documents), []
    batch = list(itertools.islice(source, ROW_GROUP))
    while batch:
        path = folder / next(names)
        count = text_bytes = 0
        with (
            pyarrow.OSFile(str(path), "wb") as sink,
            pyarrow.parquet.ParquetWriter(sink, schema, compression="zstd", use_dictionary=False) as writer,
        ):
            while batch and (shard_bytes is None or sink.tell() < shard_bytes):
                writer.write_table(pyarrow.table([pyarrow.array(batch, pyarrow.string())], schema=schema), row_group_size=ROW_GROUP)
                count += len(batch)
                text_bytes += sum(len(text.encode()) for text in batch)
                batch = list(itertools.islice(source, ROW_GROUP))
        shards.append(Shard(path, path.stat().st_size, sha256(path), count, text_bytes))
    return shards


# --- shards that somebody put there


def link_shards(folder: Path, other: Path) -> int:
    """Give `folder` the shards of `other`, as hard links (symbolic links across disks); returns how many. Existing names are kept."""
    count = 0
    for path in sorted(other.glob("shard_*.parquet")):
        target = folder / path.name
        if target.exists():
            continue
        try:
            folder.mkdir(parents=True, exist_ok=True)
            try:
                os.link(path, target)
            except OSError:
                target.symlink_to(path.resolve())
        except OSError as error:
            raise disk_error(error, f"adopting the shards of {other}") from error
        count += 1
    return count
