"""Stopping a run's training from another process: a signal, or a request in the run's directory if the process is not visible here.

Only the process that holds the run's lock for training is asked, never another one that has got its process id.
"""

import dataclasses
import time
from pathlib import Path

from nanochat import paths
from nanochat.console import log
from nanochat.errors import DataError, HungError, PreflightError, UsageError
from nanochat.runs.checkpoint import Checkpoints
from nanochat.runs.lock import LOOK, STOP, TRAINING, Holder, holder_of
from nanochat.runs.metrics import STAGES
from nanochat.runs.names import plain_name

WAIT = 180.0  # seconds for the current step and its checkpoint, as in docker-compose.yml


@dataclasses.dataclass(frozen=True)
class Stopped:
    """The stopped process and the newest verified checkpoint. `saved` is whether that is newer than the request."""

    holder: Holder
    stage: str
    step: int
    saved: bool


def stop_run(run: str, seconds: float = WAIT) -> Stopped | None:
    """Ask the process that trains `run` to save a checkpoint and exit, and wait for it; None if none trains it.

    Raises DataError if there is no such run, UsageError if the process that uses it does not train, PreflightError if it may not be
    signalled, HungError if it has not ended after `seconds`.
    """
    folder = paths.run_dir(plain_name(run))
    if not folder.is_dir():
        raise DataError(f"there is no run {run!r} here", "list the runs with `nanochat runs`")
    holder = holder_of(folder)
    if holder is None:
        return None
    if holder.doing != TRAINING:
        raise UsageError(f"the run {run!r} is not being trained: {holder}", "wait until that process has finished")
    before = _newest(folder)
    _ask(folder, holder, run)
    began = time.monotonic()
    try:
        while (now := holder_of(folder)) is not None and now.token == holder.token:
            if time.monotonic() - began > seconds:
                raise HungError(
                    f"the run {run!r} has not stopped within {seconds:g} s ({holder})",
                    f"wait for the end of its step with `nanochat runs stop {run} --wait {2 * seconds:g}`",
                )
            time.sleep(LOOK)
    finally:
        if not holder.visible:
            (folder / STOP).unlink(missing_ok=True)
    after = _newest(folder)
    stage, step = after or ("", 0)
    return Stopped(holder, stage, step, saved=after is not None and after != before)


def _ask(folder: Path, holder: Holder, run: str) -> None:
    """Signal a visible process; leave a request for any other."""
    if not holder.visible:
        paths.atomic_write(folder / STOP, holder.token)
        log(f"asking {holder}, to stop; it looks for the request every few seconds")
        return
    log(f"stopping {holder}: it finishes its step and saves a checkpoint")
    try:
        holder.terminate()
    except PermissionError as error:
        raise PreflightError(f"the run {run!r} belongs to another user's process: {holder}", "stop it as that user") from error


def _newest(folder: Path) -> tuple[str, int] | None:
    """(stage, step) of the newest verified checkpoint of the last stage that has one."""
    for stage in reversed(STAGES):
        if step := Checkpoints(folder / stage).newest():
            return stage, step.step
    return None
