"""A training run that the page starts: the terminal's command, as a process of its own that outlives the server.

launch/launch.json    what was asked for, and the process
launch/train.log      its messages; the next start begins the file anew

An argument list is started, never a shell, and only with options that launch_request.py has checked. One run at a time: a run that was
started in a terminal counts too.
"""

import contextlib
import dataclasses
import os
import shlex
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from nanochat import paths, untrusted
from nanochat.chat.api_errors import ApiError, shown
from nanochat.chat.launch_plan import Planner, error_and_hint
from nanochat.chat.launch_request import PROFILES, TrainingRequest
from nanochat.console import command, log, printable
from nanochat.errors import NanochatError
from nanochat.redaction import redact
from nanochat.runs import listing, lock
from nanochat.runs.heartbeat import read_heartbeat
from nanochat.runs.names import plain_name

LOG_BYTES, LOG_LINES = 8_192, 12  # of the end of the log, that are shown
SAVE_SECONDS = 170.0  # that a run has to save where its container ends, 10 less than compose's stop_grace_period
CONTAINER_INITS = ("tini", "docker-init", "dumb-init", "catatonit")  # names of a process 1 that ends with its only child
WITHHELD = ("NANOCHAT_API_KEY",)  # of the server's environment: a run needs no key


@dataclasses.dataclass(frozen=True)
class Launch:
    """A run that was started here: its request, its name, its process, and whether it was asked to stop."""

    request: TrainingRequest
    run: str
    process: lock.Holder
    stopping: bool = False

    def to_json(self) -> dict[str, Any]:
        """The launch for launch.json."""
        return {
            "request": self.request.model_dump(),
            "run": self.run,
            "process": dataclasses.asdict(self.process),
            "stopping": self.stopping,
        }

    @staticmethod
    def read(path: Path) -> "Launch | None":
        """The launch in a file; None where there is none or it is damaged."""
        try:
            found = untrusted.table(untrusted.read_json(path), "the launch")
            request, holder = TrainingRequest.model_validate(found["request"]), lock.Holder.parse(found["process"])
            return Launch(request, plain_name(found["run"]), holder, bool(found["stopping"])) if holder else None
        except (OSError, ValueError, KeyError, TypeError, ValidationError, NanochatError):
            return None


class Launcher:
    """Starts, shows and stops one training run. Several servers may share a data directory.

    `make_space` is called before a run that may use a GPU starts, while `needs_gpu` is true already: whoever has a model there removes it.
    """

    def __init__(self, make_space: Callable[[], None] = lambda: None):
        self._make_space = make_space
        self._folder = paths.base_dir() / "launch"
        self._process: subprocess.Popen[bytes] | None = None  # if this server started it: only its parent learns its exit code
        self._starting: TrainingRequest | None = None
        self._lock = threading.Lock()
        self._planner = Planner()

    # ---- what the page asks for ---------------------------------------------------------------------------------

    def plan(self, request: TrainingRequest) -> dict[str, Any] | None:
        """The run's plan, as `nanochat plan --json` prints it; None if a run began meanwhile.

        Raises ApiError as `start` does, and 400 with the command's error and hint.
        """
        request.require_text()
        self.require_idle()  # the measurement and a run would slow each other
        return self._planner.plan(request.plan_arguments, _environment())

    def start(self, request: TrainingRequest) -> None:
        """Start the run. Raises ApiError: 409 if a run is in training, 400 if its text is missing, 503 if the machine refuses."""
        request.require_text()
        self._start(request)

    def resume(self) -> None:
        """Run the last command again: it resumes from the newest checkpoint. Raises ApiError."""
        launch = self._read()
        if launch is None:
            raise ApiError(409, "no training run was started here", "no_training")
        self._start(launch.request)  # without require_text: a run resumes also after its text was moved

    def stop(self) -> None:
        """Ask the run to save a checkpoint and end, once: a second signal would end it without. Raises ApiError if none runs."""
        with self._lock:
            launch = self._read()
            if launch is None or not self._lives(launch):
                raise ApiError(409, "no training run that was started here is running", "no_training")
            if not launch.stopping and launch.process.terminate():
                with contextlib.suppress(OSError):  # a full disk must not keep anyone from stopping the run
                    self._write(dataclasses.replace(launch, stopping=True))

    def state(self) -> dict[str, Any]:
        """The last launch for the page, and the profiles to choose from.

        `code` is the exit code, None while the run is alive and where another server started it. `error` and `hint` are the command's.
        """
        launch = self._read()
        if launch is None:
            return {"run": None, "alive": False, "profiles": PROFILES}
        alive = self._lives(launch)
        code = self._process.poll() if self._process and self._process.pid == launch.process.pid and not alive else None
        folder = paths.run_dir(launch.run)
        finished = not alive and (code == 0 or (code is None and listing.is_finished(folder)))
        lines = self._log()
        error, hint = ("", "") if alive or finished else error_and_hint(lines)
        return {
            "profiles": PROFILES,
            "run": untrusted.encodable(launch.run),
            "command": printable(" ".join([command(), *launch.request.arguments])),
            "alive": alive,
            "stopping": alive and launch.stopping,
            "finished": finished,
            "code": code,
            "error": error,
            "hint": hint,
            "resumable": not alive and not finished and bool(listing.checkpoints(folder)),
            "log": lines,
        }

    @property
    def needs_gpu(self) -> bool:
        """Whether a run that may use a GPU was started here, or is about to."""
        launch = self._read()
        request = self._starting or (launch.request if launch and self._lives(launch) else None)
        return request is not None and request.may_use_gpu

    def require_idle(self) -> None:
        """Raise ApiError (409) if a run is in training in this data directory, whoever started it."""
        launch = self._read()
        if launch and self._lives(launch):
            raise _under_way(launch.run, launch.process)
        for folder in sorted(paths.runs_dir().glob("[!.]*")):
            try:
                holder = lock.holder_of(folder)
            except OSError:  # not readable: its heartbeat says whether it lives
                holder = None
            heartbeat = None if (folder / lock.LOCK).exists() else read_heartbeat(folder)
            if holder or (heartbeat and heartbeat["alive"]):
                raise _under_way(folder.name, holder)

    # ---- the end of the server ----------------------------------------------------------------------------------

    def server_stops(self) -> None:
        """Called at once when the server is told to stop: where its container ends with it, the run begins to save."""
        self._planner.end()
        if _ends_with_server():
            with contextlib.suppress(ApiError):
                self.stop()

    def server_stopped(self) -> None:
        """Called last: wait for a run that would end with the container; name one that continues."""
        launch = self._read()
        if launch is None or not self._lives(launch):
            return
        if not _ends_with_server():
            log(f"the training run {launch.run} continues; `nanochat serve --allow-training` shows it again, and can stop it")
            return
        log(f"waiting for the training run {launch.run} to save a checkpoint")
        self.server_stops()  # a run that was started since
        end = time.monotonic() + SAVE_SECONDS
        while self._lives(launch) and time.monotonic() < end:
            time.sleep(0.2)

    # ---- the process --------------------------------------------------------------------------------------------

    def _start(self, request: TrainingRequest) -> None:
        try:
            with self._lock, paths.locked(self._folder / "lock"):  # of two starts at once, the second one finds the first one's run
                self.require_idle()
                self._planner.end()
                self._starting = request
                if request.may_use_gpu:
                    self._make_space()
                run = request.run_name
                self._process = self._spawn(request)
                try:
                    self._write(Launch(request, run, lock.Holder.here(lock.TRAINING, self._process.pid)))
                except OSError:
                    self._process.kill()  # nobody could stop it
                    raise
        except ApiError:
            raise
        except (NanochatError, OSError) as error:
            raise ApiError(503, f"the training run cannot be started: {untrusted.reason(error)}", "training_not_started") from error
        finally:
            self._starting = None
        log(f"started `nanochat {' '.join(request.arguments)}`; its messages are in {self._folder / 'train.log'}")

    def _spawn(self, request: TrainingRequest) -> "subprocess.Popen[bytes]":
        """The process, in a session of its own: Ctrl-C in the server's terminal, and that terminal's end, do not reach it."""
        with (self._folder / "train.log").open("wb") as messages:
            return subprocess.Popen(
                [sys.executable, "-m", "nanochat", *request.arguments],
                stdin=subprocess.DEVNULL,
                stdout=messages,
                stderr=messages,
                start_new_session=True,
                env=_environment(),
            )

    def _lives(self, launch: Launch) -> bool:
        if self._process:
            self._process.poll()  # a child that has ended is not removed before its exit code is read
        return launch.process.alive

    def _read(self) -> Launch | None:
        return Launch.read(self._folder / "launch.json")

    def _write(self, launch: Launch) -> None:
        paths.atomic_write_json(self._folder / "launch.json", launch.to_json())

    def _log(self) -> list[str]:
        """The last lines of the log."""
        try:
            with (self._folder / "train.log").open("rb") as file:
                file.seek(max(os.fstat(file.fileno()).st_size - LOG_BYTES, 0))
                text = file.read(LOG_BYTES).decode("utf-8", "replace")
        except OSError:
            return []
        return [redact(printable(line)) for line in text.splitlines()[-LOG_LINES:]]


def _under_way(run: str, holder: lock.Holder | None) -> ApiError:
    whose = f" (process {holder.pid} on {holder.host})" if holder else ""
    stop = f"{command()} runs stop {shlex.quote(run)}"
    message = f"the run {shown(run)} is in training{whose}, and one run trains at a time: wait for its end, or stop it with {stop}"
    return ApiError(409, message, "training_under_way")


def _environment() -> dict[str, str]:
    """The environment of the command: the server's, without its key and without what was set for the server alone."""
    with contextlib.suppress(OSError):
        given = {entry.partition(b"=")[0] for entry in Path("/proc/self/environ").read_bytes().split(b"\0")}
        if b"OMP_WAIT_POLICY" not in given:  # a server's threads sleep; a run decides for itself
            return {name: value for name, value in os.environ.items() if name not in (*WITHHELD, "OMP_WAIT_POLICY")}
    return {name: value for name, value in os.environ.items() if name not in WITHHELD}


def _ends_with_server() -> bool:
    """Whether every process here ends with this server, because it is process 1 of a container or that process waits for it alone."""
    if os.getpid() == 1:
        return True
    try:
        return os.getppid() == 1 and Path("/proc/1/comm").read_text().strip() in CONTAINER_INITS
    except OSError:
        return False
