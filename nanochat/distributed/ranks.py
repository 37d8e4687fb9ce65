"""The one place that touches torch.distributed's set-up. One process is simply one rank.

Trainer, optimizer, checkpoint and evaluation receive a `Ranks`, and need not know whether that is one process or many, over gloo on
CPUs or NCCL on GPUs.
"""

import contextlib
import ctypes
import json
import os
import re
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from nanochat.distributed.liveness import LAST_WORD, START, Liveness
from nanochat.distributed.workers import EXIT_CODES, GRACE, GRACE_SECONDS, LAUNCHER, Workers, left_codes, meeting
from nanochat.errors import LAUNCHER_FINAL_CODES, HungError, PreflightError, UsageError

T = TypeVar("T")

DEFAULTS = {"OMP_NUM_THREADS": "1"}  # of workers: one thread each, where the user says nothing else
PR_SET_PDEATHSIG = 1  # prctl(2)
LINGER = 5.0  # seconds for workers that have left their exit code to end: a library may wait for whom it lost
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
        """Every rank's `value`, which must be of JSON's types, in rank order, on every rank; tuples come back as lists.

        As text and not as torch's all_gather_object does it, by pickle: what comes over a network must not be able to run.
        """
        if self.world_size == 1:
            return [value]
        text = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8).to(self.device)
        lengths = self.all_gather(torch.tensor([len(text)], device=self.device)).tolist()
        padded = self.all_gather(torch.nn.functional.pad(text, (0, max(lengths) - len(text))).unsqueeze(0)).cpu()
        return [json.loads(bytes(row[:length].numpy())) for row, length in zip(padded, lengths, strict=True)]

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

    `device` is "cuda" or "cpu". Raises PreflightError if there are more processes than GPUs, HungError if one is lost, from
    the beginning on: a process that never comes is waited for no longer than `START` seconds.
    """
    if LAUNCHER in os.environ:
        _end_with_launcher(int(os.environ[LAUNCHER]))
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


def _end_with_launcher(process: int) -> None:
    """Have this worker killed when the launcher `process` is. Raises HungError if that is gone already."""
    prctl = getattr(ctypes.CDLL(None), "prctl", None)  # Linux's
    if prctl:
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != process:
        raise HungError("the launcher of this worker is gone", "run the same command again")


def _meet(rank: int, world_size: int) -> dist.Store:
    """The store that all processes share. Raises HungError if they do not find one another."""
    try:
        store, _, _ = next(dist.rendezvous("env://", rank, world_size, timeout=timedelta(seconds=START)))
    except RuntimeError as error:
        raise HungError(
            f"rank {rank}: the {world_size} processes of the training did not find one another: {str(error).splitlines()[0]}",
            "each machine must reach the main rank's (MASTER_ADDR, MASTER_PORT); then the same command again on all of them",
        ) from error
    return dist.PrefixStore("nanochat", store)


def launched() -> bool:
    """Whether this process is a worker that a launcher, ours or torchrun, started."""
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
    """Leave this worker's exit code for the launcher: the code of a process that is killed afterwards would hide it."""
    folder = os.environ.get(EXIT_CODES)
    if folder and launched():
        Path(folder, f"rank_{os.environ['RANK']}").write_text(str(code), encoding="utf-8")


def end_now(code: int) -> None:
    """End this worker from any thread, whatever its main thread waits for."""
    record_exit(code)
    os._exit(code)


def launch(arguments: list[str], processes: int, restarts: int = 2) -> int:
    """Run `python ARGUMENTS` in `processes` workers and return their common exit code.

    A crash (1) or a lost or hung rank (7) is restarted up to `restarts` times, and resumes from the newest checkpoint;
    not where SIGINT or SIGTERM asked to stop: that is 75, also where the workers had not begun. With several nodes (PET_NNODES
    and its fellows in the environment) nothing is restarted here: whoever started the nodes starts them again, together.
    Raises HungError if they did not find one another.
    """
    together = nodes() > 1
    restarts = 0 if together else restarts
    for attempt in range(restarts + 1):
        with tempfile.TemporaryDirectory() as folder:
            # -u: what several processes write comes as it is written
            command = [sys.executable, "-u", *arguments]
            code, stopped = _wait(command, DEFAULTS | os.environ | {EXIT_CODES: folder}, processes)
            codes = set(left_codes(folder))
        if stopped and code:
            codes.add(75)
        elif codes & {1, 7}:
            codes.discard(75)  # the fellows of a worker that crashed are stopped, and they take it for the user's wish
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


def _wait(command: list[str], environment: dict[str, str], processes: int) -> tuple[int, bool]:
    """Run `command` in `processes` workers to its end, passing SIGINT and SIGTERM on: its exit code, and whether such a signal came.

    Where all of them have left their exit code, one with an error, they have `LINGER` seconds to follow.
    """
    with Workers() as workers, meeting(environment, processes, lambda: workers.came is not None) as environments:
        if environments is None:
            return 1, workers.came is not None
        workers.start(command, environments)
        code = workers.wait(environment[EXIT_CODES], float(environment.get(GRACE, GRACE_SECONDS)), LINGER)
        return code, workers.came is not None
