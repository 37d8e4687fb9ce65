"""The run of a call of `train`: a new one, one to resume, or a finished one."""

import dataclasses
from pathlib import Path

from nanochat import paths
from nanochat.config import Config
from nanochat.data.source import text_source
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
    """One call of `train`: its config, the stages to train, and its start by awake.monotonic()."""

    config: Config
    stages: tuple[str, ...]
    began: float


@dataclasses.dataclass(frozen=True)
class Identity:
    """The run of a call: its config, its record (None if new), and `finished`, a message if there is nothing left to do."""

    config: Config
    record: runs.Record | None
    finished: str = ""


def identify(request: Request) -> Identity:
    """Find the run, after fetching newer steps from its mirror.

    Raises UsageError if the name belongs to a run of another config, DataError if its record is damaged, PreflightError if
    the mirror cannot be reached and there is no local run.
    """
    config = normal(request.config)
    if config.mirror and mirrored.fetch(config.mirror, config.run):
        forget_results(config.run)
    record = runs.read_record(config.run)
    if record is None:
        if runs.has_checkpoints(config.run):
            raise UsageError(
                f"the run {config.run!r} was imported: it has no text and no optimizer state to resume from",
                f"begin a new run from its weights with `nanochat train --from {config.run} --run NEW`",
            )
        return Identity(config, None)
    runs.remove_credentials(record)
    config = runs.inherit(as_begun(_by_content(config, record), record.config), record, RL in request.stages)
    finished = _finished(record.config, request.stages)
    if finished and config.mirror:
        mirrored.catch_up(config)
    return Identity(config, record, finished)


def recorded(request: Request) -> runs.Record:
    """The record that this worker's launcher has written."""
    record = runs.read_record(request.config.run)
    assert record is not None, request.config.run
    return dataclasses.replace(record, config=runs.inherit(_by_content(normal(request.config), record), record, RL in request.stages))


def _by_content(config: Config, record: runs.Record) -> Config:
    """`config` with the record's path of the text if its own path has the same text: a moved or copied file is no other configuration."""
    if not config.data or not record.config.data or config.data == record.config.data:
        return config
    same = text_source(config).open().folder.name == record.dataset
    return config.replace(data=record.config.data) if same else config


def forget_results(run: str) -> None:
    """Remove the results of a run that resumes training."""
    forget_summary(paths.run_dir(run))
    (paths.run_dir(run) / REPORT).unlink(missing_ok=True)


def _finished(config: Config, stages: tuple[str, ...]) -> str:
    """A message if there is nothing left to do in `stages`, else ""."""
    folder = paths.run_dir(config.run)
    trained = all(_step(folder / stage) >= config.steps[stage] for stage in stages if config.steps[stage])
    if not trained or SUMMARY not in read_results(folder):
        return ""
    last = next((stage for stage in reversed(stages) if config.steps[stage]), BASE)
    return f"the run {config.run!r} is finished (model {folder / last}, report {folder / 'report.html'}); use --run NEW for a new run"


def _step(stage: Path) -> float:
    """The newest verified step of a stage; -inf if there is none."""
    newest = Checkpoints(stage).newest()
    return newest.step if newest else float("-inf")
