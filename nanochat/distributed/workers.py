"""The worker processes of this machine: rendezvous, environment, signals, and their common end if one fails.

They meet at a store in the launcher's process. On one machine it listens on loopback only, on several node 0's on PET_MASTER_PORT.
torchrun's elastic rendezvous is not used, because it listens on every address and unpickles the data that it receives.
"""

import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Any

import torch.distributed as dist

from nanochat.errors import PreflightError, UsageError

LOOPBACK = "127.0.0.1"
EXIT_CODES = "NANOCHAT_EXIT_CODES"  # directory in which each worker records its exit code for the launcher
LAUNCHER = "NANOCHAT_LAUNCHER"  # the launcher's process id
KEPT_OPEN = "NANOCHAT_KEPT_OPEN"  # file descriptors that workers inherit, separated by spaces
GRACE = "TORCH_ELASTIC_SHUTDOWN_TIMEOUT"  # torchrun's variable: seconds for workers to save after a signal
GRACE_SECONDS = "120"
GATHER = 600.0  # seconds to wait for the launchers of all nodes, which may still be pulling an image
LEAVE = 5.0  # seconds that node 0's store stays open for the other nodes to read its workers' result
POLL = 0.05  # seconds between two checks of the processes
NODE_DEFAULTS = {"PET_NODE_RANK": "0", "PET_NNODES": "1", "PET_MASTER_PORT": "29500"}
# On one machine collectives use loopback; by default gloo and NCCL listen on an address that other machines can reach.
LOCAL_SOCKETS = {"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "=lo"}


@dataclass(frozen=True)
class Node:
    """This machine's place among those of the run, from torchrun's variables."""

    index: int
    count: int
    address: str  # of node 0
    port: int

    @staticmethod
    def of(environment: Mapping[str, str]) -> "Node":
        """The node that PET_NODE_RANK, PET_NNODES, PET_MASTER_ADDR and PET_MASTER_PORT describe. Raises UsageError."""
        numbers = {name: environment.get(name, default) for name, default in NODE_DEFAULTS.items()}
        for name, text in numbers.items():
            if not text.isdigit():
                raise UsageError(f"{name} = {text!r} is not a number", f"set it to a number, as in {name}={NODE_DEFAULTS[name]}")
        index, count, port = (int(text) for text in numbers.values())
        if not 0 <= index < count:
            raise UsageError(f"PET_NODE_RANK = {index} of PET_NNODES = {count} machines", f"set PET_NODE_RANK to 0 to {count - 1}")
        return Node(index, count, environment.get("PET_MASTER_ADDR", LOOPBACK), port)


@contextlib.contextmanager
def meeting(environment: Mapping[str, str], processes: int, stopped: Callable[[], bool]) -> Iterator[list[dict[str, str]] | None]:
    """The environments of this machine's `processes` workers, while the store at which they meet exists.

    None if the launchers of the other nodes do not connect within `GATHER` seconds, or once `stopped` returns True. Raises
    PreflightError if node 0 cannot listen on its port, UsageError for invalid PET_ variables.
    """
    node = Node.of(environment)
    if node.count == 1:
        store, port = _local_store()
        yield _told(environment, processes, 0, processes, LOOPBACK, port)
        del store
        return
    end = time.monotonic() + GATHER
    found = _hosted(node.port) if node.index == 0 else _reach(node, end, stopped)
    sizes = _gather(found, node, processes, end, stopped) if found else None
    if found is None or sizes is None:
        yield None
        return
    yield _told(environment, processes, sum(sizes[: node.index]), sum(sizes), node.address, node.port)
    _leave(found, node)


def _local_store() -> tuple[dist.TCPStore, int]:
    """A store that listens on loopback, and its port."""
    with socket.create_server((LOOPBACK, 0)) as listening:
        port = int(listening.getsockname()[1])
        store = dist.TCPStore(LOOPBACK, port, is_master=True, wait_for_workers=False, master_listen_fd=listening.detach())
    return store, port


def loopback_rendezvous(parameters: Any) -> Any:
    """A rendezvous handler on loopback, for the agent of a user's torchrun on one machine."""
    from torch.distributed.elastic.rendezvous.static_tcp_rendezvous import StaticTCPRendezvous

    class Loopback(StaticTCPRendezvous):
        def get_backend(self) -> str:
            return "loopback"

    store, port = _local_store()
    handler = Loopback(LOOPBACK, port, 0, 1, parameters.run_id, timeout=60)
    handler._store = store
    return handler


def _hosted(port: int) -> dist.TCPStore:
    """Node 0's store, which the other machines must reach."""
    try:
        return dist.TCPStore(LOOPBACK, port, is_master=True, wait_for_workers=False)
    except RuntimeError as error:
        raise PreflightError(
            f"this machine cannot listen on PET_MASTER_PORT = {port}: {str(error).splitlines()[0]}",
            "stop the program that uses the port, or set another PET_MASTER_PORT on all machines",
        ) from error


def _reach(node: Node, end: float, stopped: Callable[[], bool]) -> dist.TCPStore | None:
    """A connection to node 0's store, once it exists; None after `end`."""
    while time.monotonic() < end and not stopped():
        # First with a plain socket, because torch's constructor cannot be interrupted and prints a warning for each attempt.
        with contextlib.suppress(OSError, RuntimeError):
            socket.create_connection((node.address, node.port), timeout=2.0).close()
            return dist.TCPStore(node.address, node.port, is_master=False, wait_for_workers=False, timeout=timedelta(seconds=10))
        time.sleep(0.5)
    return None


def _gather(store: dist.Store, node: Node, processes: int, end: float, stopped: Callable[[], bool]) -> list[int] | None:
    """The number of workers of each node; None if not all have connected in time."""
    names = [f"nanochat/node/{index}" for index in range(node.count)]
    with contextlib.suppress(RuntimeError, ValueError):
        store.set(names[node.index], str(processes))
        while not store.check(names):
            if time.monotonic() > end or stopped():
                return None
            time.sleep(0.2)
        return [int(store.get(name)) for name in names]
    return None


def _leave(store: dist.Store, node: Node) -> None:
    """Record that this node's workers have ended; node 0, which has the store, waits for the other nodes' records."""
    with contextlib.suppress(RuntimeError):
        store.set(f"nanochat/left/{node.index}", "")
        end = time.monotonic() + LEAVE
        while node.index == 0 and time.monotonic() < end:
            if store.check([f"nanochat/left/{index}" for index in range(node.count)]):
                return
            time.sleep(0.2)


def _told(environment: Mapping[str, str], processes: int, first: int, world_size: int, address: str, port: int) -> list[dict[str, str]]:
    """The environment of each worker; the first one's rank is `first`."""
    common = {
        "WORLD_SIZE": str(world_size),
        "LOCAL_WORLD_SIZE": str(processes),
        "MASTER_ADDR": address,
        "MASTER_PORT": str(port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",  # makes rank 0 connect to that store instead of creating one
        LAUNCHER: str(os.getpid()),
    }
    defaults = {"TORCH_NCCL_ASYNC_ERROR_HANDLING": "1"} | (LOCAL_SOCKETS if world_size == processes else {})
    return [
        {**defaults, **environment, **common, "RANK": str(first + local), "LOCAL_RANK": str(local)}  # ranks are consecutive
        for local in range(processes)
    ]


def left_codes(folder: str) -> list[int]:
    """The exit codes that workers have recorded so far."""
    texts = [path.read_text(encoding="utf-8") for path in Path(folder).iterdir()]
    return [int(text) for text in texts if text]  # an empty file is being written


def echoed(first: float | None) -> bool:
    """Whether a signal that arrives now repeats the one of `first` (by time.monotonic), within NANOCHAT_SIGNAL_ECHO seconds.

    The image sets the variable, because `docker compose run` delivers one Ctrl-C twice, and a second signal means "end immediately".
    """
    return first is not None and time.monotonic() - first < float(os.environ.get("NANOCHAT_SIGNAL_ECHO", 0))


class Workers:
    """Worker processes, to which SIGINT and SIGTERM are forwarded, also a signal from before their start. A context manager."""

    def __init__(self) -> None:
        self.processes: list[subprocess.Popen[bytes]] = []
        self.asked: set[int] = set()  # ids of the processes that got a forwarded signal
        self.came: float | None = None  # time of the first signal

    def start(self, command: list[str], environments: list[dict[str, str]]) -> None:
        """Start `command` once with each environment, each process in its own session.

        Then Ctrl-C in the terminal reaches a process only once, through this one; a second signal would end it immediately.
        """
        for environment in environments:
            kept = [int(number) for number in environment.get(KEPT_OPEN, "").split()]
            process = subprocess.Popen(command, env=environment, start_new_session=True, pass_fds=kept)
            self.processes.append(process)
            if self.came is not None and process.pid not in self.asked:  # the signal came before this process was started
                process.terminate()

    def wait(self, folder: str, grace: float, linger: float) -> int:
        """Wait for all workers; returns the exit code of the first that failed, negative for a signal that ended it, else 0.

        If one fails, or a signal came, the others get `grace` seconds to end after SIGTERM. If all have recorded their exit codes in
        `folder`, one of them an error, they get `linger` seconds to end.
        """
        end, over, first = float("inf"), 0.0, 0
        while None in (codes := [process.poll() for process in self.processes]):
            now = time.monotonic()
            first = first or next((code for code in codes if code), 0)
            if self.came is not None:
                end = min(end, self.came + grace)
            elif any(codes) and end == float("inf"):
                end = now + grace
                self._send(signal.SIGTERM)
            left = left_codes(folder)
            over = (over or now) if len(left) == len(self.processes) and any(left) else 0.0
            if now > end or (over and now - over > linger):
                self._send(signal.SIGKILL)
            time.sleep(POLL)
        return first or next((code for code in codes if code), 0)

    def _send(self, number: int) -> None:
        for process in self.processes:
            process.send_signal(number)

    def _forward(self, number: int, _frame: Any) -> None:
        if not echoed(self.came):
            for process in self.processes:
                self.asked.add(process.pid)
                process.send_signal(number)
        self.came = self.came or time.monotonic()

    def __enter__(self) -> "Workers":
        self._before = {number: signal.signal(number, self._forward) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        for process in self.processes:
            if process.poll() is None:
                process.kill()
                process.wait()
