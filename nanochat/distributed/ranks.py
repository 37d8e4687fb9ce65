"""The one place that touches torch.distributed's set-up. One process is simply one rank.

Trainer, optimizer, checkpoint and evaluation receive a `Ranks`, and need not know whether that is one process or many, over gloo on
CPUs or NCCL on GPUs.
"""

import contextlib
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from nanochat.distributed.liveness import LAST_WORD, START, Liveness
from nanochat.errors import LAUNCHER_FINAL_CODES, HungError, PreflightError, UsageError

T = TypeVar("T")

EXIT_CODES = "NANOCHAT_EXIT_CODES"  # folder in which each worker leaves its exit code, for the launcher to read
DEFAULTS = {"OMP_NUM_THREADS": "1", "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "120"}  # seconds to save after a signal; torchrun's own is 30
LINGER = 5.0  # seconds for torchrun after its workers: it looks up this machine's name, which without a network takes half a minute
_BROKEN = re.compile(r"(?i)gloo|connection (closed|reset|refused)|broken pipe")  # gloo raises a RuntimeError like any other
WAIT = timedelta(hours=24)  # for the main rank's downloads; a collective in the loop has torch's own, shorter limit


@dataclass(frozen=True)
class Ranks:
    """This process's rank among all. Collectives are no-ops where the world is one process."""

    rank: int
    local_rank: int
    world_size: int
    device: torch.device

    @property
    def main(self) -> bool:
        """Whether this rank prints, and writes what is written once."""
        return self.rank == 0

    def all_reduce_mean(self, tensor: Tensor) -> Tensor:
        """The mean over the ranks, in place."""
        if self.world_size > 1:
            dist.all_reduce(tensor)
            tensor /= self.world_size
        return tensor

    def all_reduce_sum(self, tensor: Tensor) -> Tensor:
        """The sum over the ranks, in place."""
        if self.world_size > 1:
            dist.all_reduce(tensor)
        return tensor

    def reduce_scatter_mean(self, tensor: Tensor) -> Tensor:
        """This rank's equal share along the first axis of the mean over the ranks."""
        share = torch.empty(len(tensor) // self.world_size, *tensor.shape[1:], dtype=tensor.dtype, device=tensor.device)
        dist.reduce_scatter_tensor(share, tensor.contiguous())
        return share.div_(self.world_size)

    def all_gather(self, share: Tensor) -> Tensor:
        """The ranks' shares put together again along the first axis."""
        whole = torch.empty(len(share) * self.world_size, *share.shape[1:], dtype=share.dtype, device=share.device)
        dist.all_gather_into_tensor(whole, share.contiguous())
        return whole

    def gather_objects(self, value: Any) -> list[Any]:
        """Every rank's `value`, in rank order, on every rank."""
        if self.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value)
        return values

    def main_first(self, name: str, work: Callable[[], T]) -> T:
        """Run `work` on the main rank, then on the others, which find it done; for downloads and other long preparation."""
        if self.world_size == 1:
            return work()
        store = dist.distributed_c10d._get_default_store()
        if self.main:
            try:
                result = work()
            except BaseException:
                store.set(name, "failed")
                raise
            store.set(name, "done")
            return result
        store.wait([name], WAIT)
        if store.get(name) != b"done":
            raise HungError(f"the main rank could not finish: {name}", "its own error says why")
        return work()


def single(device: torch.device | str = "cpu") -> Ranks:
    """One process on `device`."""
    return Ranks(0, 0, 1, torch.device(device))


@contextlib.contextmanager
def join(device: str) -> Iterator[Ranks]:
    """Join the process group that the environment (RANK, WORLD_SIZE, LOCAL_RANK) describes, or stand alone; leave it at the end.

    `device` is "cuda" or "cpu". Raises PreflightError where there are more processes than GPUs, HungError where one is lost, from
    the beginning on: a process that never comes is waited for no longer than `START` seconds.
    """
    rank, local_rank = int(os.environ.get("RANK", 0)), int(os.environ.get("LOCAL_RANK", 0))
    world_size = int(os.environ.get("WORLD_SIZE", 1))
    if device == "cuda":
        visible = torch.cuda.device_count()
        here = int(os.environ.get("LOCAL_WORLD_SIZE", world_size))
        if here > visible:
            raise PreflightError(
                f"{here} processes asked, {visible} GPU(s) visible",
                f"use --nproc_per_node={max(visible, 1)}" + ("" if visible else " --device=cpu"),
            )
        torch.cuda.set_device(local_rank)
    chosen = torch.device(device, local_rank) if device == "cuda" else torch.device(device)
    if world_size == 1:
        yield single(chosen)
        return
    store = _meet(rank, world_size)
    # Before the group is made: that waits half an hour for a rank that it lacks.
    with Liveness(store.clone(), rank, world_size, end_now) as liveness:
        try:
            dist.init_process_group(
                "nccl" if device == "cuda" else "gloo",
                store=store,
                rank=rank,
                world_size=world_size,
                device_id=chosen if device == "cuda" else None,
            )
            yield Ranks(rank, local_rank, world_size, chosen)
        except (RuntimeError, HungError) as error:
            if not isinstance(error, HungError | dist.DistError) and not _BROKEN.search(str(error)):
                raise
            lost = HungError("another process of the training is gone", "its own error says why; the same command resumes")
            code = liveness.failed(LAST_WORD)
            lost.exit_code = code if code > 1 else lost.exit_code
            raise lost from error
    dist.destroy_process_group()  # not after an error: NCCL's would wait for whom it lost


def _meet(rank: int, world_size: int) -> dist.Store:
    """The store that all processes share. Raises HungError where they do not find one another."""
    try:
        store, _, _ = next(dist.rendezvous("env://", rank, world_size, timeout=timedelta(seconds=START)))
    except RuntimeError as error:
        raise HungError(
            f"rank {rank}: the {world_size} processes of the training did not find one another: {str(error).splitlines()[0]}",
            "each machine must reach the main rank's (MASTER_ADDR, MASTER_PORT); then the same command again on all of them",
        ) from error
    return dist.PrefixStore("nanochat", store)


def launched() -> bool:
    """Whether this process is a worker that torchrun started."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def has_launcher() -> bool:
    """Whether `launch` started this worker, rather than a user's own torchrun."""
    return EXIT_CODES in os.environ


def nodes() -> int:
    """Machines that train together: torchrun's own variable says so."""
    text = os.environ.get("PET_NNODES", "1")
    if not text.isdigit() or text == "0":
        raise UsageError(f"PET_NNODES = {text!r} is no number of machines", "a training has the same number from start to end, as in 2")
    return int(text)


def record_exit(code: int) -> None:
    """Leave this worker's exit code for the launcher, since torchrun turns every code into 1."""
    folder = os.environ.get(EXIT_CODES)
    if folder and launched():
        Path(folder, f"rank_{os.environ['RANK']}").write_text(str(code), encoding="utf-8")


def end_now(code: int) -> None:
    """End this worker from any thread, whatever its main thread waits for."""
    record_exit(code)
    os._exit(code)


def launch(arguments: list[str], processes: int, restarts: int = 2) -> int:
    """Run `python ARGUMENTS` in `processes` workers under torchrun and return their common exit code.

    A crash (1) or a lost or hung rank (7) is restarted up to `restarts` times, and resumes from the newest checkpoint;
    not where SIGINT or SIGTERM asked to stop: that is 75, also where the workers had not begun. With several nodes (PET_NNODES
    and its fellows in the environment) nothing is restarted here: whoever started the nodes starts them again, together.
    Raises HungError where they did not find one another.
    """
    together = nodes() > 1
    restarts = 0 if together else restarts
    for attempt in range(restarts + 1):
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, "-m", "torch.distributed.run", f"--nproc_per_node={processes}"]
            command += [] if together else ["--standalone"]
            # Behind "--", so that it does not take our --run for a short form of its --run-path.
            command += ["-m", "--", *arguments[1:]] if arguments[0] == "-m" else ["--", *arguments]
            code, stopped = _wait(command, DEFAULTS | os.environ | {EXIT_CODES: folder}, processes)
            codes = set(_codes(folder))
        if stopped and code:
            codes.add(75)
        elif codes & {1, 7}:
            codes.discard(75)  # torchrun stops the fellows of a worker that crashed, and they take it for the user's wish
        final = next((known for known in LAUNCHER_FINAL_CODES if known in codes), None)
        if final is not None:
            return final
        if code == 0:
            return 0
        if attempt < restarts:
            print(f"a worker was lost; restart {attempt + 1} of {restarts}, from the newest checkpoint", file=sys.stderr, flush=True)
    if together and not codes:
        raise HungError(
            f"the {nodes()} machines of the training did not find one another, or a worker of this one was killed",
            "PET_NNODES, PET_MASTER_ADDR and PET_MASTER_PORT must be the same on all, and lead to the first; then the same command again",
        )
    return 7 if 7 in codes else 1


def echoed(first: float | None) -> bool:
    """Whether a signal that comes now is the one of `first` (by time.monotonic) again, within NANOCHAT_SIGNAL_ECHO seconds.

    The image sets it: `docker compose run` delivers one Ctrl-C twice, and the second of two signals means "at once".
    """
    return first is not None and time.monotonic() - first < float(os.environ.get("NANOCHAT_SIGNAL_ECHO", 0))


def _codes(folder: str) -> list[int]:
    """The exit codes that workers have left so far."""
    texts = [path.read_text(encoding="utf-8") for path in Path(folder).iterdir()]
    return [int(text) for text in texts if text]  # one may be about to be written


class _SignalForwarder:
    """Passes SIGINT and SIGTERM on to `process`, also one that comes before there is a process. A context manager."""

    def __init__(self) -> None:
        self.process: subprocess.Popen[bytes] | None = None
        self.came: float | None = None  # when the first signal did

    def start(self, command: list[str], environment: dict[str, str]) -> "subprocess.Popen[bytes]":
        """Start `command` in a session of its own.

        So Ctrl-C in the terminal reaches it once, through us, and not twice: the second ends it at once.
        """
        self.process = subprocess.Popen(command, env=environment, start_new_session=True)
        if self.came is not None:  # before there was anybody to pass it on to
            self.process.terminate()
        return self.process

    def _forward(self, number: int, _frame: Any) -> None:
        if self.process is not None and not echoed(self.came):
            self.process.send_signal(number)
        self.came = self.came or time.monotonic()

    def __enter__(self) -> "_SignalForwarder":
        self._before = {number: signal.signal(number, self._forward) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)


def _wait(command: list[str], environment: dict[str, str], processes: int) -> tuple[int, bool]:
    """Run `command` to its end, passing SIGINT and SIGTERM on: its exit code, and whether such a signal came.

    Where all its `processes` workers have ended, one with an error, it has `LINGER` seconds to follow.
    """
    with _SignalForwarder() as signals:
        process, over = signals.start(command, environment), 0.0
        while True:
            try:
                return process.wait(1.0), signals.came is not None
            except subprocess.TimeoutExpired:
                codes = _codes(environment[EXIT_CODES])
                over = (over or time.monotonic()) if len(codes) == processes and any(codes) else 0.0
                if over and time.monotonic() - over > LINGER:
                    process.kill()
