"""A run as one tar file, to be resumed on another machine: its record and checkpoints, its tokenizer, and the user's own text.

    archive.json    {format, run, tokenizer, dataset, texts, files: {name: {bytes, sha256}}}, at the beginning
    run/...         the run's directory, without its lock and heartbeat, and without unfinished or damaged steps
    tokenizer/...   the tokenizer's directory
    text/...        data/user-<hash>/ if the run was trained on the user's text; other text is generated or downloaded again

Reading an archive trusts nothing in it: names, sizes and hashes are checked before anything appears in the data directory.
"""

import contextlib
import hashlib
import json
import re
import shutil
import sys
import tarfile
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from nanochat import paths, untrusted
from nanochat.console import Progress, log
from nanochat.data.shards import open_dataset
from nanochat.data.source import own_files
from nanochat.data.text import imported
from nanochat.errors import DataError, UsageError
from nanochat.hub.archive import tar_files, tar_header
from nanochat.hub.download import require_space
from nanochat.runs import lock
from nanochat.runs.checkpoint import BEST, STEP, Checkpoints, verify
from nanochat.runs.heartbeat import HEARTBEAT
from nanochat.runs.metrics import STAGES
from nanochat.runs.names import MANIFEST, RECORD, plain_name
from nanochat.runs.origin import ORIGIN
from nanochat.runs.record import Record, differing, parse_record, read_record
from nanochat.runs.step_files import checked_run
from nanochat.tokenizer.files import load_tokenizer

INDEX, FORMAT = "archive.json", 1
BLOCK = 1 << 20
OF_A_PROCESS = (lock.LOCK, lock.STOP, HEARTBEAT)  # files of a run's directory that only a running process needs
STEP_FOLDERS = (*STAGES, ORIGIN)
# Names in an archive: a file of the run's directory, of a step, or of the tokenizer or the text.
NAMES = re.compile(rf"run/(?:({'|'.join(STEP_FOLDERS)})/(?:{STEP.pattern}/)?)?[^/.][^/]*|(?:tokenizer|text)/[^/.][^/]*")


@dataclass(frozen=True)
class Packed:
    """A run in an archive: its name, its record (None for an imported model), its newest step of each stage, and the archive's bytes."""

    run: str
    record: Record | None
    steps: dict[str, int]
    bytes: int

    @property
    def has_text(self) -> bool:
        """Whether the archive has the run's text, because it is the user's own."""
        return bool(self.record and self.record.dataset.startswith(imported.PREFIX))

    def describe(self) -> str:
        """The newest step of each stage, for a message."""
        return steps_text(self.steps)

    @property
    def files_elsewhere(self) -> list[str]:
        """Paths of the user's files that the run needs and the archive lacks: conversations, identity, problems."""
        return [path for name, path in own_files(self.record.config).items() if name != "data"] if self.record else []


def pack(run: str, out: Path | None) -> Packed:
    """Write `run`, verified, into the new file `out`; None: to stdout, for a pipe.

    Raises DataError if there is no such run or a file changes meanwhile, UsageError if `out` exists, PreflightError if a process uses the
    run or the disk refuses.
    """
    folder = paths.run_dir(plain_name(run))
    if not folder.is_dir():
        raise DataError(f"there is no run {run!r} here", "list the runs with `nanochat runs`")
    if out and out.exists():
        raise UsageError(f"{out} exists already", "choose another file name")
    with lock.hold(run, "packing it"):
        record, steps = read_record(run), _verified(folder)
        tokenizer = record.tokenizer if record else next((str(step.meta["tokenizer"]) for step in steps), "")
        if not tokenizer:
            raise DataError(f"the run {run!r} has neither a record nor a checkpoint", "train it first")
        members = {f"run/{path.relative_to(folder)}": path for path in _files(folder, [step.folder for step in steps])}
        members |= {f"tokenizer/{path.name}": path for path in _plain(paths.tokenizer_dir(tokenizer))}
        packed = Packed(run, record, _newest(folder), 0)
        if packed.has_text and record:
            members |= {f"text/{path.name}": path for path in _plain(open_dataset(paths.dataset_dir(record.dataset)).folder)}
        index = {"format": FORMAT, "run": run, "tokenizer": tokenizer, "dataset": record.dataset if record and packed.has_text else ""}
        index |= {"texts": imported.entries(str(index["dataset"])) if packed.has_text else {}}
        return Packed(run, record, packed.steps, _write(out, index, members))


def _verified(folder: Path) -> list[Any]:
    """The run's verified steps; damaged ones are left out with a warning. Raises NewerFormat."""
    found = []
    for stage in STEP_FOLDERS:
        newest = Checkpoints(folder / stage).newest()  # which warns of damaged ones, and refuses those of a newer version
        for step in Checkpoints(folder / stage).steps() if newest else []:
            with contextlib.suppress(DataError):
                found.append(verify(step))
    return found


def _files(folder: Path, steps: list[Path]) -> Iterator[Path]:
    """The files of a run's directory that go into its archive."""
    yield from (path for path in _plain(folder) if path.name not in OF_A_PROCESS)
    for step in steps:
        yield from _plain(step)
    yield from (path for stage in STEP_FOLDERS if (path := folder / stage / BEST).is_file())


def _plain(folder: Path) -> list[Path]:
    """The regular files in `folder`, hidden ones left out."""
    return sorted(path for path in folder.iterdir() if path.is_file() and not path.is_symlink() and not path.name.startswith("."))


def _newest(folder: Path) -> dict[str, int]:
    """Stage -> the number of its newest verified step."""
    found = ((stage, Checkpoints(folder / stage).newest()) for stage in STAGES)
    return {stage: step.step for stage, step in found if step}


def _write(out: Path | None, index: dict[str, Any], members: dict[str, Path]) -> int:
    """Write the archive, to a temporary file that is then renamed to `out`, or to stdout; returns its size."""
    size = sum(path.stat().st_size for path in members.values())
    if out:
        require_space(f"the archive of {index['run']}", size, out.absolute().parent)
    with Progress(f"hashing {index['run']}", size, "bytes") as progress:
        files: dict[str, Any] = {
            name: {"bytes": path.stat().st_size, "sha256": paths.sha256(path, progress)} for name, path in members.items()
        }
    text = json.dumps(index | {"files": files}, ensure_ascii=False).encode("utf-8", "backslashreplace")
    written = 0
    try:
        with _target(out) as file, Progress(f"packing {index['run']}", size, "bytes") as progress:
            written += file.write(tar_header(INDEX, len(text)) + text + _padding(len(text)))
            for name, path in members.items():
                written += file.write(tar_header(name, files[name]["bytes"])) + files[name]["bytes"]
                with path.open("rb") as source:
                    _copy(source, file, files[name], name, progress)
                written += file.write(_padding(files[name]["bytes"]))
            written += file.write(bytes(2 * tarfile.BLOCKSIZE))  # the end of a tar archive
    except ValueError as error:
        raise DataError(f"{index['run']} cannot be packed: {untrusted.reason(error)}", "run the same command again") from error
    except BrokenPipeError:
        raise
    except OSError as error:
        raise paths.disk_error(error, f"writing {out or 'to stdout'}", out) from error
    return written


@contextlib.contextmanager
def _target(out: Path | None) -> Iterator[IO[bytes]]:
    """stdout, or a new file that appears as `out` when the block succeeds."""
    if out is None:
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    temporary = out.absolute().parent / f"{paths.TEMPORARY}{uuid.uuid4().hex}"
    try:
        with temporary.open("xb") as file:
            yield file
        paths.fsync_file(temporary)
        temporary.rename(out)
    finally:
        temporary.unlink(missing_ok=True)


def _padding(size: int) -> bytes:
    return bytes(-size % tarfile.BLOCKSIZE)


def _copy(source: IO[bytes], target: IO[bytes], entry: dict[str, Any], name: str, progress: Progress) -> None:
    """Copy exactly the entry's bytes. Raises ValueError if they end early or have another hash."""
    digest, left = hashlib.sha256(), entry["bytes"]
    while left and (block := source.read(min(BLOCK, left))):
        digest.update(block)
        target.write(block)
        left -= len(block)
        progress.advance(len(block))
    if left or digest.hexdigest() != entry["sha256"]:
        raise ValueError(f"{untrusted.shown(name)} has other content than its hash says")


def unpack(archive: Path, replace: bool = False) -> Packed:
    """Bring the run in `archive` into the data directory, verified as a whole before any of it appears.

    With `replace` it may replace the same run at an earlier step. Raises DataError for a damaged or unsafe archive, NewerFormat for a newer
    version's, UsageError if the run exists already, PreflightError for the disk.
    """
    try:
        untrusted.regular_file(archive)
        with archive.open("rb") as file:
            members = tar_files(file)
            index = _index(file, members, str(archive))
            require_space(f"unpacking {archive.name}", sum(entry["bytes"] for entry in index["files"].values()), paths.base_dir())
            _require_free(index["run"], replace)
            temporary = paths.runs_dir() / f"{paths.TEMPORARY}{uuid.uuid4().hex}"
            temporary.mkdir(parents=True)
            try:
                _extract(file, members, index, temporary)
                packed = _checked(temporary, index, archive)
                _place(temporary, index, packed, replace)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
        return packed
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{archive} is not a complete archive of a run: {untrusted.reason(error)}", "copy it again from the machine that packed it"
        ) from error
    except OSError as error:
        if error.filename == str(archive):
            raise DataError(f"{archive} cannot be read: {error.strerror}", "check the file name") from error
        raise paths.disk_error(error, f"unpacking {archive.name}") from error


def _index(file: IO[bytes], members: Iterator[tuple[str, int]], archive: str) -> dict[str, Any]:
    """The archive's index, checked. Raises ValueError, KeyError, TypeError, NewerFormat."""
    name, size = next(members, ("", 0))
    if name != INDEX or size > untrusted.JSON_BYTES:
        raise ValueError(f"it does not begin with {INDEX}")
    index = untrusted.table(untrusted.parse_json(file.read(size).decode("utf-8")), INDEX)
    untrusted.require_format(index["format"], FORMAT, archive)
    checked_run(index["run"])
    untrusted.file_name(index["tokenizer"], "tokenizer")
    if index["dataset"] and not untrusted.file_name(index["dataset"], "dataset").startswith(imported.PREFIX):
        raise ValueError(f"it has the text {untrusted.shown(index['dataset'])}")
    for key, stamp in untrusted.table(index["texts"], "texts").items():
        untrusted.text(key, "a path"), untrusted.text(stamp, "a stamp")
    for name, entry in untrusted.table(index["files"], "files").items():
        if not NAMES.fullmatch(name) or (name.startswith("text/") and not index["dataset"]):
            raise ValueError(f"{untrusted.shown(name)} is no file of a run")
        untrusted.integer(untrusted.table(entry, name)["bytes"], f"the size of {name}")
        untrusted.sha256(entry["sha256"], f"the hash of {name}")
    return index


def _require_free(run: str, replace: bool) -> None:
    folder = paths.run_dir(run)
    if folder.exists() and not replace:
        raise UsageError(
            f"the run {run!r} exists here already", "add --replace if the archive continues it, or remove it with `nanochat runs rm`"
        )


def _extract(file: IO[bytes], members: Iterator[tuple[str, int]], index: dict[str, Any], folder: Path) -> None:
    """Write the archive's files into `folder`, each once, with the sizes and hashes of the index. Raises ValueError, KeyError."""
    missing = dict(index["files"])
    with Progress(f"unpacking {index['run']}", sum(entry["bytes"] for entry in missing.values()), "bytes") as progress:
        for name, size in members:
            if name not in missing or size != missing[name]["bytes"]:
                raise ValueError(f"{untrusted.shown(name)} is not in its index, comes twice or has another size")
            target = untrusted.inside(folder, name)
            target.parent.mkdir(parents=True, exist_ok=True)
            with target.open("xb") as written:
                _copy(file, written, missing.pop(name), name, progress)
            paths.fsync_file(target)
    if missing:
        raise ValueError(f"{len(missing)} files are missing, such as {untrusted.shown(next(iter(missing)))}")


def _checked(folder: Path, index: dict[str, Any], archive: Path) -> Packed:
    """The unpacked run, whose parts belong together and can be read. Raises ValueError, DataError."""
    run, record = folder / "run", None
    if (run / RECORD).exists():
        record = parse_record(untrusted.read_bytes(run / RECORD), Path(f"{archive}/{RECORD}"))
        if (record.config.run, record.tokenizer) != (index["run"], index["tokenizer"]):
            raise ValueError(f"its record is of the run {untrusted.shown(record.config.run)}")
    if load_tokenizer(folder / "tokenizer").id != index["tokenizer"]:
        raise ValueError("it has another tokenizer than its index says")
    for manifest in run.glob(f"*/*/{MANIFEST}"):
        step = verify(manifest.parent)
        if step.meta.get("tokenizer", index["tokenizer"]) != index["tokenizer"]:
            raise ValueError(f"{manifest.parent.name} was trained with another tokenizer")
    if index["dataset"]:
        if record is None or record.dataset != index["dataset"]:
            raise ValueError("its text is not its run's")
        open_dataset(folder / "text")
    return Packed(index["run"], record, _newest(run), archive.stat().st_size)


def _place(folder: Path, index: dict[str, Any], packed: Packed, replace: bool) -> None:
    """Move the parts to their places, the run last. A tokenizer or text that exists already has the same content by its name and stays."""
    for part, to in (("tokenizer", paths.tokenizer_dir(index["tokenizer"])), ("text", paths.dataset_dir(index["dataset"]))):
        if (folder / part).is_dir() and not to.exists():
            to.parent.mkdir(parents=True, exist_ok=True)
            (folder / part).rename(to)
            paths.fsync_dir(to.parent)
    imported.add_entries(index["dataset"], index["texts"])
    target = paths.run_dir(index["run"])
    with contextlib.ExitStack() as stack:
        before = target.parent / f"{index['run']}.replaced"  # a visible name: after a crash it is still a run
        if replace and target.exists():
            stack.enter_context(lock.hold(index["run"], "replacing it"))
            _require_continued(target, packed)
            target.rename(before)
        elif target.exists():
            _require_free(index["run"], replace)
        (folder / "run").rename(target)
        paths.fsync_dir(target.parent)
        shutil.rmtree(before, ignore_errors=True)


def _require_continued(here: Path, packed: Packed) -> None:
    """Raise UsageError unless the archive has the same run as `here`, at the same or a later step."""
    record = read_record(packed.run)
    if record is None or packed.record is None or (different := differing(record, packed.record)):
        what = f" ({', '.join(different)} differ)" if record and packed.record else ""
        raise UsageError(
            f"the run {packed.run!r} here is not the one in the archive{what}", "keep both: unpack in another NANOCHAT_BASE_DIR"
        )
    steps = _newest(here)
    behind = [stage for stage, step in steps.items() if step > packed.steps.get(stage, -1)]
    if behind:
        raise UsageError(
            f"the run {packed.run!r} here is further than the archive: {behind[0]} step {steps[behind[0]]}, "
            f"not {packed.steps.get(behind[0], 'any')}",
            f"keep it, or remove it with `nanochat runs rm {packed.run}` and unpack again",
        )
    log(f"replacing the run {packed.run!r}, which is at {steps_text(steps)} here")


def steps_text(steps: dict[str, int]) -> str:
    """Steps of stages, for a message."""
    return ", ".join(f"{stage} step {step}" for stage, step in steps.items()) or "no checkpoint"
