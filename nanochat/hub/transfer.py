"""Download one file over an unreliable network, resumable and verified.

    .part-<name>        the bytes received so far
    .part-<name>.json   their origin: address (without credentials), validator (ETag), published hash

After a lost connection the download resumes at the next byte (Range), of the same version only (If-Range). A file that was replaced
meanwhile is downloaded from the start. A complete file is checked by size and published hash, synced to disk, and then renamed.
A process that is killed loses only the bytes in flight.
"""

import contextlib
import hashlib
import json
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from nanochat.console import Progress, log, quantity
from nanochat.errors import DataError, UsageError
from nanochat.hardware import awake
from nanochat.hub import addresses as hub
from nanochat.hub.addresses import Remote, TransientError, digest_of
from nanochat.paths import disk_error, fsync_dir
from nanochat.redaction import redact

PART = ".part-"  # prefix of what has not wholly come
WHOLE_FILES = 4  # that may come with a wrong hash before we give up
BLOCK = 1 << 18  # bytes taken from the connection at most at once
SLOWEST = 1000.0  # bytes a second; a connection that brings less is opened anew
LIMIT = "NANOCHAT_DOWNLOAD_LIMIT"  # bytes a second over all downloads, as in 500K or 2M


def parse_rate(text: str) -> float:
    """Bytes a second of "2M", "500K" or a plain number; "" is 0, no limit. Raises UsageError."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([KMG]?)B?(?:/s)?", text.strip(), re.I)
    rate = float(found[1]) * {"": 1, "K": 1e3, "M": 1e6, "G": 1e9}[found[2].upper()] if found else 0.0
    if text and rate < 2 * SLOWEST:
        raise UsageError(f"the download limit {text!r} is not a number of bytes per second", "use at least 2K, as in 500K or 2M")
    return rate


class Meter:
    """State that the transfers of one call share: progress, bandwidth limit, and counts for the final report."""

    def __init__(self, progress: Progress | None = None) -> None:
        self.progress, self.limit = progress, parse_rate(os.environ.get(LIMIT, ""))
        self.lock = threading.Lock()
        self.received = self.discarded = self.retries = 0
        self.free_at = time.monotonic()  # when the limit lets the next bytes come

    def take(self, count: int) -> float:
        """Count bytes that came; returns the seconds to wait before the next ones."""
        with self.lock:
            self.received += count
            if self.progress:
                self.progress.advance(count)
            now = time.monotonic()
            self.free_at = max(self.free_at, now) + (count / self.limit if self.limit else 0.0)
            return self.free_at - now

    def discard(self, count: int) -> None:
        """Count bytes that have to come again."""
        with self.lock:
            self.discarded += count
            if self.progress:
                self.progress.advance(-count)


class _Replaced(TransientError):
    """The file is another one than what the list promised."""


class _Part:
    """The bytes of one file that have come so far, and what they are a part of."""

    def __init__(self, folder: Path, name: str):
        self.path, self.record = folder / f"{PART}{name}", folder / f"{PART}{name}.json"
        self.origin: dict[str, Any] = {}
        with contextlib.suppress(OSError, ValueError):
            self.origin = dict(json.loads(self.record.read_text(encoding="utf-8")))
        if not self.origin:
            self.forget()
        self.digest, self.bytes = hashlib.sha256(), 0
        if self.path.exists():
            with self.path.open("rb") as file:
                while block := file.read(1 << 20):
                    self.digest.update(block)
                    self.bytes += len(block)

    def begin(self, origin: dict[str, Any]) -> None:
        """Empty the part, then write down what comes now: a crash between the two leaves nothing mixed."""
        self.path.write_bytes(b"")
        self.record.write_text(json.dumps(origin), encoding="utf-8")  # torn, it counts as none
        self.origin, self.digest, self.bytes = origin, hashlib.sha256(), 0

    def forget(self) -> None:
        """Remove what is there."""
        self.path.unlink(missing_ok=True)
        self.record.unlink(missing_ok=True)

    def resumable(self, url: str, sha256: str | None) -> bool:
        """Whether more bytes from `url` can follow: a published hash will prove the whole, or the server tells if it is the same file."""
        if sha256:
            return self.origin.get("sha256") == sha256
        return bool(self.origin.get("url") == redact(url) and self.origin.get("validator"))


class _Transfer:
    """One file on its way, whatever the network does."""

    def __init__(self, remote: Remote, folder: Path, meter: Meter, stop: threading.Event, relist: Callable[[Remote], Remote] | None):
        self.remote, self.folder, self.meter, self.stop, self.relist = remote, folder, meter, stop, relist
        self.urls = [remote.url, *remote.mirrors]
        self.part = _Part(folder, remote.name)
        self.expected: int | None = remote.size
        self.published: str | None = remote.sha256
        self.refused = 0  # ranges in a row that the server did not give
        self.restarts = 0  # how often what had come was of no use

    def run(self) -> str:
        """Bring the whole file into the part; returns its SHA-256. Raises DataError if it is not to be had."""
        failures = turn = wrong = restarts = 0
        furthest = self.part.bytes
        while True:
            if self.stop.is_set():
                raise DataError(f"{self.remote.url}: stopped")
            url = self.urls[turn % len(self.urls)]
            try:
                return self._attempt(url)
            except TransientError as error:
                self.meter.retries += 1
                failures, turn = failures + 1, turn + 1
                if isinstance(error, _Replaced):
                    wrong += 1
                    furthest = 0
                    self._look_again()
                if restarts < self.restarts <= hub.ATTEMPTS:  # from the beginning: every byte is progress again, some times
                    restarts, furthest = self.restarts, 0
                if moved := self.part.bytes > furthest + (self.expected or 0) // 200:  # there is progress, even if in small steps
                    furthest, failures = self.part.bytes, 1
                if failures >= hub.ATTEMPTS or wrong >= WHOLE_FILES:
                    count = f"{wrong} whole files" if wrong >= WHOLE_FILES else f"{failures} attempts"
                    raise DataError(f"{url}: {error} ({count})") from error
                log(f"{self.remote.name}: {error}; resuming at {quantity(self.part.bytes)}B")
                if error.wait is not None or not moved:  # a connection that only drops is resumed immediately
                    self.stop.wait(hub.pause(error, failures))
            except DataError as error:
                if len(self.urls) == 1:
                    raise
                log(f"{error.message}: trying the next mirror")
                self.urls.remove(url)

    def _look_again(self) -> None:
        """List the file again, because it may have been replaced."""
        self.meter.discard(self.part.bytes)
        self.part.begin({})
        if self.relist:
            with contextlib.suppress(DataError):
                self.remote = self.relist(self.remote)
        self.expected, self.published = self.remote.size, self.remote.sha256

    def _attempt(self, url: str) -> str:
        part = self.part
        if part.bytes and not part.resumable(url, self.published):
            self.meter.discard(part.bytes)
            part.begin({})
        if not part.bytes or part.bytes != self.expected:
            headers = {}
            if part.bytes:
                headers["Range"] = f"bytes={part.bytes}-"
                if part.origin.get("url") == redact(url) and part.origin.get("validator"):
                    headers["If-Range"] = part.origin["validator"]
            with hub.get(url, headers) as response:
                self._accept(url, response)
                self._receive(response)
        if self.expected is not None and part.bytes < self.expected:
            raise TransientError(f"the connection ended after {part.bytes} of {self.expected} bytes")
        digest = part.digest.hexdigest()
        if self.published and digest != self.published:
            raise _Replaced("the file does not have the published hash")
        with part.path.open("rb") as file:
            os.fsync(file.fileno())
        return digest

    def _accept(self, url: str, response: Any) -> None:
        """Make the part ready for the response's body. Raises TransientError if it is not what was asked for."""
        part, status, validator = self.part, response.status_code, _validator(response)
        linked = next((found for hop in _hops(response) if (found := digest_of(hop.headers.get("X-Linked-Etag", "").strip('"')))), None)
        if linked and self.remote.sha256 and linked != self.remote.sha256:
            raise _Replaced("the file was replaced since it was listed")
        size = _size(response, part.bytes)
        if self.remote.size is not None and size["published"] not in (None, self.remote.size):
            raise _Replaced(f"the file has {size['published']} bytes instead of {self.remote.size}")
        if status == 416 or (status == 206 and size["start"] != part.bytes):
            self.refused += 1
            why = "the server does not send the range that was asked for"
            if self.refused > 2:  # that was no fault that passes; now the whole file is asked for
                self._restart(why)
            raise TransientError(why)
        self.refused = 0
        if status == 206:
            if part.origin.get("url") == redact(url) and part.origin.get("validator") != validator:
                self._restart("the file was replaced meanwhile")
        else:
            self.meter.discard(part.bytes)
            self.published = self.remote.sha256 or linked
            part.begin({"url": redact(url), "validator": validator, "sha256": self.published})
        whole = self.remote.size if self.remote.size is not None else size["published"]
        self.expected = whole if whole is not None else size["claimed"]
        if (self.expected or 0) > self.remote.most:
            raise self._too_much(url)

    def _too_much(self, url: str) -> DataError:
        self.part.begin({})
        return DataError(f"{url} has more than the {quantity(self.remote.most)}B that {self.remote.name} may have")

    def _restart(self, why: str) -> None:
        self.restarts += 1
        self.refused = 0
        self.meter.discard(self.part.bytes)
        self.part.begin({})
        raise TransientError(why)

    def _receive(self, response: Any) -> None:
        """Append the body to the part as it comes, up to the file's size. Raises TransientError if the connection breaks or stalls."""
        part, since, came = self.part, awake.monotonic(), 0
        with part.path.open("ab", buffering=0) as file:
            for block in _blocks(response):
                if self.stop.is_set():
                    raise TransientError("stopped")
                if self.expected is not None:
                    block = block[: self.expected - part.bytes]  # whatever a server adds to the file is not the file
                file.write(block)
                part.digest.update(block)
                part.bytes += len(block)
                came += len(block)
                if part.bytes > self.remote.most:
                    raise self._too_much(part.origin.get("url", self.remote.url))
                if part.bytes == self.expected:
                    self.meter.take(len(block))
                    return
                if (delay := self.meter.take(len(block))) > 0:
                    self.stop.wait(delay)
                now = awake.monotonic()
                if now - since > hub.TIMEOUT[1]:
                    if came < SLOWEST * (now - since):
                        raise TransientError("the download stalled")
                    since, came = now, 0


def _hops(response: Any) -> list[Any]:
    """The redirects that led to a response, and itself."""
    return [*response.history, response]


def _validator(response: Any) -> str | None:
    """The validator of this version of the file for If-Range: a strong ETag, else its Last-Modified date."""
    tag = response.headers.get("ETag", "")
    return tag if tag.startswith('"') else response.headers.get("Last-Modified")


def _size(response: Any, have: int) -> dict[str, int | None]:
    """Sizes from a response's headers: `start` of its range, the `published` size of the file, and the size `claimed` by its length."""
    length = response.headers.get("Content-Length", "")
    ranged = re.fullmatch(r"bytes (?:(\d+)-\d+|\*)/(\d+|\*)", response.headers.get("Content-Range", ""))
    linked = [hop.headers.get("X-Linked-Size", "") for hop in _hops(response)]
    totals = [int(text) for text in (*linked, ranged[2] if ranged else "") if text.isdigit()]
    body = int(length) if length.isdigit() else None
    return {
        "start": int(ranged[1]) if ranged and ranged[1] else None,
        "published": totals[0] if totals else None,
        "claimed": body + (have if response.status_code == 206 else 0) if body is not None else None,
    }


def _blocks(response: Any) -> Iterator[bytes]:
    """The body, each block as soon as it is there: nothing that came is lost when the connection is. Raises TransientError then."""
    import urllib3

    while True:
        try:
            block = response.raw.read1(BLOCK)
        except (urllib3.exceptions.HTTPError, OSError, ValueError) as error:
            raise TransientError(f"the connection was lost ({hub.reason(error)})") from error
        if not block:
            return
        yield block


def fetch(
    remote: Remote,
    folder: Path,
    meter: Meter | None = None,
    stop: threading.Event | None = None,
    relist: Callable[[Remote], Remote] | None = None,
) -> str:
    """Download one file into `folder`; returns its SHA-256. The name appears when the file is complete, verified and on disk.

    `relist` gives the file as the list has it now. Raises DataError after ATTEMPTS failures in a row without
    progress, or a refusal, PreflightError for the disk. The received bytes are kept, and the next call resumes.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        transfer = _Transfer(remote, folder, meter or Meter(), stop or threading.Event(), relist)
        digest = transfer.run()
        transfer.part.path.replace(folder / remote.name)
        fsync_dir(folder)
        transfer.part.forget()
        return digest
    except OSError as error:
        raise disk_error(error, f"downloading {remote.name}") from error
