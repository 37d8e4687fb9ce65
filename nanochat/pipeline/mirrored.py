"""A run and its mirror: newer steps are fetched before the run resumes, and saved steps are uploaded."""

import contextlib
from collections.abc import Iterator

from nanochat import paths, untrusted
from nanochat.config import Config
from nanochat.console import log
from nanochat.distributed.ranks import Ranks
from nanochat.errors import DataError, NanochatError, PreflightError, UsageError
from nanochat.runs import record as runs
from nanochat.runs.checkpoint import Checkpoints
from nanochat.runs.metrics import STAGES
from nanochat.runs.mirror import RECORD, Mirror, Uploader
from nanochat.runs.origin import parse_source


def fetch(url: str, run: str) -> bool:
    """Fetch newer steps of the run from its mirror; returns whether there were any.

    Raises UsageError if the mirror has another run of that name, PreflightError if it cannot be reached and there is no local run, because
    the run may exist on the mirror.
    """
    here = runs.read_record(run)
    try:
        mirror = Mirror(url, run)  # some kinds connect here
        data = mirror.read(RECORD)
        if data is None:
            return False
        there = runs.parse_record(data, paths.run_dir(run) / RECORD)
        if there.config.run != run:  # the name becomes a local directory
            raise DataError(
                f"the mirror {url} has the run {untrusted.shown(there.config.run)} instead of {run!r}", "choose another --mirror"
            )
        if here:
            _require_same_run(here, there, url)
        else:
            mirror.fetch_tokenizer()
            there.write()
        came = mirror.fetch(paths.run_dir(run))
        reinforced = any(step.startswith(STAGES[-1]) for step in came)
        if reinforced or (here and here.paced != there.paced):
            there.write()
    except NanochatError:
        raise
    except Exception as error:  # each kind of mirror raises its own exceptions
        said = " ".join(str(error).split()) or type(error).__name__
        if not here:
            raise PreflightError(
                f"the mirror {url} cannot be reached ({said}), and this machine has no run {run!r}",
                "try again when it can be reached, or leave out --mirror to start a new run",
            ) from error
        log(f"warning: the mirror {url} cannot be reached ({said}); resuming from local checkpoints")
        return False
    if came:
        log(f"downloaded from the mirror {url}: {', '.join(came)}")
    return bool(came)


def fetch_source(asked: str, run: str, url: str) -> None:
    """Fetch the run that `--from ASKED` names from the mirror at `url`, if this machine has neither it nor `run`, which begins from it.

    Raises UsageError for another form of `asked`, PreflightError if the mirror cannot be reached, DataError.
    """
    name = parse_source(asked).run
    if url and not runs.has_checkpoints(name) and not runs.read_record(run):
        with paths.locked(paths.runs_dir() / f".{name}.lock", f"another command that fetches {name}"):
            if not runs.has_checkpoints(name):
                fetch(url, name)


def _require_same_run(here: runs.Record, there: runs.Record, url: str) -> None:
    """Raise UsageError if the two differ in settings that decide the losses."""
    if different := runs.differing(here, there):
        raise UsageError(
            f"the mirror {url} has another run {here.config.run!r} ({', '.join(different)} differ)",
            "choose a new name with --run NEW, or another --mirror",
        )


def _enqueue_newest(uploader: Uploader, config: Config) -> None:
    for stage in STAGES:
        for step in Checkpoints(paths.run_dir(config.run) / stage).steps()[-1:]:
            uploader.enqueue(step)


def catch_up(config: Config) -> None:
    """Upload the missing steps of a finished run."""
    with Uploader(Mirror(config.mirror, config.run), config.keep_last) as uploader:
        _enqueue_newest(uploader, config)


@contextlib.contextmanager
def copying(config: Config, here: Ranks) -> Iterator[Uploader | None]:
    """The uploader of saved steps to the config's mirror, on the main rank, beginning with the newest; None if there is no mirror."""
    if not config.mirror or not here.main:
        yield None
        return
    with Uploader(Mirror(config.mirror, config.run), config.keep_last) as uploader:
        _enqueue_newest(uploader, config)
        yield uploader
