"""The data of a run beside its text: fine-tuning and evaluation sets, identity conversations.

Existing files, downloaded or placed by hand, are not downloaded again.
"""

import contextlib
import dataclasses
from pathlib import Path
from typing import Any

from nanochat import untrusted
from nanochat.console import VERBOSE, log
from nanochat.data.conversation_files import read_conversations
from nanochat.data.published.origins import catalogue, is_hub_name, origin, training_files
from nanochat.errors import DataError
from nanochat.hub import addresses as hub
from nanochat.hub.addresses import Remote, list_files
from nanochat.hub.assets import BUNDLE, BUNDLE_BYTES, asset_url, ensure_bundle, has_bundle
from nanochat.hub.download import fetch_all, require_space
from nanochat.hub.transfer import fetch
from nanochat.paths import atomic_write_json, base_dir, dataset_dir, locked, sha256

IDENTITY = "identity_conversations.jsonl"
IDENTITY_MOST = 256 << 20  # bytes of it
SEE_CARD = "see the dataset's card"
INDEX = "files.json"  # in a set's folder: what is there, from where, under which licence


@dataclasses.dataclass(frozen=True)
class Task:
    """A set for fine-tuning or evaluation: the files of `repo` whose path begins with `prefix`."""

    repo: str
    prefix: str
    licence: str = SEE_CARD


TASKS = {
    "smol-smoltalk": Task("HuggingFaceTB/smol-smoltalk", "data/train-", "Apache 2.0"),
    "mmlu": Task("cais/mmlu", "auxiliary_train/", "MIT"),
    "gsm8k": Task("openai/gsm8k", "main/train-", "MIT"),
}
TESTS = {  # nothing is ever trained on these
    "arc-easy-test": Task("allenai/ai2_arc", "ARC-Easy/test-", "CC BY-SA 4.0"),
    "arc-challenge-test": Task("allenai/ai2_arc", "ARC-Challenge/test-", "CC BY-SA 4.0"),
    "mmlu-test": Task("cais/mmlu", "all/test-", "MIT"),
    "gsm8k-test": Task("openai/gsm8k", "main/test-", "MIT"),
}
# Of each set's files, about.
SET_BYTES = {"smol-smoltalk": 900_000_000, "mmlu": 50_000_000, "gsm8k": 3_000_000, "identity": 2_500_000}
OTHER_SET_BYTES = 500_000_000
TEST_BYTES = {"arc-easy-test": 350_000, "arc-challenge-test": 210_000, "mmlu-test": 3_500_000, "gsm8k-test": 420_000}


def task_of(name: str) -> Task:
    """The set `name`: one of TASKS or TESTS, or hf:OWNER/NAME[/SUBSET], a public set of conversations (its parquet files)."""
    known = TASKS | TESTS
    if name in known:
        return known[name]
    where = origin(name)
    return Task(where.repo, "", SEE_CARD if where.licence == hub.UNKNOWN_LICENCE else where.licence)


def task_folder(name: str) -> Path:
    """The directory of a set's files."""
    return dataset_dir("tasks") / (origin(name).folder if is_hub_name(name) else name)


def identity_path() -> Path:
    """The path of the identity conversations, which may not exist yet."""
    return base_dir() / IDENTITY


def has_identity() -> bool:
    """Whether the identity conversations are there."""
    return identity_path().is_file() and identity_path().stat().st_size > 0


def ensure_identity() -> Path:
    """The identity conversations: identity_conversations.jsonl in the data directory, downloaded if missing. Raises DataError."""
    path = identity_path()
    if has_identity():
        return path
    url = asset_url(IDENTITY)
    log(f"fetching {url}", level=VERBOSE)
    log("warning: no hash is published for it: it is checked by its size only")
    try:
        with locked(dataset_dir("tasks") / ".lock", "another download"):
            if not has_identity():
                fetch(Remote(url, IDENTITY, most=IDENTITY_MOST), path.parent)
        read_conversations(path)
    except DataError as error:
        path.unlink(missing_ok=True)
        raise DataError(
            error.message, error.hint or f"run the command again, put the file at {path}, or set NANOCHAT_ASSET_URL to a mirror"
        ) from error
    return path


def task_files(name: str) -> list[Path]:
    """The parquet files of a set that are there and whole, by its index or put there by hand; [] where it has to be fetched."""
    folder = task_folder(name)
    index = folder / INDEX
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        sizes = {path: entry["bytes"] for path, entry in _index(folder).items()}
        if sizes and all(path.stat().st_size == size for path, size in sizes.items()):
            return sorted(sizes)
    return [] if index.exists() else sorted(folder.glob("*.parquet"))


def _index(folder: Path) -> dict[Path, dict[str, Any]]:
    """The files that a set's index names: path -> {bytes, sha256}. Raises OSError, ValueError, KeyError."""
    files = untrusted.table(untrusted.table(untrusted.read_json(folder / INDEX), INDEX)["files"], "files")
    return {folder / untrusted.file_name(name): untrusted.table(entry, name) for name, entry in files.items()}


def downloaded_files(folder: Path) -> list[Path]:
    """The files of the set in `folder` that were downloaded, by its index; [] where somebody put them there."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        return sorted(_index(folder))
    return []


def ensure_task(name: str) -> list[Path]:
    """The parquet files of a set, in data/tasks/<name>/: fetched, or used as somebody put them there. Raises DataError."""
    task, folder = task_of(name), task_folder(name)
    if found := task_files(name):
        if not (folder / INDEX).exists():
            log(f"{name}: using the {len(found)} file(s) found in {folder}")
        return found
    try:
        with locked(folder / ".lock", "another download"):
            if not task_files(name):
                _fetch_task(name, task, folder)
    except DataError as error:
        raise DataError(
            error.message, error.hint or f"run the command again, put its parquet files into {folder}, or set HF_ENDPOINT to a mirror"
        ) from error
    return task_files(name)


def _fetch_task(name: str, task: Task, folder: Path) -> None:
    def listed() -> dict[str, Remote]:
        files, prefix = list_files(task.repo), task.prefix.replace("/", "__")
        named = [remote for remote in files if remote.name.startswith(prefix) and remote.name.endswith(".parquet")]
        return {remote.name: remote for remote in (named if prefix else training_files(origin(name), files))}

    files = listed()
    known = hub.licence(task.repo) if task.licence == SEE_CARD else task.licence
    log(f"{name}: fetching {len(files)} file(s) (licence: {known})")
    if not files:
        raise DataError(f"{task.repo} has no parquet file whose name begins with {task.prefix}")
    found: dict[Path, str] = {}
    fetch_all(f"downloading {name}", list(files.values()), folder, found.__setitem__, lambda remote: listed().get(remote.name, remote))
    entries = {path.name: {"bytes": path.stat().st_size, "sha256": digest} for path, digest in sorted(found.items())}
    atomic_write_json(folder / INDEX, {"source": f"{task.repo} (Hugging Face)", "licence": known, "files": entries})


def verify_task(name: str) -> None:
    """Hash a set's files again. Raises DataError if one is not what was fetched; nothing where it was put there by hand."""
    folder = task_folder(name)
    if not (folder / INDEX).exists():
        return
    try:
        for path, entry in _index(folder).items():
            untrusted.regular_file(path)
            if sha256(path) != entry["sha256"]:
                raise ValueError(f"the hash of {path.name} is not the one in {INDEX}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{folder} is corrupt: {untrusted.reason(error)}", f"remove {folder} and run again") from error


# --- for a plan, and before it runs


def set_bytes(name: str) -> int:
    """About how many bytes a set for fine-tuning has."""
    known = catalogue()["sets"].get(name, {})
    return SET_BYTES.get(name) or known.get("file_bytes", OTHER_SET_BYTES) * known.get("files", 1)


def has_set(name: str) -> bool:
    """Whether a set for fine-tuning, or the identity conversations, are there. No network."""
    return has_identity() if name == "identity" else bool(task_files(name))


def ensure_set(name: str, check: bool = False) -> None:
    """Download a fine-tuning set or the identity conversations if missing; with `check`, hash the files again. Raises DataError."""
    if name == "identity":
        ensure_identity()
        return
    ensure_task(name)
    if check:
        verify_task(name)


def missing_tasks() -> dict[str, int]:
    """Missing files of CORE and the chat tasks -> approximate bytes. No network."""
    bundle = {} if has_bundle() else {BUNDLE: BUNDLE_BYTES}
    return bundle | {name: size for name, size in TEST_BYTES.items() if not task_files(name)}


def fetch_tasks(check: bool = False) -> list[Path]:
    """Bring the evaluation bundle and the chat tasks' questions; with `check` hashed again. Their folders. Raises DataError."""
    require_space("this download", sum(missing_tasks().values()), base_dir())
    for name in TEST_BYTES:
        ensure_set(name, check)
    return [ensure_bundle(), *map(task_folder, TEST_BYTES)]
