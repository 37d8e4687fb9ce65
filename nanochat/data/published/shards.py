"""Pretraining shards from a hub: which are there, which are missing, and the manifest that names them.

Existing shards, downloaded or placed by hand, are not downloaded again. transfer.py transfers the files.
"""

import contextlib
import dataclasses
from pathlib import Path

from nanochat.console import Progress, log
from nanochat.data.published.origins import Origin, origin, training_files
from nanochat.data.shards import COLUMN, MANIFEST, Dataset, Shard, damage, inspect, link_shards, read_manifest, shard_name, write_manifest
from nanochat.errors import DataError, NewerFormat, UsageError
from nanochat.hub import addresses as hub
from nanochat.hub.addresses import NotListed, Remote, endpoint, list_files
from nanochat.hub.download import fetch_all
from nanochat.paths import base_dir, dataset_dir, disk_error, locked


def have_shards(dataset: str) -> list[str]:
    """Names of the shards in a published dataset's directory whose size matches the manifest, if it lists them. No network."""
    folder = dataset_dir(origin(dataset).folder)
    listed: dict[str, Shard] = {}
    with contextlib.suppress(DataError):
        manifest = read_manifest(folder)
        listed = {shard.path.name: shard for shard in (*manifest.training, manifest.validation)}
    return sorted(path.name for path in folder.glob("*.parquet") if path.name not in listed or not damage(listed[path.name]))


# --- shards


def ensure_shards(dataset: str, training: int, or_all: bool = False) -> Dataset:
    """`dataset` with its first `training` training shards and its validation shard, downloaded if missing.

    Needs no network if enough shards exist; shards placed by hand are adopted. With `or_all` a dataset that has fewer shards is
    returned with all of them. Raises UsageError for an unknown dataset or more shards than there are, DataError where the download fails
    for good, PreflightError for the disk.
    """
    if training < 1:
        raise UsageError(f"{training} training shards cannot be used", "ask for at least one")
    where = origin(dataset)
    if where.last is not None and training > where.last:
        if or_all:
            return ensure_shards(dataset, where.last, or_all)
        raise UsageError(f"{dataset} has {where.last} training shards, not {training}", f"ask for {where.last} at most")
    folder = dataset_dir(where.folder)
    have, validation = _on_disk(where, folder, training)
    if validation not in have or len(have) <= training:
        with locked(folder / ".lock", f"another download of {dataset}"):
            have, validation = _on_disk(where, folder, training)  # the other may have brought it all
            validation = _complete(where, folder, training, have, validation, or_all)
    assert validation is not None
    return _manifest_of(where, folder, have, validation).first(training)


def _complete(where: Origin, folder: Path, training: int, have: dict[str, Shard], validation: str | None, or_all: bool) -> str:
    """Fetch what is missing into `have`; returns the validation shard's name."""
    listing = _Listing(where)
    try:
        validation = validation or listing.validation()
        missing = [name for name in (validation,) if name not in have]
        lacking = training - sum(name != validation for name in have)
        if lacking > 0:
            missing += listing.next_training(lacking, {*have, validation}, or_all)
        if missing:
            _fetch_shards(where, folder, listing, missing, have, validation)
        return validation
    except DataError as error:
        spare = f"; with the {len(have)} shards that are there, --shards {len(have) - 1} needs no network" if len(have) > 1 else ""
        command = f"`nanochat download --dataset {where.name} -n {training}`"
        raise DataError(error.message, error.hint or f"run {command} again, with a mirror in HF_ENDPOINT if there is one{spare}") from error


def _on_disk(where: Origin, folder: Path, training: int) -> tuple[dict[str, Shard], str | None]:
    """The good shards in `folder` by name, and the validation shard's name if that is settled. New ones are hashed."""
    if where.upstream and not any(folder.glob("*.parquet")) and (count := link_shards(folder, base_dir() / where.upstream)):
        log(f"{where.name}: {count} shards adopted from {base_dir() / where.upstream}")
    listed: dict[str, Shard] = {}
    validation = None
    if (folder / MANIFEST).exists():
        try:
            manifest = read_manifest(folder)
            listed = {shard.path.name: shard for shard in (*manifest.training, manifest.validation)}
            validation = manifest.validation.path.name
        except NewerFormat:
            raise
        except DataError as error:
            log(f"{error.message}, writing a new one")
    have, changed = {}, False
    for name, shard in listed.items():
        if wrong := damage(shard):
            log(f"{wrong}, downloading it again")
            changed = True
        else:
            have[name] = shard
    strangers = sorted(path for path in folder.glob("*.parquet") if path.name not in listed and path.is_file())
    if strangers:
        with Progress(
            f"hashing {len(strangers)} shards found in {folder}", sum(path.stat().st_size for path in strangers), "B"
        ) as progress:
            for path in strangers:
                try:
                    have[path.name] = inspect(path, progress=progress, column=where.column)
                    changed = True
                except DataError as error:
                    log(f"{error.message}: not used")
    official = shard_name(where.last) if where.last is not None else None
    if validation is None and official in have:
        validation = official
    elif validation is None and len(have) > training:
        validation = max(have)
        log(f"{folder}: {validation} is kept for validation, not for training" + (f" ({official} is missing)" if official else ""))
    validation = validation or official
    if changed and validation in have and len(have) > 1:
        _manifest_of(where, folder, have, validation)
    return have, validation


def _manifest_of(where: Origin, folder: Path, have: dict[str, Shard], validation: str) -> Dataset:
    """Write the manifest of `have` where it says something new, and return its dataset: training shards in the order of their names."""
    training = tuple(have[name] for name in sorted(have) if name != validation)
    licence = where.licence
    with contextlib.suppress(DataError):
        licence = read_manifest(folder).licence if licence == hub.UNKNOWN_LICENCE else licence
    dataset = Dataset(where.name, folder, f"{where.title} (Hugging Face)", licence, training, have[validation])
    with contextlib.suppress(DataError):
        if read_manifest(folder) == dataset:
            return dataset
    try:
        write_manifest(dataset)
    except OSError as error:
        raise disk_error(error, f"writing the manifest of {where.name}") from error
    return dataset


class _Listing:
    """The files of an origin, listed by the hub when first needed."""

    def __init__(self, where: Origin):
        self.where = where
        self._files: dict[str, Remote] | None = None

    def files(self) -> dict[str, Remote]:
        """Name -> Remote of every parquet file, in order. A known dataset can do without the hub's list, but then has no hashes."""
        if self._files is None:
            try:
                found = list_files(self.where.repo, recursive=self.where.last is None)
                chosen = training_files(self.where, found)
                self._files = {remote.name: remote for remote in sorted(chosen, key=lambda found: found.name)}
            except NotListed as error:
                if self.where.last is None:
                    raise
                log(f"{self.where.name}: the list of files is not available ({error.message}); files are checked by size only")
                self._files = {}
        return self._files

    def validation(self) -> str:
        names = list(self.files())
        if len(names) < 2:
            raise DataError(
                f"{self.where.title} holds {len(names)} parquet file(s): one to train on and one for validation are needed",
                "choose another dataset, or download that file and give it as --data",
            )
        log(f"{self.where.name}: {names[-1]}, the last file, is kept for validation, not for training")
        return names[-1]

    def next_training(self, count: int, taken: set[str], or_all: bool = False) -> list[str]:
        """The first `count` names that are not `taken`. Raises UsageError if there are not so many, unless `or_all`."""
        names = list(self.files()) if self.where.last is None else [shard_name(index) for index in range(self.where.last)]
        if or_all and self.files():
            names = [name for name in names if name in self.files()]
        free = [name for name in names if name not in taken]
        if len(free) < count and not or_all:
            most = len(set(names) | taken) - 1
            raise UsageError(f"{self.where.name} has {most} training shards", f"ask for {most} at most")
        return free[:count]

    def file(self, name: str) -> Remote:
        return self.files().get(name) or hub.remote(self.where.repo, name)

    def again(self, remote: Remote) -> Remote:
        """The file as the hub lists it by now."""
        self._files = None
        return self.file(remote.name)


def _fetch_shards(where: Origin, folder: Path, listing: _Listing, names: list[str], have: dict[str, Shard], validation: str) -> None:
    """Fetch files, several at once, into `have`; the manifest grows with each. Raises the first failure when all have stopped."""
    files = [listing.file(name) for name in names]
    if where.licence == hub.UNKNOWN_LICENCE:
        where = dataclasses.replace(where, licence=hub.licence(where.repo))
    log(f"{where.name}: fetching {len(files)} shard(s) from {endpoint()} (licence: {where.licence})")
    unhashed = [remote.name for remote in files if not remote.sha256]
    if unhashed:
        log(f"warning: no hash is published for {len(unhashed)} of them (such as {unhashed[0]}): only their sizes are checked")

    def done(path: Path, digest: str) -> None:
        shard = dataclasses.replace(inspect(path, digest, column=where.column), downloaded=True)
        if not where.column and shard.column != COLUMN:
            log(f"{path.name}: using the text in column {shard.column!r}")
        have[path.name] = shard
        if validation in have and len(have) > 1:
            _manifest_of(where, folder, have, validation)

    fetch_all(f"downloading {where.name}", files, folder, done, listing.again)
