"""The data directory: paths, locks, and atomic writes that leave the old file or the whole new one after a crash."""

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import shutil
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nanochat.console import Progress, log
from nanochat.errors import NanochatError, PreflightError

TEMPORARY = ".tmp-"  # prefix of unfinished files and directories; never read, and removed when stale
STALE_SECONDS = 86400


# Errors of a path that cannot be written: no permission, read-only, or a part of it is not a directory.
_REFUSED = (errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EEXIST, errno.EISDIR, errno.ENOENT, errno.ENAMETOOLONG)


def base_dir() -> Path:
    """The data directory: NANOCHAT_BASE_DIR, else ~/.cache/nanochat. Raises PreflightError for a user without a home directory."""
    chosen = os.environ.get("NANOCHAT_BASE_DIR")
    try:
        return Path(chosen).expanduser().absolute() if chosen else Path.home() / ".cache" / "nanochat"
    except RuntimeError as error:
        raise PreflightError(
            "this user has no home directory, so there is no place for data", "set NANOCHAT_BASE_DIR to a directory that you can write to"
        ) from error


def dataset_dir(name: str) -> Path:
    """Directory of a dataset's shards and manifest."""
    return base_dir() / "data" / name


def tokens_dir(tokenizer_id: str) -> Path:
    """Directory of the rows packed with a tokenizer."""
    return base_dir() / "tokens" / tokenizer_id


def tokenizer_dir(tokenizer_id: str) -> Path:
    """Directory of one tokenizer."""
    return base_dir() / "tokenizer" / tokenizer_id


def runs_dir() -> Path:
    """Directory of all runs."""
    return base_dir() / "runs"


def run_dir(run: str) -> Path:
    """Directory of one run: config.toml, metrics.jsonl, base/, sft/, report.*"""
    return runs_dir() / run


def fsync_dir(folder: Path) -> None:
    """Make the directory entries of `folder` durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def fsync_file(path: Path) -> None:
    """Make the content of `path` durable."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def sha256(path: Path, progress: Progress | None = None) -> str:
    """SHA-256 of a file as hex digits; `progress` is advanced by the bytes that are read."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
            if progress:
                progress.advance(len(block))
    return digest.hexdigest()


def atomic_write(path: Path, data: bytes | str) -> None:
    """Write `data` to `path` so that a reader sees the old file or the whole new one (temporary name, fsync, rename)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f"{TEMPORARY}{uuid.uuid4().hex}"
    try:
        with temporary.open("wb") as file:
            file.write(data.encode() if isinstance(data, str) else data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        fsync_dir(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def atomic_write_json(path: Path, value: Any) -> None:
    """Write one JSON value, indented, with `atomic_write`; a lone surrogate, which UTF-8 cannot encode, stays an escape."""
    atomic_write(path, (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode("utf-8", "backslashreplace"))


def read_json_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file; {} if it is missing or damaged."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


@contextlib.contextmanager
def atomic_folder(path: Path, exclusive: bool = False) -> Iterator[Path]:
    """Fill a temporary directory that becomes `path` in one rename when the block succeeds, and is removed when it fails.

    If another process has created `path` meanwhile, its directory is kept; FileExistsError if `exclusive`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f"{TEMPORARY}{uuid.uuid4().hex}"
    temporary.mkdir()
    try:
        yield temporary
        for file in temporary.rglob("*"):
            fsync_dir(file) if file.is_dir() else fsync_file(file)
        fsync_dir(temporary)
        try:
            temporary.rename(path)
        except OSError as error:
            if exclusive and os.path.lexists(path):
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path)) from error
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
        fsync_dir(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextlib.contextmanager
def locked(path: Path, holder: str = "") -> Iterator[None]:
    """Hold the lock of the file `path`: one process at a time; the system frees it when its holder dies.

    `holder` names the other process in the message printed before waiting. Raises PreflightError if the file cannot be made.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("w")
    except OSError as error:
        raise disk_error(error, f"preparing {path.parent}") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if holder:
                log(f"waiting for {holder} in {path.parent}")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def stale() -> Iterator[Path]:
    """Unfinished files and directories that are older than a day: no process is still writing them."""
    for place in (".", "data", "tokenizer", "tokens/*/*", "runs", "runs/*", "runs/*/*"):
        for path in base_dir().glob(f"{place}/{TEMPORARY}*"):
            with contextlib.suppress(OSError):
                if time.time() - path.stat().st_mtime > STALE_SECONDS:
                    yield path


def sweep() -> None:
    """Remove unfinished files that are older than a day."""
    for path in stale():
        with contextlib.suppress(OSError):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def disk_error(error: OSError, doing: str, out: Path | None = None) -> NanochatError:
    """The error for a disk that refuses a write while `doing` something.

    `out` is the directory that the user named; without it the write was to the data directory.
    """
    where = out or error.filename or base_dir()
    if error.errno == errno.ENOSPC or error.errno == errno.EDQUOT:
        place, larger = (out.parent, "set --out to a directory on") if out else (base_dir(), "set NANOCHAT_BASE_DIR to a directory on")
        hint = f"free some space under {place}, or {larger} a larger disk, then run the same command again"
        return PreflightError(f"the disk is full while {doing} ({where})", hint)
    if error.errno in _REFUSED:
        other = "set --out" if out else "set NANOCHAT_BASE_DIR"
        return PreflightError(
            f"cannot write while {doing}: {error.strerror} ({where})", f"make the directory writable, or {other} to another one"
        )
    return NanochatError(f"{error.strerror or error} while {doing} ({where})", "see docs/troubleshooting.md")


def require_writable(folder: Path) -> None:
    """Create `folder`; raise PreflightError if files cannot be written in it."""
    probe = folder / f"{TEMPORARY}{uuid.uuid4().hex}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        raise disk_error(error, f"preparing the data directory {folder}") from error
