"""Open connections: how many there may be, of one address and in all, and how new ones are accepted. listener.py speaks HTTP on them."""

import asyncio
import contextlib
import resource
import socket
import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, Protocol

from nanochat.console import log

PROBE_CONNECTIONS = 32  # beyond all limits, for probes alone
SPARE_FILES = 96  # file descriptors for everything but connections
CLOSE_SECONDS = 5.0  # that a closed connection may take to send its last bytes to a client that does not read
ACCEPTS = 64  # connections accepted before the event loop does something else
STARTS = 4  # of these begin before it does
QUEUED, QUEUED_OF_ONE = 256, 64  # accepted connections that wait to begin, in all and of one address
RETRY_SECONDS = 0.2  # until the next try where no file descriptor was left
SAID_EVERY = 60.0  # seconds between two lines about the same thing


class Seldom:
    """Whether to print a line of some kind now: the first one, then one a minute."""

    def __init__(self) -> None:
        self._said: dict[str, float] = {}

    def __call__(self, kind: str) -> bool:
        now = time.monotonic()
        if now - self._said.get(kind, -SAID_EVERY) < SAID_EVERY:
            return False
        self._said[kind] = now
        return True


def raise_file_limit() -> None:
    """Let this process have as many open files as it is allowed to."""
    with contextlib.suppress(OSError, ValueError):
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def file_limit() -> int:
    """The number of files that this process may have open."""
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return 1 << 20 if soft == resource.RLIM_INFINITY else soft


class Connection(Protocol):
    """One connection in the table."""

    address: str  # the peer's
    idle_since: float  # when it was accepted, or when its last response ended

    @property
    def idle(self) -> bool:
        """Whether no request is under way."""

    @property
    def closing(self) -> bool:
        """Whether it is closed, but has bytes left to send."""

    def abort(self) -> None:
        """Close it at once."""


class ConnectionTable:
    """The open connections of a server. A new one beyond a limit takes the place of an idle one, or else is there for a probe alone."""

    def __init__(self, per_address: int, in_all: int, unlimited: Callable[[str], bool] = lambda address: False):
        """`unlimited` tells whether an address is bounded by `in_all` alone."""
        self.per_address, self.unlimited = per_address, unlimited
        self.in_all = max(min(in_all, file_limit() - SPARE_FILES - PROBE_CONNECTIONS - QUEUED), 16)
        self._of: dict[str, dict[Connection, None]] = {}  # by address, the oldest first
        self._probes: dict[Connection, None] = {}
        self._closing: dict[Connection, float] = {}  # since when
        self._seldom = Seldom()

    def __len__(self) -> int:
        return sum(map(len, self._of.values())) + len(self._probes)

    def add(self, connection: Connection) -> bool:
        """Count a new connection; False if none can be closed for it, so that only probes are answered on it."""
        own = self._of.setdefault(connection.address, {})
        own[connection] = None
        if len(own) > self.per_address and not self.unlimited(connection.address):
            if self._seldom("address"):
                log(f"warning: one address has more than {self.per_address} connections: the oldest idle ones are closed")
            made_room = self._close_idle([own], connection)
        elif len(self) - len(self._probes) > self.in_all:
            if self._seldom("all"):
                log(f"warning: there are more than {self.in_all:,} connections: the oldest idle ones are closed")
            made_room = self.shed(connection)
        else:
            return True
        if not made_room:
            self.remove(connection)
            if len(self._probes) >= PROBE_CONNECTIONS:
                self._close(next(iter(self._probes)))
            self._probes[connection] = None
        return made_room

    def remove(self, connection: Connection) -> None:
        """Forget a connection."""
        self._probes.pop(connection, None)
        self._closing.pop(connection, None)
        if own := self._of.get(connection.address):
            own.pop(connection, None)
            if not own:
                del self._of[connection.address]

    def shed(self, new: Connection | None = None) -> bool:
        """Close one idle connection, of the address that has the most; False where none is idle."""
        return self._close_idle(sorted(self._of.values(), key=len, reverse=True), new)

    def sweep(self) -> None:
        """Give up closed connections whose client does not read the last bytes. Called every second."""
        now = time.monotonic()
        for own in [*self._of.values(), self._probes]:
            for connection in list(own):
                if connection.closing and now - self._closing.setdefault(connection, now) > CLOSE_SECONDS:
                    self._close(connection)

    def _close_idle(self, crowds: Iterable[dict[Connection, None]], new: Connection | None) -> bool:
        for crowd in crowds:
            idle = [one for one in crowd if one is not new and one.idle]
            if idle:
                self._close(min(idle, key=lambda one: one.idle_since))
                return True
        return False

    def _close(self, connection: Connection) -> None:
        self.remove(connection)
        connection.abort()


class Acceptor:
    """Accepts connections in place of an asyncio server, from which it takes the sockets.

    Addresses take turns, so that one that connects without end does not delay the others. asyncio answers a lack of file descriptors with a
    traceback for each try, hundreds of tries at once. Here it is a line a minute, an idle connection closed, and a pause.
    """

    def __init__(self, server: asyncio.Server, protocol: Callable[[], asyncio.Protocol], table: ConnectionTable):
        self._loop, self._protocol, self._table = asyncio.get_running_loop(), protocol, table
        self._tasks: set[asyncio.Task[Any]] = set()
        self._queues: dict[str, deque[socket.socket]] = {}  # accepted connections by address, the address whose turn it is first
        self._queued = 0
        self._turn: asyncio.Handle | None = None
        self._seldom = Seldom()
        self.sockets: list[socket.socket] = [one.dup() for one in server.sockets]
        server.close()
        for listening in self.sockets:
            self._resume(listening)

    def close(self) -> None:
        """Accept no more."""
        for listening in self.sockets:
            if listening.fileno() >= 0:
                self._loop.remove_reader(listening)
                listening.close()
        for queue in self._queues.values():
            for accepted in queue:
                accepted.close()
        self._queues.clear()
        self._queued = 0

    async def wait_closed(self) -> None:
        """Nothing: `close` is done when it returns."""

    def _resume(self, listening: socket.socket) -> None:
        if listening.fileno() >= 0:
            self._loop.add_reader(listening, self._accept, listening)

    def _accept(self, listening: socket.socket) -> None:
        """Accept what waits, a bounded number at a time."""
        for _ in range(min(ACCEPTS, QUEUED - self._queued)):
            try:
                accepted, peer = listening.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                self._pause(listening, error)
                return
            accepted.setblocking(False)
            queue = self._queues.setdefault(peer[0], deque())
            queue.append(accepted)
            self._queued += 1
            if len(queue) > QUEUED_OF_ONE:
                queue.popleft().close()
                self._queued -= 1
            self._turn = self._turn or self._loop.call_soon(self._start)

    def _start(self) -> None:
        """Begin to read from a few accepted connections, one of each address in turn."""
        self._turn = None
        for _ in range(min(STARTS, self._queued)):
            address = next(iter(self._queues))
            queue = self._queues.pop(address)
            task = self._loop.create_task(self._connect(queue.popleft()))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
            self._queued -= 1
            if queue:
                self._queues[address] = queue  # behind the others
        if self._queued:
            self._turn = self._loop.call_soon(self._start)

    async def _connect(self, accepted: socket.socket) -> None:
        try:
            await self._loop.connect_accepted_socket(self._protocol, accepted)
        except OSError:  # the client has left already
            accepted.close()

    def _pause(self, listening: socket.socket, error: OSError) -> None:
        """Close idle connections and accept again later, when file descriptors or memory for sockets run out."""
        if self._seldom("accept"):
            log(f"warning: a connection cannot be accepted: {error.strerror}; idle ones are closed ({file_limit():,} files may be open)")
        self._table.shed()
        self._loop.remove_reader(listening)
        self._loop.call_later(RETRY_SECONDS, self._resume, listening)
