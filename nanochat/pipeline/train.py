"""`train`: from a config to a report, in one process, with its own launcher, or under a user's torchrun.

identity.py finds the run, prepare.py prepares the first step, stages.py trains, and finish.py evaluates.
"""

import contextlib
import math
import os
from collections.abc import Callable, Iterator, Sequence

from nanochat import console, paths
from nanochat.config import Config
from nanochat.console import log
from nanochat.data.source import text_source
from nanochat.distributed import memory, ranks
from nanochat.errors import Preempted
from nanochat.hardware import awake, priority
from nanochat.hardware.machine import this_machine
from nanochat.pipeline import mirrored
from nanochat.pipeline.finish import finish, show_result
from nanochat.pipeline.identity import BASE, SFT, Request, forget_results, recorded
from nanochat.pipeline.prepare import Prepared, prepare
from nanochat.pipeline.progress import run_clock, showing
from nanochat.pipeline.stages import train_stages
from nanochat.planning.autosize import HoursPacer
from nanochat.planning.plan import make_plan
from nanochat.report.collect import PLAN
from nanochat.runs import lock, trackers
from nanochat.runs.heartbeat import heartbeat, why_killed
from nanochat.runs.metrics import Metrics, read_metrics
from nanochat.runs.mirror import Uploader
from nanochat.runs.record import Record, current_steps, open_text
from nanochat.tokenizer.files import load_tokenizer
from nanochat.train import device
from nanochat.train.deadline import Deadline
from nanochat.train.session import Session
from nanochat.train.signals import StopSignal
from nanochat.train.threads import ThreadTuner
from nanochat.train.timeleft import RunClock

BEGAN = "NANOCHAT_BEGAN"  # start of the launcher's command, by time.monotonic(), which all processes share, without its suspensions


def train(config: Config, stages: Sequence[str] = (BASE, SFT), relaunch: Sequence[str] = ()) -> int:
    """Train the run of `config` through `stages`, resuming it if it exists; returns the exit code.

    `relaunch` is the workers' command line (after the interpreter), if the config has several processes.
    Raises UsageError if the name belongs to another run, PreflightError if a check fails or the job's deadline is
    reached, DataError, NonFiniteError, OutOfMemoryError, Preempted.
    """
    with StopSignal().installed() as stop, Deadline.of(os.environ).kept(stop):
        call = Call(Request(config, tuple(stages), awake.monotonic()), stop)
        with _priority(config):
            return call.in_worker() if ranks.launched() else call.in_launcher(list(relaunch))


@contextlib.contextmanager
def _priority(config: Config) -> Iterator[None]:
    """Lower the priority of this process, with `--background`. Workers inherit it, but each is a session of its own."""
    if not config.background:
        yield
        return
    with priority.lowered() as lowers:
        if not ranks.launched():
            log(f"background: lowest priority for {' and '.join(lowers) or 'nothing, as this system has no such setting'}")
        yield


class Call:
    """One call of `train` in this process."""

    def __init__(self, request: Request, stop: StopSignal):
        self.request, self.stop = request, stop

    def in_launcher(self, relaunch: list[str]) -> int:
        """Run in the user's process: prepare the run, then train in it or start workers. Returns the exit code."""
        paths.require_writable(paths.base_dir())
        paths.sweep()
        processes = self.request.config.nproc_per_node
        if ranks.nodes() > 1:  # the main rank prepares the run for all nodes
            return ranks.launch(relaunch, processes)
        with lock.hold(self.request.config.run, lock.TRAINING):
            return self._train_locked(relaunch, processes)

    def _train_locked(self, relaunch: list[str], processes: int) -> int:
        """Prepare and train the run under its lock. Returns the exit code."""
        prepared = prepare(self.request)
        if isinstance(prepared, str):
            log(prepared)
        elif processes > 1:
            os.environ[BEGAN] = str(self.request.began + awake.clock.suspended)
            code = ranks.launch(relaunch, processes)
            if code:
                return code
            self.stop.trained = True
        else:
            device.set_up(prepared.record.config)
            with ranks.join(prepared.record.config.device) as here:
                self._run(prepared, here)
        show_result(self.request.config)
        return 0

    def in_worker(self) -> int:
        """Run in one of several processes: the main rank prepares the rest while the others wait. Returns the exit code."""
        if os.environ["RANK"] != "0":
            console.mute()
        request = self.request = _as_launched(self.request)
        alone = ranks.has_launcher() and ranks.nodes() == 1  # then the launcher has prepared the run, and has its lock
        with ranks.join(request.config.device) as here, contextlib.ExitStack() as held:
            if here.main and not alone:
                held.enter_context(lock.hold(request.config.run, lock.TRAINING))
            prepared = _recorded(request) if alone else here.main_first("prepared", lambda: prepare(request))
            if isinstance(prepared, str):
                log(prepared)
                return 0
            device.set_up(prepared.record.config)
            self._run(prepared, here)
        return 0

    def _run(self, prepared: Prepared, here: ranks.Ranks) -> None:
        """Train the incomplete stages, evaluate and report, with uploads to the mirror and metrics to the tracker."""
        record, config = prepared.record, prepared.record.config
        try:
            clock = run_clock(config, self.request.stages, _planned_rate(record) if here.main else 0.0)
            with (
                showing(clock),
                heartbeat_for(record, here, clock),
                mirrored.copying(config, here) as uploader,
                trackers.following(config, here) as follow,
            ):
                session = self._session(record, here, uploader, follow)
                session.clock = clock
                began = self._first_call(session)
                if config.hours:
                    session.pacer = HoursPacer(record, began, clock)
                if self._measures_threads(config, here):
                    session.stepped = ThreadTuner(config.threads)
                train_stages(session, self.request.stages, prepared.source)
                finish(session, began)
        except Preempted:
            if self.stop.in_loop:  # all ranks stop after the same step, because the first exit stops the main rank during an upload
                here.gather_objects(None)
            raise

    def _measures_threads(self, config: Config, here: ranks.Ranks) -> bool:
        """Whether the number of threads follows from measured steps: on a CPU, with one process and without a number of the user's.

        A compiled step keeps the number that it was compiled for.
        """
        free = self.request.config.threads == -1 and not config.deterministic and config.compile != "on"
        return free and config.device == "cpu" and here.world_size == 1 and config.threads > 1

    def _session(self, record: Record, here: ranks.Ranks, uploader: Uploader | None, follow: Callable[[Metrics], object]) -> Session:
        """All that the stages share, its memory capped."""
        config = record.config
        text = open_text(record) if config.num_iterations else None
        memory.cap(here.device)
        rate = make_plan(config, this_machine(config.device)).tokens_per_second if here.main else 0.0
        tokenizer = load_tokenizer(paths.tokenizer_dir(record.tokenizer))
        return Session(config, text, tokenizer, paths.run_dir(config.run), here, self.stop, rate, uploader, follow, record.first_row)

    def _first_call(self, session: Session) -> float:
        """The run's start on the main rank, minus the training time of earlier calls, and including the launcher's time."""
        began = self.request.began
        if not session.ranks.main:
            return began
        forget_results(session.config.run)
        earlier = read_metrics(session.folder / "metrics.jsonl")
        return began - earlier[-1]["elapsed_seconds"] if earlier else float(os.environ.get(BEGAN, began))


def _recorded(request: Request) -> Prepared:
    """The run as this worker's launcher has prepared it."""
    record = recorded(request)
    return Prepared(record, text_source(record.config))


def _as_launched(request: Request) -> Request:
    """The request with this worker's number of processes and device."""
    config = request.config
    if config.device == "auto":
        config = config.replace(device="cuda" if this_machine().cuda else "cpu")
    return Request(config.replace(nproc_per_node=int(os.environ["WORLD_SIZE"])), request.stages, request.began)


def _planned_rate(record: Record) -> float:
    """Training tokens per second of the plan that the run began with; 0 if it is unknown."""
    rate = paths.read_json_object(paths.run_dir(record.config.run) / PLAN).get("tokens_per_second")
    return rate if isinstance(rate, float) and 0 < rate < math.inf else 0.0


@contextlib.contextmanager
def heartbeat_for(record: Record, here: ranks.Ranks, clock: RunClock) -> Iterator[None]:
    """Write the run's heartbeat during the block, on the main rank."""
    if not here.main:
        yield
        return
    config = record.config
    if not ranks.has_launcher() and (why := why_killed(paths.run_dir(config.run))):
        log(why)
    about = {"device": here.device.type, "trial": config.trial}
    with heartbeat(paths.run_dir(config.run), lambda: about | {"steps": current_steps(config)} | clock.facts()):
        yield
