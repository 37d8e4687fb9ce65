"""Which run a call of `train` means: a new one, one that it resumes, or one that is finished."""

import dataclasses
from pathlib import Path

from nanochat import paths
from nanochat.config import Config
from nanochat.errors import UsageError
from nanochat.evaluation.results import SUMMARY, forget_summary, read_results
from nanochat.pipeline import mirrored
from nanochat.planning.autosize import as_begun
from nanochat.planning.rules import normal
from nanochat.runs import record as runs
from nanochat.runs.checkpoint import Checkpoints
from nanochat.runs.metrics import STAGES
from nanochat.runs.report_schema import REPORT

BASE, SFT, RL = STAGES


@dataclasses.dataclass(frozen=True)
class Request:
    """One call of `train`: the config that it was given, the stages that it is to train, and when it began (time.monotonic())."""

    config: Config
    stages: tuple[str, ...]
    began: float


@dataclasses.dataclass(frozen=True)
class Identity:
    """The run that a call means: its config, and its record, None if it is new. `finished` says so where nothing is left to do."""

    config: Config
    record: runs.Record | None
    finished: str = ""


def identify(request: Request) -> Identity:
    """Find the run, after bringing from its mirror what is further there.

    Raises UsageError if the name belongs to a run of another config, DataError if its record is damaged, PreflightError if
    the mirror cannot be reached and nothing is here.
    """
    config = normal(request.config)
    if config.mirror and mirrored.fetch(config.mirror, config.run):
        forget_results(config.run)
    record = runs.read_record(config.run)
    if record is None:
        if runs.has_checkpoints(config.run):
            raise UsageError(
                f"the run {config.run!r} was imported: it has no text and no optimizer state to resume from",
                f"begin a new run with its weights: `nanochat train --from {config.run} --run NEW`",
            )
        return Identity(config, None)
    runs.remove_credentials(record)
    config = runs.inherit(as_begun(config, record.config), record, RL in request.stages)
    finished = _finished(record.config, request.stages)
    if finished and config.mirror:
        mirrored.catch_up(config)
    return Identity(config, record, finished)


def recorded(request: Request) -> runs.Record:
    """The record that this process's launcher has written before it started its workers."""
    record = runs.read_record(request.config.run)
    assert record is not None, request.config.run
    return dataclasses.replace(record, config=runs.inherit(normal(request.config), record, RL in request.stages))


def forget_results(run: str) -> None:
    """Remove what describes a run as it was before."""
    forget_summary(paths.run_dir(run))
    (paths.run_dir(run) / REPORT).unlink(missing_ok=True)


def _finished(config: Config, stages: tuple[str, ...]) -> str:
    """One line where nothing is left to do in `stages`, else nothing."""
    folder = paths.run_dir(config.run)
    trained = all(_step(folder / stage) >= config.steps[stage] for stage in stages if config.steps[stage])
    if not trained or SUMMARY not in read_results(folder):
        return ""
    last = next((stage for stage in reversed(stages) if config.steps[stage]), BASE)
    return f"the run {config.run!r} is finished: its model is {folder / last}, its report {folder / 'report.html'} (for another: --run NEW)"


def _step(stage: Path) -> float:
    """The newest good step of a stage; less than any where there is none."""
    newest = Checkpoints(stage).newest()
    return newest.step if newest else float("-inf")
