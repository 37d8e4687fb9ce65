"""What comes over the network: pretraining shards, the sets for fine-tuning, the identity conversations.

What is already there, put by this module or by hand, is not fetched again. How a file is fetched is hub.py's.
"""

import contextlib
import dataclasses
import json
import os
import re
from pathlib import Path

from nanochat.console import Progress, log
from nanochat.data.documents import read_conversations
from nanochat.data.hub import NotListed, Remote, endpoint, fetch, fetch_all, list_files, resolve_url
from nanochat.data.shards import MANIFEST, Dataset, Shard, borrow, damage, inspect, read_manifest, shard_name, write_manifest
from nanochat.errors import DataError, UsageError
from nanochat.paths import atomic_write_json, base_dir, dataset_dir, disk_error

ASSETS = "https://karpathy-public.s3.us-west-2.amazonaws.com"  # NANOCHAT_ASSET_URL replaces it
IDENTITY = "identity_conversations.jsonl"
NON_COMMERCIAL = "CC BY-NC 4.0 (not for commercial use)"
SEE_CARD = "see the dataset's card"


@dataclasses.dataclass(frozen=True)
class Origin:
    """Where a dataset comes from. `last` is the index of its validation shard where its files are shard_00000.parquet and so on."""

    name: str
    repo: str
    folder: str  # under data/
    licence: str
    last: int | None = None
    upstream: str = ""  # the folder of the data directory where karpathy/nanochat keeps the same shards


KNOWN = {
    "climbmix": Origin("climbmix", "karpathy/climbmix-400b-shuffle", "climbmix", NON_COMMERCIAL, 6542, "base_data_climbmix"),
    "fineweb-edu": Origin("fineweb-edu", "karpathy/fineweb-edu-100b-shuffle", "fineweb-edu", "ODC-By 1.0", 1822, "base_data"),
}


@dataclasses.dataclass(frozen=True)
class Task:
    """A set for fine-tuning: the files of `repo` whose path begins with `prefix`."""

    repo: str
    prefix: str
    licence: str = SEE_CARD


TASKS = {
    "smol-smoltalk": Task("HuggingFaceTB/smol-smoltalk", "data/train-"),
    "mmlu": Task("cais/mmlu", "auxiliary_train/"),
    "gsm8k": Task("openai/gsm8k", "main/train-"),
}


def origin(dataset: str) -> Origin:
    """The origin of climbmix, fineweb-edu or hf:OWNER/NAME. Raises UsageError for another name."""
    if dataset in KNOWN:
        return KNOWN[dataset]
    repo = dataset.removeprefix("hf:")
    if dataset.startswith("hf:") and re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", repo):
        return Origin(dataset, repo, "hf--" + repo.replace("/", "--"), SEE_CARD)
    raise UsageError(f"no dataset {dataset!r} can be downloaded", f"one of: {', '.join(KNOWN)}, hf:OWNER/NAME")


# --- shards


def ensure_shards(dataset: str, training: int) -> Dataset:
    """`dataset` with its first `training` training shards and its validation shard, fetched where they are not there.

    Needs no network when enough is there; shards put there by hand are adopted. Raises UsageError for an unknown
    dataset or more shards than there are, DataError where the download fails for good, PreflightError for the disk.
    """
    if training < 1:
        raise UsageError(f"{training} training shards are not possible", "ask for one at least")
    where = origin(dataset)
    if where.last is not None and training > where.last:
        raise UsageError(f"{dataset} has {where.last} training shards, not {training}", f"ask for {where.last} at most")
    folder = dataset_dir(where.folder)
    have, validation = _on_disk(where, folder, training)
    remote = _Listing(where)
    try:
        if validation is None:
            validation = remote.validation()
        missing = [name for name in (validation,) if name not in have]
        lacking = training - sum(name != validation for name in have)
        if lacking > 0:
            missing += remote.next_training(lacking, {*have, validation})
        if missing:
            _fetch_shards(where, folder, [remote.file(name) for name in missing], have, validation)
    except DataError as error:
        spare = f"; with the {len(have)} shards that are there, --shards {len(have) - 1} needs no network" if len(have) > 1 else ""
        command = f"python -m nanochat.dataset --dataset {dataset} -n {training}"
        raise DataError(error.message, error.hint or f"run again: {command} (HF_ENDPOINT names a mirror){spare}") from error
    return _manifest_of(where, folder, have, validation).first(training)


def _on_disk(where: Origin, folder: Path, training: int) -> tuple[dict[str, Shard], str | None]:
    """The good shards in `folder` by name, and the validation shard's name if that is settled. New ones are hashed."""
    if where.upstream and not any(folder.glob("*.parquet")) and (count := borrow(folder, base_dir() / where.upstream)):
        log(f"{where.name}: {count} shards adopted from {base_dir() / where.upstream}")
    listed: dict[str, Shard] = {}
    validation = None
    if (folder / MANIFEST).exists():
        try:
            manifest = read_manifest(folder)
            listed = {shard.path.name: shard for shard in (*manifest.training, manifest.validation)}
            validation = manifest.validation.path.name
        except DataError as error:
            log(f"{error.message}: it is written anew")
    have, changed = {}, False
    for name, shard in listed.items():
        if wrong := damage(shard):
            log(f"{wrong}: it is fetched again")
            changed = True
        else:
            have[name] = shard
    strangers = sorted(path for path in folder.glob("*.parquet") if path.name not in listed)
    if strangers:
        with Progress(
            f"hashing {len(strangers)} shards found in {folder}", sum(path.stat().st_size for path in strangers), "B"
        ) as progress:
            for path in strangers:
                try:
                    have[path.name] = inspect(path, progress=progress)
                    changed = True
                except DataError as error:
                    log(f"{error.message}: not used")
    official = shard_name(where.last) if where.last is not None else None
    if validation is None and official in have:
        validation = official
    elif validation is None and len(have) > training:
        validation = max(have)
        log(f"{folder}: {validation} is kept for validation and not trained on" + (f" ({official} is not there)" if official else ""))
    validation = validation or official
    if changed and validation in have and len(have) > 1:
        _manifest_of(where, folder, have, validation)
    return have, validation


def _manifest_of(where: Origin, folder: Path, have: dict[str, Shard], validation: str) -> Dataset:
    """Write the manifest of `have` where it says something new, and return its dataset: training shards in the order of their names."""
    training = tuple(have[name] for name in sorted(have) if name != validation)
    dataset = Dataset(where.name, folder, f"{where.repo} (Hugging Face)", where.licence, training, have[validation])
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
                self._files = {
                    remote.name: remote for remote in sorted(found, key=lambda remote: remote.name) if remote.name.endswith(".parquet")
                }
            except NotListed as error:
                if self.where.last is None:
                    raise
                log(f"{self.where.name}: the list of files is not to be had ({error.message}); files are checked by size only")
                self._files = {}
        return self._files

    def validation(self) -> str:
        names = list(self.files())
        if len(names) < 2:
            raise DataError(
                f"{self.where.repo} holds {len(names)} parquet file(s): one to train on and one for validation are needed",
                "choose another dataset",
            )
        log(f"{self.where.name}: {names[-1]}, its last file, is kept for validation and not trained on")
        return names[-1]

    def next_training(self, count: int, taken: set[str]) -> list[str]:
        """The first `count` names that are not `taken`. Raises UsageError where there are not so many."""
        names = list(self.files()) if self.where.last is None else [shard_name(index) for index in range(self.where.last)]
        free = [name for name in names if name not in taken]
        if len(free) < count:
            most = len(set(names) | taken) - 1
            raise UsageError(f"{self.where.name} has {most} training shards", f"ask for {most} at most")
        return free[:count]

    def file(self, name: str) -> Remote:
        return self.files().get(name) or Remote(resolve_url(self.where.repo, name), name)


def _fetch_shards(where: Origin, folder: Path, files: list[Remote], have: dict[str, Shard], validation: str) -> None:
    """Fetch `files`, several at once, into `have`; the manifest grows with each. Raises the first failure when all have stopped."""
    log(f"{where.name}: fetching {len(files)} shard(s) from {endpoint()} (licence: {where.licence})")
    unhashed = [remote.name for remote in files if not remote.sha256]
    if unhashed:
        log(f"warning: no hash is published for {len(unhashed)} of them (such as {unhashed[0]}): they are checked by size alone")

    def done(path: Path, digest: str) -> None:
        have[path.name] = inspect(path, digest)
        if validation in have and len(have) > 1:
            _manifest_of(where, folder, have, validation)

    fetch_all(f"downloading {where.name}", files, folder, done)


# --- the sets for fine-tuning


def ensure_identity() -> Path:
    """The identity conversations: identity_conversations.jsonl in the data directory, fetched where it is not there. Raises DataError."""
    path = base_dir() / IDENTITY
    if path.is_file() and path.stat().st_size:
        return path
    base = (os.environ.get("NANOCHAT_ASSET_URL") or ASSETS).rstrip("/")
    log(f"fetching {IDENTITY} from {base}")
    log("warning: no hash is published for it: it is checked by size alone")
    try:
        fetch(Remote(f"{base}/{IDENTITY}", IDENTITY), path.parent)
        read_conversations(path)
    except DataError as error:
        path.unlink(missing_ok=True)
        raise DataError(error.message, error.hint or f"run again, or put the file at {path} (NANOCHAT_ASSET_URL names a mirror)") from error
    return path


def ensure_task(name: str) -> list[Path]:
    """The parquet files of a set in TASKS, in data/tasks/<name>/: fetched, or used as somebody put them there. Raises DataError."""
    task, folder = TASKS[name], dataset_dir("tasks") / name
    index = folder / "files.json"
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        sizes = {folder / file: entry["bytes"] for file, entry in json.loads(index.read_text(encoding="utf-8"))["files"].items()}
        if sizes and all(path.stat().st_size == size for path, size in sizes.items()):
            return sorted(sizes)
    by_hand = sorted(folder.glob("*.parquet"))
    if by_hand and not index.exists():
        log(f"{name}: using the {len(by_hand)} file(s) found in {folder}")
        return by_hand
    try:
        prefix = task.prefix.replace("/", "__")
        files = [remote for remote in list_files(task.repo) if remote.name.startswith(prefix) and remote.name.endswith(".parquet")]
        if not files:
            raise DataError(f"{task.repo} has no parquet file whose name begins with {task.prefix}")
        found: dict[Path, str] = {}
        fetch_all(f"downloading {name}", files, folder, found.__setitem__)
        entries = {path.name: {"bytes": path.stat().st_size, "sha256": digest} for path, digest in sorted(found.items())}
        atomic_write_json(index, {"source": f"{task.repo} (Hugging Face)", "licence": task.licence, "files": entries})
    except DataError as error:
        raise DataError(
            error.message, error.hint or f"run again, or put its parquet files into {folder} (HF_ENDPOINT names a mirror)"
        ) from error
    return sorted(found)
