"""A run's checkpoints copied elsewhere while it trains, and fetched from there if its machine is lost.

    URL/<run>/config.toml  tokenizer/...                the run's record, and its tokenizer's folder
    URL/<run>/<stage>/step_000100/{..., manifest.json}  verified before it is copied, its manifest last; metrics.jsonl beside it

Any URL that fsspec knows: file:, s3:, gs:, hf:. A thread uploads; training waits for it at its end alone, for a bounded time. If the
mirror cannot be reached, that costs a warning, and what is missing there is uploaded when it is back.
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
from nanochat.errors import DataError, UsageError
from nanochat.hub.download import require_space
from nanochat.redaction import redact
from nanochat.runs.checkpoint import STEP, Checkpoints, verify
from nanochat.runs.metrics import STAGES
from nanochat.runs.step_files import MANIFEST, checked_manifest
from nanochat.tokenizer.formats import VOCABULARY_BYTES

PACKAGES = {"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "hf": "huggingface_hub"}
OPTIONS: dict[str, dict[str, Any]] = {  # a server that does not answer must not hold a thread for minutes
    name: {"config_kwargs": {"connect_timeout": 10, "read_timeout": 60, "retries": {"max_attempts": 2}}} for name in ("s3", "s3a")
}
RETRY_SECONDS = 60.0  # between two tries of a mirror that cannot be reached
METRICS_BYTES = 4 << 30  # at most: some 200 bytes a step
TOKENIZER_FILES = 10  # in its folder at most
METRICS, RECORD, TOKENIZER = "metrics.jsonl", "config.toml", "tokenizer"


class Mirror:
    """The place of one run at `url`. Raises UsageError where it is of no known kind, or the package for it is missing.

    Its methods raise what the kind's package raises where it cannot be reached: any Exception.
    """

    def __init__(self, url: str, run: str):
        scheme = url.partition(":")[0]
        try:
            self.fs, root = fsspec.core.url_to_fs(url, use_listings_cache=False, skip_instance_cache=True, **OPTIONS.get(scheme, {}))
        except ImportError as error:
            package = PACKAGES.get(scheme, "")
            hint = f"install it beside nanochat: uv pip install {package}" if package else "file:, s3:, gs: and hf: are known"
            raise UsageError(f"the mirror {url} needs the Python package {package or str(error)}, which is not installed", hint) from error
        except ValueError as error:
            raise UsageError(
                f"the mirror {url} is of no known kind ({error})", "as in --mirror s3://bucket/folder or file:///mnt/nas"
            ) from error
        self.url, self.root = redact(url), posixpath.join(root, run)  # the address is for messages alone

    def _path(self, *parts: str) -> str:
        return posixpath.join(self.root, *parts)

    def read(self, name: str, most: int = untrusted.JSON_BYTES) -> bytes | None:
        """A file of the run there; None where there is none. Raises DataError where it is larger than `most` bytes, or no plain file."""
        try:
            self._size(self._path(name), most)
            return bytes(self.fs.cat_file(self._path(name)))
        except FileNotFoundError:
            return None

    def _size(self, path: str, most: int) -> int:
        """Bytes of a file there. Raises DataError for more than `most`, and for links, pipes and devices, which only a folder can hold."""
        about = self.fs.info(path)
        if about.get("type") != "file" or about.get("islink"):
            raise DataError(f"{path} is no plain file")
        if not isinstance(about["size"], int) or about["size"] > most:  # some servers do not say
            raise DataError(f"{path} has {untrusted.shown(about['size'])} bytes, and at most {most:,} are possible")
        return int(about["size"])

    def _get(self, path: str, to: Path, most: int) -> None:
        """Fetch a file of at most `most` bytes into the plain name `to`."""
        self._size(path, most)
        self.fs.get_file(path, str(to))

    def steps(self, stage: str) -> list[str]:
        """Names of finished steps there, oldest first; unverified."""
        try:
            found = (posixpath.basename(str(path).rstrip("/")) for path in self.fs.ls(self._path(stage), detail=False))
            names = [name for name in found if STEP.fullmatch(name) and self.fs.exists(self._path(stage, name, MANIFEST))]
        except FileNotFoundError:
            return []
        return sorted(names, key=lambda name: int(name[5:]))

    def push(self, step: Path, keep: int) -> None:
        """Copy the step in the folder runs/<run>/<stage>/step_*, which is verified first, then remove all but the newest `keep` there.

        Raises DataError where it is damaged.
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
            self.fs.rm_file(self._path(step.parent.name, name, MANIFEST))  # first: without it the step does not exist
            self.fs.rm(self._path(step.parent.name, name), recursive=True)

    def _put(self, path: Path, *parts: str) -> None:
        to, data = self._path(*parts), path.stat().st_size
        self.fs.makedirs(posixpath.dirname(to), exist_ok=True)
        self.fs.put_file(str(path), to)
        if (there := self.fs.info(to)["size"]) < data:  # metrics.jsonl may have grown meanwhile
            raise OSError(f"{to} has {there} of {data} bytes")

    def fetch(self, folder: Path) -> list[str]:
        """Bring into the run's `folder` the newest good step of each stage that is further there than here; says what came."""
        came = []
        for stage in STAGES:
            newest = Checkpoints(folder / stage).newest()
            here = newest.step if newest else -1
            for name in reversed([name for name in self.steps(stage) if int(name[5:]) > here]):
                try:
                    self._fetch_step(folder, stage, name)
                except DataError as error:
                    log(f"warning: on the mirror, {error.message}; falling back to the step before it")
                    continue
                came.append(f"{stage} step {int(name[5:])}")
                break
        return came

    def _fetch_step(self, folder: Path, stage: str, name: str) -> None:
        """Fetch the files that the step's manifest names, and no others. Raises DataError where they are not a step's, or damaged."""
        to = folder / stage / name
        with paths.atomic_folder(to) as temporary:
            self._get(self._path(stage, name, MANIFEST), temporary / MANIFEST, untrusted.JSON_BYTES)
            try:
                files = checked_manifest(untrusted.read_json(temporary / MANIFEST))
            except (ValueError, KeyError, TypeError) as error:
                raise DataError(f"{self._path(stage, name, MANIFEST)} is damaged ({untrusted.reason(error)})") from error
            require_space(f"fetching {name}", sum(entry["bytes"] for entry in files.values()), folder)
            for file, entry in files.items():
                with contextlib.suppress(FileNotFoundError):  # verify names it
                    self._get(self._path(stage, name, file), temporary / file, entry["bytes"])
            meta = verify(temporary).meta
            if meta["step"] != int(name[5:]) or meta.get("stage", stage) != stage:
                raise DataError(f"{self._path(stage, name)} holds step {meta['step']} of {meta.get('stage', stage)}")
            with contextlib.suppress(FileNotFoundError):
                self._get(self._path(stage, name, METRICS), temporary / METRICS, METRICS_BYTES)
                (temporary / METRICS).replace(folder / METRICS)
            if to.exists():
                shutil.rmtree(to)  # unfinished or damaged: else it would not be further there

    def fetch_tokenizer(self) -> None:
        """Bring the run's tokenizer, where it is not here. Raises DataError where a name or a file there is none of a tokenizer's."""
        for path in self.fs.ls(self._path(TOKENIZER), detail=False):
            to = paths.tokenizer_dir(self._name(path))
            if not to.exists():
                with paths.atomic_folder(to) as temporary:
                    for file in self.fs.ls(path, detail=False)[:TOKENIZER_FILES]:
                        self._get(file, temporary / self._name(file), VOCABULARY_BYTES)

    @staticmethod
    def _name(path: str) -> str:
        """The last part of a path there. Raises DataError where it cannot be a name here."""
        try:
            return untrusted.file_name(posixpath.basename(str(path).rstrip("/")))
        except ValueError as error:
            raise DataError(f"on the mirror, {error}") from error


class Uploader:
    """The thread that uploads steps to a mirror: the newest one of each stage that was enqueued. A context manager."""

    def __init__(self, mirror: Mirror, keep: int, retry: float = RETRY_SECONDS):
        self.mirror, self.keep, self.retry = mirror, keep, retry
        self.uploading: Path | None = None
        self._waiting: dict[str, Path] = {}  # stage -> step
        self._change = threading.Condition()
        self._over = self._gone = False
        self._thread = threading.Thread(target=self._work, name="mirror", daemon=True)

    def enqueue(self, step: Path) -> None:
        """Upload `step`, which is saved; an older one of its stage that still waits is dropped."""
        with self._change:
            self._waiting[step.parent.name] = step
            self._change.notify_all()

    def finish(self, seconds: float) -> None:
        """Wait until all that was enqueued is there; after `seconds`, or where the mirror cannot be reached, say what is missing."""
        with self._change:
            self._over = True
            self._change.notify_all()
        self._thread.join(seconds)
        missing = [f"{stage}/{step.name}" for stage, step in sorted(self._waiting.items())]
        if missing:
            log(f"warning: not on the mirror {self.mirror.url} yet: {', '.join(missing)}; the same command catches up")

    def __enter__(self) -> "Uploader":
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.finish(600.0 if kind is None else 60.0)

    def _work(self) -> None:
        """Upload what waits, until told that no more comes; then try once more."""
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
        except DataError as error:  # it was removed, or is damaged: the next one will do
            if step.exists():
                log(f"warning: not copied to the mirror: {error.message}")
            return True
        except Exception as error:  # each kind of mirror has its own
            if not self._gone:
                log(f"warning: the mirror {self.mirror.url} cannot be reached ({' '.join(str(error).split()) or type(error).__name__})")
                log("training goes on; what is missing there is caught up when it is back")
            self._gone = True
            return False
        if self._gone:
            log(f"the mirror is back: {step.parent.name}/{step.name} is there")
        elif time.monotonic() - began > self.retry:
            log(f"{step.parent.name}/{step.name} is on the mirror, after {time.monotonic() - began:.0f} s")
        self._gone = False
        return True
