"""Files from a Hugging Face hub or a plain web server: listed, fetched in parallel, checked, retried.

A file is written under a temporary name, checked by size and by hash where one is published, made durable, and only
then given its name.
"""

import concurrent.futures
import contextlib
import dataclasses
import email.utils
import hashlib
import os
import random
import re
import shutil
import threading
import time
import urllib.parse
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from nanochat.console import Progress, log, quantity
from nanochat.errors import DataError, NanochatError, PreflightError
from nanochat.paths import TEMPORARY, disk_error, fsync_dir

ENDPOINT = "https://huggingface.co"  # HF_ENDPOINT replaces it
PARALLEL = 4  # downloads at once
ATTEMPTS = 6  # for each file and each page
FIRST_WAIT = 1.0  # seconds before the second attempt; doubled for each further one
LONGEST_WAIT = 300.0  # seconds that a server's Retry-After is honoured
TIMEOUT = (15.0, 60.0)  # seconds to connect, and without a byte

Result = TypeVar("Result")


@dataclasses.dataclass(frozen=True)
class Remote:
    """A file to fetch; size in bytes and SHA-256 where they are published. `name` is its plain name here."""

    url: str
    name: str
    size: int | None = None
    sha256: str | None = None


class NotListed(DataError):
    """The server has no list of the dataset's files, or none that can be understood."""


class _Again(Exception):
    """A failure that may pass; `wait` is what the server asked for, in seconds."""

    def __init__(self, why: str, wait: float | None = None):
        super().__init__(why)
        self.wait = wait


# --- addresses and lists


def endpoint() -> str:
    """The hub's address: HF_ENDPOINT, else the public one."""
    return (os.environ.get("HF_ENDPOINT") or ENDPOINT).rstrip("/")


def resolve_url(repo: str, path: str) -> str:
    """The address of a dataset's file."""
    return f"{endpoint()}/datasets/{repo}/resolve/main/{urllib.parse.quote(path)}"


def list_files(repo: str, recursive: bool = True) -> list[Remote]:
    """Every file of a dataset, from all pages of the hub's tree; a/b.parquet gets the plain name a__b.parquet.

    Raises NotListed where the server refuses or answers nonsense, DataError where it cannot be reached or a name is unsafe.
    """
    url = f"{endpoint()}/api/datasets/{repo}/tree/main" + ("?recursive=true" if recursive else "")
    found: list[Remote] = []
    seen: set[str] = set()
    while url and url not in seen:
        seen.add(url)
        entries, following = _persist(url, lambda url=url: _page(url), threading.Event())  # type: ignore[misc]
        found += [_remote(repo, entry) for entry in entries if entry.get("type") == "file"]
        url = urllib.parse.urljoin(url, following) if following else ""
    return found


def _page(url: str) -> tuple[list[dict[str, Any]], str]:
    """One page of the tree: its entries, and the address of the next page or ""."""
    import requests

    try:
        with _get(url) as response:
            entries = response.json()
            following = response.links.get("next", {}).get("url", "")
    except requests.exceptions.JSONDecodeError as error:
        raise NotListed(f"{url} does not answer as the hub does: no JSON") from error
    except requests.RequestException as error:
        raise _Again(_reason(error)) from error
    except DataError as error:
        raise NotListed(error.message, error.hint) from error
    if not isinstance(entries, list) or not all(isinstance(entry, dict) and isinstance(entry.get("path"), str) for entry in entries):
        raise NotListed(f"{url} does not answer as the hub does: no list of files")
    return entries, following


def _remote(repo: str, entry: dict[str, Any]) -> Remote:
    """The file that an entry of the tree describes. Raises DataError for a path that would lead out of the folder."""
    path = entry["path"]
    parts = path.split("/")
    if not path.isprintable() or "\\" in path or ":" in path or any(part in ("", ".", "..") for part in parts):
        raise DataError(f"{repo} lists a file with the unsafe name {path!r}", "do not use this dataset")
    lfs: dict[str, Any] = entry["lfs"] if isinstance(entry.get("lfs"), dict) else {}
    size = lfs.get("size", entry.get("size"))
    return Remote(resolve_url(repo, path), "__".join(parts), size if isinstance(size, int) else None, _digest(lfs.get("oid")))


def _digest(text: Any) -> str | None:
    """`text` as 64 hex digits where it is a SHA-256, else None."""
    digest = str(text).removeprefix("sha256:").lower()
    return digest if re.fullmatch(r"[0-9a-f]{64}", digest) else None


# --- one request


def retry_after(value: str | None) -> float | None:
    """Seconds to wait by a Retry-After header, which holds seconds or an HTTP date; None where it is absent or nonsense."""
    if not value:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(value).timestamp() - time.time()
        except ValueError:
            return None
    return min(max(seconds, 0.0), LONGEST_WAIT) if seconds == seconds else None


def _persist(label: str, action: Callable[[], Result], stop: threading.Event) -> Result:
    """`action`'s result, tried ATTEMPTS times. Between them it waits as the server asked, or longer each time. Raises DataError."""
    for attempt in range(1, ATTEMPTS + 1):
        if stop.is_set():
            raise DataError(f"{label}: stopped")
        try:
            return action()
        except _Again as error:
            if attempt == ATTEMPTS:
                raise DataError(f"{label}: {error} ({attempt} attempts)") from error
            log(f"{label}: {error}; trying again")
            # The random part keeps many clients from coming back at the same moment.
            stop.wait(error.wait if error.wait is not None else FIRST_WAIT * 2 ** (attempt - 1) * random.uniform(0.5, 1.0))
    raise AssertionError("unreachable")


def _get(url: str) -> Any:
    """One GET, streamed. Raises _Again for what may pass, DataError for what will not."""
    import requests

    try:
        response = requests.get(url, stream=True, timeout=TIMEOUT, headers={"Accept-Encoding": "identity", "User-Agent": "nanochat"})
    except (requests.exceptions.InvalidURL, requests.exceptions.MissingSchema, requests.exceptions.InvalidSchema) as error:
        hint = "set HF_ENDPOINT or NANOCHAT_ASSET_URL to an address such as https://mirror.example"
        raise DataError(f"{url} is no address: {error}", hint) from error
    except requests.RequestException as error:
        raise _Again(_reason(error)) from error
    status = response.status_code
    if status == 200:
        return response
    wait = retry_after(response.headers.get("Retry-After"))
    response.close()
    if status in (408, 425, 429) or status >= 500:
        raise _Again(f"the server answered {status}", wait)
    hint = {401: "it is private or gated", 403: "it is private or gated", 404: "check its name and HF_ENDPOINT"}.get(status, "")
    raise DataError(f"{url}: the server answered {status}", hint)


def _reason(error: BaseException) -> str:
    """The innermost cause of a network error, in a few words."""
    while inner := error.__cause__ or error.__context__:
        error = inner
    return f"{type(error).__name__}: {error}"[:200]


# --- files


def fetch(remote: Remote, folder: Path, advance: Callable[[float], None] | None = None, stop: threading.Event | None = None) -> str:
    """Fetch one file into `folder`; returns its SHA-256. Its name appears when the whole file is good and durable.

    `advance` is told of bytes as they come (and of a failed attempt's, negative). Raises DataError after ATTEMPTS
    failures or a refusal, PreflightError where the disk refuses.
    """
    stop = stop or threading.Event()
    temporary = folder / f"{TEMPORARY}{uuid.uuid4().hex}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        digest = _persist(remote.url, lambda: _receive(remote, temporary, advance or (lambda amount: None), stop), stop)
        temporary.replace(folder / remote.name)
        fsync_dir(folder)
        return digest
    except OSError as error:
        raise disk_error(error, f"downloading {remote.name}") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def _receive(remote: Remote, path: Path, advance: Callable[[float], None], stop: threading.Event) -> str:
    """Write the body to `path`, durably, and check it; returns its SHA-256. Raises _Again where it is not what it should be."""
    received = 0
    try:
        with path.open("wb") as file, _get(remote.url) as response:
            digest, expected, published = hashlib.sha256(), _sizes(remote, response), remote.sha256 or _linked_hash(response)
            for block in _blocks(response):
                if stop.is_set():
                    raise _Again("stopped")
                file.write(block)
                digest.update(block)
                received += len(block)
                advance(len(block))
            if wrong := [size for size in expected if size != received]:
                raise _Again(f"{received} bytes came instead of {wrong[0]}")
            if published and digest.hexdigest() != published:
                raise _Again("what came does not have the published hash")
            file.flush()
            os.fsync(file.fileno())
        return digest.hexdigest()
    except _Again:
        advance(-received)
        raise


def _blocks(response: Any) -> Any:
    """The body, block by block. Raises _Again where the connection is lost."""
    import requests

    try:
        yield from response.iter_content(1 << 18)
    except requests.RequestException as error:
        raise _Again(f"the connection was lost ({_reason(error)})") from error


def _sizes(remote: Remote, response: Any) -> list[int]:
    """What the file's size must be, by everybody who says so."""
    length = response.headers.get("Content-Length", "")
    return [size for size in (remote.size, int(length) if length.isdigit() else None) if size is not None]


def _linked_hash(response: Any) -> str | None:
    """The SHA-256 that the hub gives in its redirect to where the file lies."""
    return next(
        (found for hop in (*response.history, response) if (found := _digest(hop.headers.get("X-Linked-Etag", "").strip('"')))), None
    )


def fetch_all(what: str, files: list[Remote], folder: Path, done: Callable[[Path, str], object]) -> None:
    """Fetch `files`, PARALLEL at once; `done(path, sha256)` is called in this thread as each arrives.

    The first failure stops the others, and is raised when they have stopped. Raises PreflightError where there is no room.
    """
    _sweep(folder)
    total = sum(remote.size or 0 for remote in files) if all(remote.size for remote in files) else 0
    free = shutil.disk_usage(next(parent for parent in (folder, *folder.parents) if parent.exists())).free
    if total > free:
        hint = "free some space, point NANOCHAT_BASE_DIR to a larger disk, or ask for fewer shards"
        raise PreflightError(f"{what} needs {quantity(total)}B, and {quantity(free)}B are free in {folder}", hint)
    stop, lock = threading.Event(), threading.Lock()
    failure: NanochatError | None = None
    with Progress(what, total, "bytes") as progress, concurrent.futures.ThreadPoolExecutor(PARALLEL) as pool:

        def advance(amount: float) -> None:
            with lock:
                progress.advance(amount)

        jobs = {pool.submit(fetch, remote, folder, advance, stop): remote for remote in files}
        try:
            for job in concurrent.futures.as_completed(jobs):
                try:
                    done(folder / jobs[job].name, job.result())
                except NanochatError as error:
                    failure = failure or error
                    stop.set()
        finally:
            stop.set()  # an interrupt ends the downloads too
        if failure:
            raise failure


def _sweep(folder: Path) -> None:
    """Remove what an earlier download left half-done, a day ago or longer."""
    for path in folder.glob(f"{TEMPORARY}*"):
        with contextlib.suppress(OSError):
            if path.is_file() and time.time() - path.stat().st_mtime > 86400:
                path.unlink()
