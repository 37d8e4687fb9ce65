"""Inside a rented pod: run the training, and end the pod when it has ended, failed for good, or reached the ceiling.

The host starts an ended container again and bills on, so the pod has to be ended from within. NANOCHAT_GUARD says when and
how; the key is the pod's own (RUNPOD_API_KEY, which the host puts there, good for this pod only).
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
ENDED = re.compile(r"guard: the training ended with (\d+); this pod is ended")
END_SECONDS = 1800.0  # so long the host is asked to end the pod


@dataclass(frozen=True)
class Guard:
    """Until when the pod may live, and how it ends."""

    until: float  # seconds since 1970: not from the start, for a pod may be started again
    end: str  # terminate (the data is on a network volume) or stop (it is on the pod's own disk)

    def __str__(self) -> str:
        return f"{self.end}@{self.until:.0f}"

    @staticmethod
    def parse(text: str) -> "Guard":
        """What `str` wrote. Raises UsageError."""
        end, _, until = text.partition("@")
        if end not in ("stop", "terminate") or not until.isdigit():
            raise UsageError(f"{VARIABLE} = {text!r} is not understood", "as in stop@1790000000")
        return Guard(float(until), end)


def supervise(command: Sequence[str], environment: Mapping[str, str], *, grace: float = GRACE_SECONDS, pause: float = 5.0) -> int:
    """Run `command` (without the guard's variable), restart it if it crashes, then end this pod; the command's last exit code.

    A signal to this process is passed on, and then the pod is left alone: who sent it is ending it already.
    """
    limits = Guard.parse(environment[VARIABLE])
    pod = environment.get("RUNPOD_POD_ID", "")
    if not pod:
        raise UsageError(f"{VARIABLE} is set, but this is no pod of RunPod (RUNPOD_POD_ID is not)", f"unset {VARIABLE}")
    api = RunPod(environment.get("RUNPOD_API_KEY", ""), pause=pause)
    inner = {key: value for key, value in environment.items() if key not in (VARIABLE, "RUNPOD_API_KEY")}
    log(f"guard: this pod ends ({limits.end}) with the training, at the latest in {duration(max(limits.until - time.time(), 0))}")
    if names := missing(inner):
        log(f"error: the RunPod account has no secret named {', '.join(names)}")
        log("hint: add it on RunPod's page, or name another with --secret VARIABLE=NAME")
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
            log(f"guard: the training ended with {code}; restart {attempt + 1} of {RESTARTS}, from the newest checkpoint")
            time.sleep(pause)
    if not asked:
        _end(api, pod, limits, code, pause)
    return code


class _SignalForwarder:
    """Passes SIGTERM and SIGINT on to `process` inside a `with` block; `asked` is whether one came."""

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
    """The command's exit code, and whether a signal came from outside. At `until` it has `grace` seconds to save."""
    process = subprocess.Popen(command, env=dict(environment))
    with _SignalForwarder(process) as signals:
        try:
            code = process.wait(max(until - time.time(), 0))
        except subprocess.TimeoutExpired:
            log("guard: the ceiling is reached; the training saves a checkpoint and ends")
            process.terminate()
            try:
                code = process.wait(grace)
            except subprocess.TimeoutExpired:
                process.kill()
                code = process.wait()
        return (code if code >= 0 else 1), signals.asked


def _end(api: RunPod, pod: str, limits: Guard, code: int, pause: float) -> None:
    """Ask the host to end this pod until it does."""
    log(f"guard: the training ended with {code}; this pod is ended ({limits.end})")
    if limits.end == "stop":
        log("guard: its disk with the checkpoints stays and is billed until `nanochat submit terminate NAME`")
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
            log(f"guard: {error.message}; asking again")
            time.sleep(max(pause, 0.01))
