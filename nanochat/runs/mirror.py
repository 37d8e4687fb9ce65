"""Remote copies of a run's checkpoints, uploaded during training and fetched to resume on another machine.

    URL/<run>/config.toml  tokenizer/...                the run's record, and its tokenizer's directory
    URL/<run>/<stage>/step_000100/{..., manifest.json}  verified before the copy, manifest last; metrics.jsonl beside it

Any URL that fsspec supports: file:, s3:, gs:, hf:. A thread uploads; training waits for it only at the end, for a bounded time. If the
mirror cannot be reached, a warning is printed, and missing files are uploaded when it is available again.
"""

import contextlib
import posixpath
import shutil
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Any

import fsspec

from nanochat import paths, untrusted
from nanochat.console import log
from nanochat.errors import DataError, NewerFormat, UsageError
from nanochat.hardware.extras import install_hint
from nanochat.hub.download import require_space
from nanochat.redaction import redact
from nanochat.runs.checkpoint import STEP, Checkpoints, verify
from nanochat.runs.metrics import STAGES
from nanochat.runs.names import MANIFEST
from nanochat.runs.step_files import checked_manifest
from nanochat.tokenizer.formats import VOCABULARY_BYTES

PACKAGES = {"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "hf": "huggingface_hub"}
OPTIONS: dict[str, dict[str, Any]] = {  # time-outs, so that a server that does not answer cannot block a thread for minutes
    name: {"config_kwargs": {"connect_timeout": 10, "read_timeout": 60, "retries": {"max_attempts": 2}}} for name in ("s3", "s3a")
}
RETRY_SECONDS = 60.0  # between two attempts to reach a mirror
METRICS_BYTES = 4 << 30  # size limit of metrics.jsonl, which has some 200 bytes per step
TOKENIZER_FILES = 10  # limit of files in a tokenizer's directory
METRICS, RECORD, TOKENIZER = "metrics.jsonl", "config.toml", "tokenizer"
UNFINISHED = "UNFINISHED"  # file in the copy of an export, removed when the copy is complete


class Mirror:
    """One run's directory at `url`. Raises UsageError for an unknown kind of URL or a missing package.

    If the mirror cannot be reached, the methods raise the package's own exceptions: any Exception.
    """

    def __init__(self, url: str, run: str):
        scheme = url.partition(":")[0]
        try:
            self.fs, root = fsspec.core.url_to_fs(url, use_listings_cache=False, skip_instance_cache=True, **OPTIONS.get(scheme, {}))
        except ImportError as error:
            package = PACKAGES.get(scheme, "")
            hint = install_hint(package) if package else "use a URL that begins with file://, s3://, gs:// or hf://"
            raise UsageError(f"the mirror {url} needs the Python package {package or str(error)}, which is not installed", hint) from error
        except ValueError as error:
            raise UsageError(
                f"unknown kind of mirror {url} ({error})", "use a URL such as --mirror s3://bucket/folder or file:///mnt/nas"
            ) from error
        self.url, self.root = redact(url), posixpath.join(root, run)  # the address is used only in messages

    def _path(self, *parts: str) -> str:
        return posixpath.join(self.root, *parts)

    def read(self, name: str, most: int = untrusted.JSON_BYTES) -> bytes | None:
        """A file of the run on the mirror; None if there is none. Raises DataError if it exceeds `most` bytes or is not a regular file."""
        try:
            self._size(self._path(name), most)
            return bytes(self.fs.cat_file(self._path(name)))
        except FileNotFoundError:
            return None

    def _size(self, path: str, most: int) -> int:
        """Size of a file on the mirror. Raises DataError for more than `most` bytes, and for links, pipes and devices (file: only)."""
        about = self.fs.info(path)
        if about.get("type") != "file" or about.get("islink"):
            raise DataError(f"{path} is not a regular file")
        if not isinstance(about["size"], int) or about["size"] > most:  # some servers return no size
            raise DataError(f"{path} has {untrusted.shown(about['size'])} bytes; at most {most:,} are allowed")
        return int(about["size"])

    def _get(self, path: str, to: Path, most: int) -> None:
        """Download a file of at most `most` bytes to `to`."""
        self._size(path, most)
        self.fs.get_file(path, str(to))

    def steps(self, stage: str) -> list[str]:
        """Names of finished steps on the mirror, oldest first, not verified."""
        try:
            found = (posixpath.basename(str(path).rstrip("/")) for path in self.fs.ls(self._path(stage), detail=False))
            names = [name for name in found if STEP.fullmatch(name) and self.fs.exists(self._path(stage, name, MANIFEST))]
        except FileNotFoundError:
            return []
        return sorted(names, key=lambda name: int(name[5:]))

    def push(self, step: Path, keep: int) -> None:
        """Verify and upload the step in runs/<run>/<stage>/step_*, then remove all but the newest `keep` on the mirror.

        Raises DataError if the step is damaged.
        """
        checkpoint, run = verify(step), step.parent.parent
        if not self.fs.exists(self._path(RECORD)):
            tokenizer = paths.tokenizer_dir(str(checkpoint.meta["tokenizer"]))
            for path in sorted(tokenizer.iterdir()):
                self._put(path, TOKENIZER, tokenizer.name, path.name)
        if self.read(RECORD) != (run / RECORD).read_bytes():  # reinforcement learning brings settings, a newer version hides a password
            self._put(run / RECORD, RECORD)
        if step.name not in self.steps(step.parent.name):
            for name in checkpoint.files:
                self._put(step / name, step.parent.name, step.name, name)
            self._put(run / METRICS, step.parent.name, step.name, METRICS)
            self._put(step / MANIFEST, step.parent.name, step.name, MANIFEST)
        for name in self.steps(step.parent.name)[:-keep]:
            self.fs.rm_file(self._path(step.parent.name, name, MANIFEST))  # first, because without it the step does not exist
            self.fs.rm(self._path(step.parent.name, name), recursive=True)

    def has_other_folder(self) -> bool:
        """Whether files are there that are not an unfinished copy of `put_folder`."""
        try:
            found = self.fs.ls(self.root, detail=False)
        except FileNotFoundError:
            return False
        return bool(found) and not self.fs.exists(self._path(UNFINISHED))

    def put_folder(self, folder: Path) -> None:
        """Upload the files of an exported directory; a file UNFINISHED is there until all of them are."""
        self.fs.makedirs(self.root, exist_ok=True)
        self.fs.pipe_file(self._path(UNFINISHED), b"this copy is not complete\n")
        for path in sorted(folder.iterdir()):
            self._put(path, path.name)
        self.fs.rm_file(self._path(UNFINISHED))

    def _put(self, path: Path, *parts: str) -> None:
        to, data = self._path(*parts), path.stat().st_size
        self.fs.makedirs(posixpath.dirname(to), exist_ok=True)
        self.fs.put_file(str(path), to)
        if (there := self.fs.info(to)["size"]) < data:  # metrics.jsonl may have grown meanwhile
            raise OSError(f"{to} has {there} of {data} bytes")

    def fetch(self, folder: Path) -> list[str]:
        """Download each stage's newest verified step into `folder` if it is newer than the local one; returns their descriptions."""
        came = []
        for stage in STAGES:
            newest = Checkpoints(folder / stage).newest()
            here = newest.step if newest else -1
            for name in reversed([name for name in self.steps(stage) if int(name[5:]) > here]):
                try:
                    self._fetch_step(folder, stage, name)
                except NewerFormat:
                    raise
                except DataError as error:
                    log(f"warning: on the mirror, {error.message}; falling back to the step before it")
                    continue
                came.append(f"{stage} step {int(name[5:])}")
                break
        return came

    def _fetch_step(self, folder: Path, stage: str, name: str) -> None:
        """Download the files that the step's manifest names. Raises DataError if they are damaged or not a step."""
        to = folder / stage / name
        with paths.atomic_folder(to) as temporary:
            self._get(self._path(stage, name, MANIFEST), temporary / MANIFEST, untrusted.JSON_BYTES)
            try:
                files = checked_manifest(untrusted.read_json(temporary / MANIFEST), self._path(stage, name))
            except (ValueError, KeyError, TypeError) as error:
                raise DataError(f"{self._path(stage, name, MANIFEST)} is damaged ({untrusted.reason(error)})") from error
            require_space(f"fetching {name}", sum(entry["bytes"] for entry in files.values()), folder)
            for file, entry in files.items():
                with contextlib.suppress(FileNotFoundError):  # `verify` reports it
                    self._get(self._path(stage, name, file), temporary / file, entry["bytes"])
            meta = verify(temporary).meta
            if meta["step"] != int(name[5:]) or meta.get("stage", stage) != stage:
                raise DataError(f"{self._path(stage, name)} contains step {meta['step']} of {meta.get('stage', stage)}")
            with contextlib.suppress(FileNotFoundError):
                self._get(self._path(stage, name, METRICS), temporary / METRICS, METRICS_BYTES)
                (temporary / METRICS).replace(folder / METRICS)
            if to.exists():
                shutil.rmtree(to)  # unfinished or damaged, because the mirror's step is newer than the local valid ones

    def fetch_tokenizer(self) -> None:
        """Download the run's tokenizer if it is missing. Raises DataError for a name or a file that is not a tokenizer's."""
        for path in self.fs.ls(self._path(TOKENIZER), detail=False):
            to = paths.tokenizer_dir(self._name(path))
            if not to.exists():
                with paths.atomic_folder(to) as temporary:
                    for file in self.fs.ls(path, detail=False)[:TOKENIZER_FILES]:
                        self._get(file, temporary / self._name(file), VOCABULARY_BYTES)

    @staticmethod
    def _name(path: str) -> str:
        """The last part of a remote path. Raises DataError if it is not a plain file name."""
        try:
            return untrusted.file_name(posixpath.basename(str(path).rstrip("/")))
        except ValueError as error:
            raise DataError(f"on the mirror, {error}") from error


class Uploader:
    """The thread that uploads steps to a mirror: of each stage the newest that was enqueued. A context manager."""

    def __init__(self, mirror: Mirror, keep: int, retry: float = RETRY_SECONDS):
        self.mirror, self.keep, self.retry = mirror, keep, retry
        self.uploading: Path | None = None
        self._waiting: dict[str, Path] = {}  # stage -> step
        self._change = threading.Condition()
        self._over = self._gone = False
        self._thread = threading.Thread(target=self._work, name="mirror", daemon=True)

    def enqueue(self, step: Path) -> None:
        """Upload the saved `step`, instead of an older one of its stage that is still waiting."""
        with self._change:
            self._waiting[step.parent.name] = step
            self._change.notify_all()

    def finish(self, seconds: float) -> None:
        """Wait at most `seconds` for all uploads, not at all if the mirror cannot be reached, and print which are missing."""
        with self._change:
            self._over = True
            self._change.notify_all()
        self._thread.join(seconds)
        missing = [f"{stage}/{step.name}" for stage, step in sorted(self._waiting.items())]
        if missing:
            log(f"warning: not yet uploaded to {self.mirror.url}: {', '.join(missing)}; run the same command again to upload them")

    def __enter__(self) -> "Uploader":
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.finish(600.0 if kind is None else 60.0)

    def _work(self) -> None:
        """Upload waiting steps until `finish`; then try once more."""
        while True:
            with self._change:
                self._change.wait_for(lambda: self._waiting or self._over)
                step, last = next(iter(self._waiting.values()), None), self._over
                self.uploading = step
            if step is None:
                return
            done = self._upload(step)
            with self._change:
                self.uploading = None
                if done and self._waiting.get(step.parent.name) == step:
                    del self._waiting[step.parent.name]
                if not done and last:
                    return
                if not done:
                    self._change.wait_for(lambda: self._over, self.retry)

    def _upload(self, step: Path) -> bool:
        began = time.monotonic()
        try:
            self.mirror.push(step, self.keep)
        except DataError as error:  # removed or damaged; the next step will be uploaded
            if step.exists():
                log(f"warning: not uploaded to the mirror: {error.message}")
            return True
        except Exception as error:  # each kind of mirror raises its own exceptions
            if not self._gone:
                log(f"warning: the mirror {self.mirror.url} cannot be reached ({' '.join(str(error).split()) or type(error).__name__})")
                log("training continues; missing checkpoints are uploaded when the mirror can be reached again")
            self._gone = True
            return False
        if self._gone:
            log(f"the mirror can be reached again; uploaded {step.parent.name}/{step.name}")
        elif time.monotonic() - began > self.retry:
            log(f"uploaded {step.parent.name}/{step.name} to the mirror in {time.monotonic() - began:.0f} s")
        self._gone = False
        return True
