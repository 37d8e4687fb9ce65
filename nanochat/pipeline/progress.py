"""The time left of a whole run, shown by all progress within it: preparation, stages and evaluation."""

import contextlib
from collections.abc import Iterator, Sequence

from nanochat.config import Config
from nanochat.console import duration, end_live, within
from nanochat.planning.plan import end_work
from nanochat.train.timeleft import RunClock, stage_works


def run_clock(config: Config, stages: Sequence[str], rate: float) -> RunClock:
    """The clock of a call that trains `stages` of a resolved config, at the planned `rate` in training tokens per second (0: unknown)."""
    tokens, seconds = end_work(config)
    works = [work for work in stage_works(config) if work.name in stages]
    return RunClock(works, rate, tokens, seconds, config.nproc_per_node)


@contextlib.contextmanager
def showing(clock: RunClock) -> Iterator[None]:
    """Show the run's present part and its time left beside all progress of the block."""
    try:
        with within(lambda seconds: (clock.place, duration(clock.remaining(seconds).run))):
            yield
    finally:
        end_live()
