"""`--log_to`: metrics sent to TensorBoard, Weights & Biases or trackio during training.

A thread sends the lines of metrics.jsonl, so that a tracker that fails or waits for the network causes a warning and delays no step. A
step's number at the tracker is its line number in metrics.jsonl, over all stages, so a resumed run continues its curve.

runs/<run>/live.json    tracker -> the run's curve there, and the last step that was sent
"""

import contextlib
import json
import netrc
import os
import queue
import shutil
import sys
import threading
import uuid
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol
from urllib.parse import urlsplit

from nanochat import paths
from nanochat.config import CheckpointConfig, Config
from nanochat.console import log
from nanochat.distributed.ranks import Ranks
from nanochat.hardware.extras import needed
from nanochat.redaction import redact
from nanochat.runs.metrics import Metrics

NONE = "none"
PROJECT = "nanochat"
STATE = "live.json"
SECONDS = 1.0  # between two batches of lines
LAST_SECONDS = 60.0  # timeout of the last batch at the run's end
STAYS_HERE = ("data", "chat_data", "identity", "mirror")  # settings that are not sent, because they name paths of this machine


def require(config: CheckpointConfig) -> None:
    """Raise UsageError if `config`'s tracker is not installed."""
    if config.log_to != NONE:
        library(config.log_to)


def following(config: Config, here: Ranks) -> contextlib.AbstractContextManager[Callable[[Metrics], object]]:
    """A context manager that sends the run's metrics on the main rank; call its value with each stage's opened metrics."""
    if config.log_to == NONE or not here.main:
        return contextlib.nullcontext(lambda metrics: None)
    return TrackerThread(config)


class Tracker(Protocol):
    """A tracker of curves. Its methods run on one thread and may raise any exception of its package."""

    def open(self, curve: str, step: int) -> int:
        """Begin the curve of that name, or continue it after `step` steps; returns its number of steps, which are not sent again."""
        ...

    def log(self, step: int, values: dict[str, float]) -> None:
        """Send one step's values; a second call for a step adds values."""
        ...

    def close(self) -> None:
        """Send the remaining values and close."""
        ...


class TensorBoard:
    """TensorBoard event files in the run's directory, written again from metrics.jsonl at each start."""

    def __init__(self, config: Config):
        self.folder = paths.run_dir(config.run) / "tensorboard"

    def open(self, curve: str, step: int) -> int:
        shutil.rmtree(self.folder, ignore_errors=True)
        self.writer = library("tensorboard").SummaryWriter(self.folder, flush_secs=2)
        log(f"live: tensorboard --logdir {paths.runs_dir()}")
        return 0

    def log(self, step: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)

    def close(self) -> None:
        self.writer.close()


class Wandb:
    """Weights & Biases: online if there is a key, else into files for `wandb sync`, unless WANDB_MODE is set."""

    def __init__(self, config: Config):
        self.config = config

    def open(self, curve: str, step: int) -> int:
        mode = os.environ.get("WANDB_MODE") or ("online" if self._key() else "offline")
        try:
            return self._open(curve, step, mode)
        except Exception as error:
            if mode != "online":
                raise
            log(f"warning: Weights & Biases cannot be reached ({said(error)})")
            library("wandb").teardown()  # otherwise the curve's name stays in use
            return self._open(curve, step, "offline")

    def _open(self, curve: str, step: int, mode: str) -> int:
        wandb = library("wandb")
        quiet = wandb.Settings(  # x_disable_meta: the command line, which contains paths, is not sent
            silent=True, console="off", disable_git=True, save_code=False, x_disable_meta=True, init_timeout=30, finish_timeout=30
        )
        about: dict[str, Any] = {"project": PROJECT, "name": self.config.run, "id": curve, "config": settings(self.config), "mode": mode}
        online = mode == "online"
        self.run = wandb.init(**about, dir=paths.run_dir(self.config.run), resume="allow" if online else None, settings=quiet)
        offline = f"offline; to upload the curves, run `wandb login`, then `wandb sync {Path(self.run.dir).parent}`"
        log(f"live: {self.run.url if online else offline}")
        return max(self.run.starting_step - 1, 0) if online else step

    def _key(self) -> bool:
        host = urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
        with contextlib.suppress(OSError, netrc.NetrcParseError):
            return "WANDB_API_KEY" in os.environ or netrc.netrc().authenticators(host) is not None
        return False

    def log(self, step: int, values: dict[str, float]) -> None:
        self.run.log(values, step=step)

    def close(self) -> None:
        self.run.finish()


class Trackio:
    """trackio: a database on this machine, or the one of TRACKIO_SPACE_ID."""

    def __init__(self, config: Config):
        self.config = config

    def open(self, curve: str, step: int) -> int:
        with contextlib.redirect_stdout(sys.stderr):  # trackio prints on stdout, which is for results
            self.run = library("trackio").init(
                PROJECT,
                name=self.config.run,
                config=settings(self.config),
                resume="allow" if step else "never",
                embed=False,
                auto_log_cpu=False,
                auto_log_gpu=False,
            )
        log(f"live: `trackio show --project {PROJECT}`")
        return step

    def log(self, step: int, values: dict[str, float]) -> None:
        self.run.log(values, step=step)

    def close(self) -> None:
        with contextlib.redirect_stdout(sys.stderr):
            self.run.finish()


TRACKERS: dict[str, Callable[[Config], Tracker]] = {"tensorboard": TensorBoard, "wandb": Wandb, "trackio": Trackio}


def library(name: str) -> Any:
    """The tracker's package. Raises UsageError if it is not installed."""
    return needed("torch.utils.tensorboard" if name == "tensorboard" else name, name, f"--log_to {name}")


def settings(config: Config) -> dict[str, Any]:
    """The run's config as sent to a tracker."""
    return {name: value for name, value in config.to_dict().items() if name not in STAYS_HERE}


def said(error: Exception) -> str:
    """An error in one line, without this process's keys."""
    return redact(" ".join(str(error).split()) or type(error).__name__)


class TrackerThread:
    """The thread that sends a run's metrics to its tracker. A context manager; call its value with each stage's metrics."""

    def __init__(self, config: Config):
        self.name, self.tracker = config.log_to, TRACKERS[config.log_to](config)
        self.state = paths.run_dir(config.run) / STATE
        self._enqueued = 0
        self._waiting: queue.SimpleQueue[tuple[int, dict[str, Any]]] = queue.SimpleQueue()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._work, name="tracker", daemon=True)

    def _follow(self, metrics: Metrics) -> None:
        """Send the lines that `metrics` has, and those that it will write."""
        for number, entry in enumerate(metrics.lines(), 1):
            if number > self._enqueued:
                self._enqueue(number, entry)
        metrics.told = self._enqueue

    def _enqueue(self, number: int, entry: dict[str, Any]) -> None:
        self._enqueued = number
        self._waiting.put((number, entry))

    def __enter__(self) -> Callable[[Metrics], None]:
        self._thread.start()
        return self._follow

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._over.set()
        self._thread.join(LAST_SECONDS if kind is None else LAST_SECONDS / 3)  # shorter after a stop, which should be quick
        if self._thread.is_alive():
            log(f"warning: {self.name} does not answer; the last steps may be missing there")

    def _work(self) -> None:
        try:
            states = self._states()
            state = states.setdefault(self.name, {"curve": uuid.uuid4().hex[:8], "step": 0})
            paths.atomic_write_json(self.state, states)
            has = self.tracker.open(state["curve"], state["step"])
            over = False
            while not over:
                over = self._over.wait(SECONDS)  # read before the queue is emptied, which is for the last time if it is set
                # The last sent step may still get an evaluation, which a kill after the step has delayed.
                steps = [step for step in self._all_waiting() if step[0] > has or (step[0] == has and "step" not in step[1])]
                if steps:
                    state["step"] = steps[-1][0]
                    paths.atomic_write_json(self.state, states)  # before sending, so that a kill causes a gap and no duplicate step
                for number, entry in steps:
                    self.tracker.log(number, _values(entry))
            self.tracker.close()
        except Exception as error:  # each tracker raises its own exceptions
            log(f"warning: {self.name} failed ({said(error)}); training continues, and metrics.jsonl has all steps")

    def _all_waiting(self) -> list[tuple[int, dict[str, Any]]]:
        found = []
        with contextlib.suppress(queue.Empty):
            while True:
                found.append(self._waiting.get_nowait())
        return found

    def _states(self) -> dict[str, Any]:
        try:
            return dict(json.loads(self.state.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return {}


def _values(entry: dict[str, Any]) -> dict[str, float]:
    """The numbers of a line, with the stage in their names."""
    numbers = {name: value for name, value in entry.items() if isinstance(value, (int, float)) and name != "step"}
    return {f"{entry['stage']}/{name}": float(value) for name, value in numbers.items()}
