"""Parallel download of several files: disk space check, progress, and one report at the end."""

import contextlib
import queue
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path

from nanochat.console import Progress, log, quantity
from nanochat.errors import NanochatError, PreflightError
from nanochat.hub.addresses import Remote
from nanochat.hub.transfer import PART, Meter, fetch

PARALLEL = 4  # downloads at once
ABANDONED = 30 * 86400  # seconds after which an unfinished download is removed
FEWER = "or ask for fewer shards"  # how a download needs less space


def held(remote: Remote, folder: Path) -> int:
    """Bytes of a file that an earlier call left in `folder`."""
    path = folder / f"{PART}{remote.name}"
    return path.stat().st_size if path.exists() else 0


def fetch_all(
    what: str,
    files: list[Remote],
    folder: Path,
    done: Callable[[Path, str], object],
    relist: Callable[[Remote], Remote] | None = None,
) -> None:
    """Fetch `files`, PARALLEL at once; `done(path, sha256)` is called in this thread after each one.

    The first failure stops the others and is raised after they have stopped. Raises PreflightError if the disk is too full.
    """
    _sweep(folder)
    known = all(remote.size for remote in files)
    missing = sum(max((remote.size or 0) - held(remote, folder), 0) for remote in files) if known else 0
    require_space(what, missing, folder, FEWER)
    stop, todo, finished = threading.Event(), queue.SimpleQueue[Remote](), queue.SimpleQueue[tuple[Remote, str | NanochatError]]()
    for remote in files:
        todo.put(remote)
    failure: NanochatError | None = None
    with Progress(what, missing, "bytes") as progress:
        meter = Meter(progress)

        def work() -> None:
            with contextlib.suppress(queue.Empty):
                while True:
                    remote = todo.get_nowait()
                    try:
                        finished.put((remote, fetch(remote, folder, meter, stop, relist)))
                    except NanochatError as error:
                        stop.set()
                        finished.put((remote, error))
                    except Exception as error:  # an internal error must not leave the caller waiting
                        stop.set()
                        finished.put((remote, NanochatError(f"{remote.name}: {type(error).__name__}: {error}")))

        # Daemons, because a thread that waits for a silent server would keep an interrupted process alive for a minute.
        for _ in range(min(PARALLEL, len(files))):
            threading.Thread(target=work, daemon=True).start()
        try:
            for _ in files:
                remote, result = finished.get()
                if isinstance(result, NanochatError):
                    failure = failure or result
                elif not failure:
                    done(folder / remote.name, result)
        finally:
            stop.set()
        if failure:
            raise failure
    _report(len(files), meter)


def _report(count: int, meter: Meter) -> None:
    """Log one line about the download."""
    faults = f", {meter.retries} retries, {quantity(meter.discarded)}B downloaded twice" if meter.retries else ""
    log(f"{count} file(s) downloaded and verified{faults}")


def require_space(what: str, needed: int, folder: Path, smaller: str = "") -> None:
    """Raise PreflightError unless `needed` bytes are free where `folder` is or will be; `smaller` says how to need less."""
    free = shutil.disk_usage(next(parent for parent in (folder, *folder.parents) if parent.exists())).free
    if needed > free:
        hint = "free some space, or set NANOCHAT_BASE_DIR to a directory on a larger disk" + (f", {smaller}" if smaller else "")
        raise PreflightError(f"{what} needs {quantity(needed)}B, and {quantity(free)}B are free in {folder}", hint)


def _sweep(folder: Path) -> None:
    """Remove partial files whose download has finished since, or that are a month old."""
    for path in folder.glob(f"{PART}*"):
        with contextlib.suppress(OSError):
            whole = path.name.removeprefix(PART).removesuffix(".json")
            if (folder / whole).exists() or time.time() - path.stat().st_mtime > ABANDONED:
                path.unlink()
