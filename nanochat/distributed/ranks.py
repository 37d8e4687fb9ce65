"""The set-up of torch.distributed, and the collectives that the rest of the code uses. A single process is one rank.

Trainer, optimizer, checkpoints and evaluation receive a `Ranks` and are the same for one process and many, with gloo on CPUs and NCCL
on GPUs.
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
from nanochat.hardware import awake
from nanochat.hardware.memory import oom_kills

T = TypeVar("T")

DEFAULTS = {"OMP_NUM_THREADS": "1"}  # workers' environment, unless the user sets it: one thread each
MEMORY_KILLS = "NANOCHAT_MEMORY_KILLS"  # in workers' environment: `memory_kills`
MEMORY = "the system killed a worker, because memory ran out"
PR_SET_PDEATHSIG = 1  # prctl(2)
LINGER = 5.0  # seconds for workers to end after they recorded their exit codes, because a library may wait for a lost rank
_BROKEN = re.compile(r"(?i)gloo|connection (closed|reset|refused)|broken pipe")  # gloo raises a plain RuntimeError
WAIT = timedelta(hours=24)  # for the main rank's downloads; collectives in the training loop have torch's own, shorter timeout


@dataclass(frozen=True)
class Ranks:
    """This process's rank and its collectives, which are no-ops if the world size is 1."""

    rank: int
    local_rank: int
    world_size: int
    device: torch.device

    @property
    def main(self) -> bool:
        """Whether this is the main rank, which prints messages and writes shared files."""
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
        """This rank's equal share, along the first axis, of the mean over the ranks."""
        share = torch.empty(len(tensor) // self.world_size, *tensor.shape[1:], dtype=tensor.dtype, device=tensor.device)
        dist.reduce_scatter_tensor(share, tensor.contiguous())
        return share.div_(self.world_size)

    def all_gather(self, share: Tensor) -> Tensor:
        """The ranks' shares, concatenated along the first axis."""
        whole = torch.empty(len(share) * self.world_size, *share.shape[1:], dtype=share.dtype, device=share.device)
        dist.all_gather_into_tensor(whole, share.contiguous())
        return whole

    def gather_objects(self, value: Any) -> list[Any]:
        """All ranks' `value`s in rank order, on every rank. Values must be JSON types; tuples become lists.

        Sent as JSON, because torch's all_gather_object uses pickle, and data from the network must not be executable.
        """
        if self.world_size == 1:
            return [value]
        text = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8).to(self.device)
        lengths = self.all_gather(torch.tensor([len(text)], device=self.device)).tolist()
        padded = self.all_gather(torch.nn.functional.pad(text, (0, max(lengths) - len(text))).unsqueeze(0)).cpu()
        return [json.loads(bytes(row[:length].numpy())) for row, length in zip(padded, lengths, strict=True)]

    def main_first(self, name: str, work: Callable[[], T]) -> T:
        """Run `work` on the main rank first, then on the others, for which it is done already; for downloads and other preparation."""
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
            raise HungError(f"the main rank failed: {name}", "see the error of the main rank")
        return work()


def single(device: torch.device | str = "cpu") -> Ranks:
    """The only rank of a run on `device`."""
    return Ranks(0, 0, 1, torch.device(device))


class _Share(Ranks):
    """The first of several ranks without the others: its share of the work and of the memory, and its own values for theirs."""

    def all_reduce_mean(self, tensor: Tensor) -> Tensor:
        return tensor

    def all_reduce_sum(self, tensor: Tensor) -> Tensor:
        return tensor

    def reduce_scatter_mean(self, tensor: Tensor) -> Tensor:
        return tensor[: len(tensor) // self.world_size].clone()

    def all_gather(self, share: Tensor) -> Tensor:
        return share.repeat(self.world_size, *[1] * (share.dim() - 1))


def share_of(ranks: Ranks, world_size: int) -> Ranks:
    """`ranks`, or the first of `world_size` ranks for a measurement on one device; its updates are not those of a training run."""
    return ranks if world_size == 1 else _Share(0, 0, world_size, ranks.device)


@contextlib.contextmanager
def join(device: str) -> Iterator[Ranks]:
    """Join the process group of the environment (RANK, WORLD_SIZE, LOCAL_RANK) if there is one, and leave it at the end.

    `device` is "cuda" or "cpu". Raises PreflightError if there are more processes than GPUs, HungError if one is lost or does not
    start within `START` seconds.
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
                f"{here} processes were requested; {visible} GPU(s) are visible",
                f"use --nproc_per_node={max(visible, 1)}" + ("" if visible else " --device=cpu"),
            )
        torch.cuda.set_device(local_rank)
    chosen = torch.device(device, local_rank) if device == "cuda" else torch.device(device)
    if world_size == 1:
        yield single(chosen)
        return
    store = _meet(rank, world_size)
    # Before the process group is created, which waits half an hour for a missing rank.
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
            lost = HungError("another process of the run was lost", "see its own error, then run the same command again to resume")
            code = liveness.failed(LAST_WORD)
            lost.exit_code = code if code > 1 else lost.exit_code
            raise lost from error
    dist.destroy_process_group()  # not after an error, because NCCL would wait for the lost rank


def _end_with_launcher(process: int) -> None:
    """Have the kernel kill this worker when the launcher `process` dies. Raises HungError if it is dead already."""
    prctl = getattr(ctypes.CDLL(None), "prctl", None)  # Linux only
    if prctl:
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != process:
        raise HungError("this worker's launcher was killed", "run the same command again")


def _meet(rank: int, world_size: int) -> dist.Store:
    """The store that all processes share. Raises HungError if the rendezvous fails."""
    try:
        store, _, _ = next(dist.rendezvous("env://", rank, world_size, timeout=timedelta(seconds=START)))
    except RuntimeError as error:
        raise HungError(
            f"rank {rank}: rendezvous of {world_size} processes failed ({str(error).splitlines()[0]})",
            "check that each machine reaches MASTER_ADDR:MASTER_PORT of the main rank, then run the same command again on all of them",
        ) from error
    return dist.PrefixStore("nanochat", store)


def launched() -> bool:
    """Whether this process is a worker of a launcher: `launch` or a user's torchrun."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def has_launcher() -> bool:
    """Whether `launch` started this worker, not a user's torchrun."""
    return EXIT_CODES in os.environ


def nodes() -> int:
    """The number of machines of the run, from torchrun's variable PET_NNODES."""
    text = os.environ.get("PET_NNODES", "1")
    if not text.isdigit() or text == "0":
        raise UsageError(f"PET_NNODES = {text!r} is not a number of machines", "set it to a fixed number, such as 2")
    return int(text)


def memory_kills() -> int:
    """The number of workers of this call that the system killed because memory ran out."""
    return int(os.environ.get(MEMORY_KILLS, "0"))


def record_exit(code: int) -> None:
    """Record this worker's exit code for the launcher, in case the process is killed before it exits with it."""
    folder = os.environ.get(EXIT_CODES)
    if folder and launched():
        Path(folder, f"rank_{os.environ['RANK']}").write_text(str(code), encoding="utf-8")


def end_now(code: int) -> None:
    """End this worker from any thread, even while its main thread blocks."""
    record_exit(code)
    os._exit(code)


def launch(arguments: list[str], processes: int, restarts: int = 2) -> int:
    """Run `python ARGUMENTS` in `processes` workers and return their common exit code.

    After a crash (1) or a lost or hung rank (7), the workers are restarted up to `restarts` times and resume from the newest
    checkpoint, with smaller micro-batches if the system killed one because memory ran out (`memory_kills`). After SIGINT or
    SIGTERM the code is 75, also if the workers had not started training. With several nodes (PET_NNODES and related variables) nothing is
    restarted here: an orchestrator must restart all nodes together. Raises HungError if the rendezvous fails.
    """
    together = nodes() > 1
    awake.clock.unwatch()  # the workers log suspensions
    restarts, killed = 0 if together else restarts, 0
    for attempt in range(restarts + 1):
        kills = oom_kills()
        with tempfile.TemporaryDirectory() as folder:
            # -u: unbuffered output, so that the lines of several processes appear in order
            command = [sys.executable, "-u", *arguments]
            code, stopped = _wait(command, DEFAULTS | os.environ | {EXIT_CODES: folder, MEMORY_KILLS: str(killed)}, processes)
            codes = set(left_codes(folder))
        if stopped and code:
            codes.add(75)
        elif codes & {1, 7}:
            codes.discard(75)  # the other workers of a crash are stopped by a signal, which they report as preemption
        if not stopped and (why := _ended_by(code, codes, kills)):
            print(why, file=sys.stderr, flush=True)
            killed += why.startswith(MEMORY)
        final = next((known for known in LAUNCHER_FINAL_CODES if known in codes), None)
        if final is not None:
            return final
        if code == 0:
            return 0
        if attempt < restarts:
            print(f"a worker was lost; restart {attempt + 1} of {restarts} from the newest checkpoint", file=sys.stderr, flush=True)
    if together and not codes:
        raise HungError(
            f"rendezvous of {nodes()} machines failed, or a worker of this machine was killed",
            "set the same PET_NNODES, PET_MASTER_ADDR and PET_MASTER_PORT (of the first machine) on all, then run the same command again",
        )
    return 7 if 7 in codes else 1


def _ended_by(code: int, codes: set[int], kills: int | None) -> str:
    """A line about a signal of another program that ended a worker, with its likely sender; "" if none did.

    code: exit code of the first worker that failed.
    codes: exit codes that the workers recorded.
    kills: `oom_kills` at their start.
    """
    if code == -signal.SIGKILL:
        counted = kills is not None and (oom_kills() or 0) > kills
        who = MEMORY if counted else "a worker was killed, probably because memory ran out"
        return f"{who}: close other programs, raise the container's limit, or lower --device_batch_size, which keeps the losses"
    if code < 0:
        return f"a worker was ended by {signal.Signals(-code).name}"
    if codes == {75}:
        return "another program stopped a worker, which has saved its checkpoint (earlyoom and systemd-oomd do so when memory is short)"
    return ""


def _wait(command: list[str], environment: dict[str, str], processes: int) -> tuple[int, bool]:
    """Run `command` in `processes` workers, forwarding SIGINT and SIGTERM: (exit code, whether such a signal arrived).

    When all have recorded their exit codes, one of them an error, they get `LINGER` seconds to end.
    """
    with Workers() as workers, meeting(environment, processes, lambda: workers.came is not None) as environments:
        if environments is None:
            return 1, workers.came is not None
        workers.start(command, environments)
        code = workers.wait(environment[EXIT_CODES], float(environment.get(GRACE, GRACE_SECONDS)), LINGER)
        return code, workers.came is not None
