"""The guard inside a rented pod: runs the training command, and ends the pod when the run ends, fails, or reaches the time limit.

RunPod starts an ended container again and keeps billing, so the pod must be ended from within. NANOCHAT_GUARD sets when and
how. The key is the pod's own (RUNPOD_API_KEY, set by RunPod and valid only for this pod).
"""

import re
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import FrameType

from nanochat.cloud.runpod_api import NotFound, RunPod
from nanochat.cloud.runpod_secrets import missing
from nanochat.cloud.workload import GRACE_SECONDS
from nanochat.console import duration, log
from nanochat.errors import ORCHESTRATOR_RETRIED_CODES, NanochatError, UsageError

VARIABLE = "NANOCHAT_GUARD"
RESTARTS = 2  # of a training run that crashed or hung; it resumes from the newest checkpoint
ENDED = re.compile(r"guard: the (?:run|training) ended with (\d+); this pod is ended")  # also of older images
END_SECONDS = 1800.0  # seconds of attempts to end the pod


@dataclass(frozen=True)
class Guard:
    """The time limit of the pod, and the way to end it."""

    until: float  # seconds since 1970, not since the start, because a pod may be restarted
    end: str  # "terminate" if the data is on a network volume, "stop" if it is on the pod's disk

    def __str__(self) -> str:
        return f"{self.end}@{self.until:.0f}"

    @staticmethod
    def parse(text: str) -> "Guard":
        """Parse the result of `str`. Raises UsageError."""
        end, _, until = text.partition("@")
        if end not in ("stop", "terminate") or not until.isdigit():
            raise UsageError(f"{VARIABLE} = {text!r} is not valid", "set it to a value such as stop@1790000000")
        return Guard(float(until), end)


def supervise(command: Sequence[str], environment: Mapping[str, str], *, grace: float = GRACE_SECONDS, pause: float = 5.0) -> int:
    """Run `command` (without the guard's variable), restart it after crashes, then end this pod; returns the last exit code.

    A signal is forwarded to the command, and then the pod is not ended here, because the sender of the signal is ending it.
    """
    limits = Guard.parse(environment[VARIABLE])
    pod = environment.get("RUNPOD_POD_ID", "")
    if not pod:
        raise UsageError(f"{VARIABLE} is set, but this is not a RunPod pod (RUNPOD_POD_ID is not set)", f"unset {VARIABLE}")
    api = RunPod(environment.get("RUNPOD_API_KEY", ""), pause=pause)
    inner = {key: value for key, value in environment.items() if key not in (VARIABLE, "RUNPOD_API_KEY")}
    log(f"guard: this pod ends ({limits.end}) with the run, at the latest in {duration(max(limits.until - time.time(), 0))}")
    if names := missing(inner):
        log(f"error: the RunPod account has no secret named {', '.join(names)}")
        log("hint: add it on RunPod's page, or use another with --secret VARIABLE=NAME")
        _end(api, pod, limits, UsageError.exit_code, pause)
        return UsageError.exit_code
    code, asked = 75, False
    for attempt in range(RESTARTS + 1):
        if time.time() >= limits.until:
            break
        code, asked = _run(command, inner, limits.until, grace)
        if asked or code not in ORCHESTRATOR_RETRIED_CODES or time.time() >= limits.until:
            break
        if attempt < RESTARTS:
            log(f"guard: the run ended with {code}; restart {attempt + 1} of {RESTARTS} from the newest checkpoint")
            time.sleep(pause)
    if not asked:
        _end(api, pod, limits, code, pause)
    return code


class _SignalForwarder:
    """Forwards SIGTERM and SIGINT to `process` inside a `with` block; `asked` is True after a signal."""

    def __init__(self, process: subprocess.Popen[bytes]):
        self.asked = False
        self._process = process

    def __enter__(self) -> "_SignalForwarder":
        self._before = {number: signal.signal(number, self._forward) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _forward(self, number: int, _frame: FrameType | None) -> None:
        self.asked = True
        self._process.send_signal(number)


def _run(command: Sequence[str], environment: Mapping[str, str], until: float, grace: float) -> tuple[int, bool]:
    """(the command's exit code, whether a signal came from outside). At `until` the command gets `grace` seconds to save."""
    process = subprocess.Popen(command, env=dict(environment))
    with _SignalForwarder(process) as signals:
        try:
            code = process.wait(max(until - time.time(), 0))
        except subprocess.TimeoutExpired:
            log("guard: the time limit is reached; the run saves a checkpoint and ends")
            process.terminate()
            try:
                code = process.wait(grace)
            except subprocess.TimeoutExpired:
                process.kill()
                code = process.wait()
        return (code if code >= 0 else 1), signals.asked


def _end(api: RunPod, pod: str, limits: Guard, code: int, pause: float) -> None:
    """End this pod, with repeated attempts."""
    log(f"guard: the run ended with {code}; this pod is ended ({limits.end})")
    if limits.end == "stop":
        log("guard: the disk with the checkpoints is kept and billed until `nanochat submit terminate NAME`")
    last = time.monotonic() + END_SECONDS
    while True:
        try:
            api.act(pod, limits.end)
            return
        except NotFound:
            return
        except NanochatError as error:
            if time.monotonic() > last:
                raise
            log(f"guard: {error.message}; trying again")
            time.sleep(max(pause, 0.01))
