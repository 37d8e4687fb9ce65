"""Many connections: bounds of one address and in all, probes, too few file descriptors, a crowd beside ordinary clients."""

import asyncio
import contextlib
import errno
import http.client
import json
import logging
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from nanochat.chat import connections
from nanochat.chat.connections import Acceptor, ConnectionTable
from nanochat.chat.middleware import Limits
from nanochat.console import printable
from tests.chat.serve_process import Serve
from tests.chat.serving import KEY, PATH, loaded_model, one_message, running

CROWD = Path(__file__).with_name("crowd.py")


@dataclass(eq=False)
class Fake:
    """A connection as the table sees it."""

    address: str = "a"
    idle_since: float = 0.0
    idle: bool = True
    closing: bool = False
    closed: bool = False

    def abort(self) -> None:
        self.closed = True


# The table


def test_the_oldest_idle_connection_of_an_address_makes_room() -> None:
    table = ConnectionTable(3, 100)
    own = [Fake(idle_since=3), Fake(idle_since=1), Fake(idle_since=0, idle=False), Fake(idle_since=4)]
    other = Fake("b", idle_since=-1)
    assert all(table.add(one) for one in (other, *own))
    assert [one.closed for one in (*own, other)] == [False, True, False, False, False]
    assert len(table) == 4


def test_of_all_addresses_the_one_with_the_most_makes_room() -> None:
    table = ConnectionTable(100, 16)
    crowd, quiet = [Fake(idle_since=number) for number in range(15)], Fake("b", idle_since=-1)
    assert all(table.add(one) for one in (quiet, *crowd, Fake("c")))
    assert [one.closed for one in crowd] == [True] + [False] * 14 and not quiet.closed


def test_without_an_idle_one_there_is_room_for_probes_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "PROBE_CONNECTIONS", 2)
    table = ConnectionTable(2, 100)
    busy, beyond = [Fake(idle=False) for _ in range(2)], [Fake() for _ in range(5)]
    assert all(map(table.add, busy)) and not any(map(table.add, beyond))
    assert [one.closed for one in (*busy, *beyond)] == [False] * 2 + [True] * 3 + [False] * 2
    for one in (*busy, *beyond):
        table.remove(one)
    assert len(table) == 0


def test_a_trusted_proxy_is_bounded_in_all_alone() -> None:
    table = ConnectionTable(2, 16, lambda address: address == "a")
    many = [Fake() for _ in range(17)]
    assert all(map(table.add, many)) and sum(one.closed for one in many) == 1


def test_a_client_that_does_not_read_the_end_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "CLOSE_SECONDS", 0.0)
    table, stuck, open_ = ConnectionTable(2, 16), Fake(closing=True), Fake()
    assert table.add(stuck) and table.add(open_)
    table.sweep()
    time.sleep(0.01)
    table.sweep()
    assert stuck.closed and not open_.closed and len(table) == 1


def test_few_file_descriptors_bound_the_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "file_limit", lambda: 512)
    assert ConnectionTable(128, 1000).in_all == 128
    monkeypatch.setattr(connections, "file_limit", lambda: 256)
    assert ConnectionTable(128, 1000).in_all == 16


# Accepting


def accepting(work: Callable[[Acceptor, int], Awaitable[None]]) -> None:
    """Run `work` with an acceptor that listens on loopback, and its port."""

    async def run() -> None:
        server = await asyncio.start_server(lambda reader, writer: None, "127.0.0.1", 0)
        acceptor = Acceptor(server, asyncio.Protocol, ConnectionTable(10, 100))
        try:
            await work(acceptor, acceptor.sockets[0].getsockname()[1])
        finally:
            acceptor.close()

    asyncio.run(run())


def test_without_file_descriptors_it_is_tried_a_few_times_a_second(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    tries = []

    def refuse(listening: socket.socket) -> None:
        tries.append(listening)
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    async def work(acceptor: Acceptor, port: int) -> None:
        monkeypatch.setattr(socket.socket, "accept", refuse)
        with socket.create_connection(("127.0.0.1", port)):  # no connection is idle, so that none could make room
            await asyncio.sleep(1)

    accepting(work)
    assert 2 <= len(tries) <= 1 / connections.RETRY_SECONDS + 1
    assert capfd.readouterr().err.count("cannot be accepted") == 1


def test_addresses_take_turns() -> None:
    """One that connects without end delays nobody."""

    class Waiting:
        def __init__(self) -> None:
            self.peers = ["crowd"] * 40 + ["other"]

        def accept(self) -> tuple[Any, tuple[str, int]]:
            if not self.peers:
                raise BlockingIOError
            peer = self.peers.pop(0)
            return SimpleNamespace(setblocking=lambda blocks: None, close=lambda: None, peer=peer), (peer, 1)

    begun: list[str] = []

    async def connect(accepted: Any) -> None:
        begun.append(accepted.peer)

    async def work(acceptor: Acceptor, port: int) -> None:
        acceptor._connect = connect  # type: ignore[method-assign]
        acceptor._accept(Waiting())  # type: ignore[arg-type]
        while len(begun) < 41:
            await asyncio.sleep(0)

    accepting(work)
    assert begun.index("other") <= 2


# A server


def holding(port: int, count: int, data: bytes = b"", source: str = "127.0.0.1") -> list[socket.socket]:
    """So many connections that have sent `data`."""
    held = []
    for _ in range(count):
        held.append(socket.create_connection(("127.0.0.1", port), timeout=10, source_address=(source, 0)))
        if data:
            held[-1].sendall(data)
    return held


def answer(port: int, path: str = "/healthz") -> int:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request("GET", path)
    status = connection.getresponse().status
    connection.close()
    return status


def open_ones(held: list[socket.socket]) -> int:
    """How many the server has not closed."""
    count = 0
    for one in held:
        one.setblocking(False)
        try:
            while one.recv(65536):
                pass
        except BlockingIOError:
            count += 1
        except OSError:
            pass
    return count


@pytest.mark.long
@pytest.mark.parametrize("data", [b"", b"GET / HT", b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n"])
def test_idle_sockets_of_one_address(data: bytes) -> None:
    """Two hundred sockets without a request, with half of one, or after one: everybody is answered, the same address too."""
    with running(loaded_model(), Limits(connections_per_client=50)) as server:
        held = holding(server.port, 200, data)
        assert [answer(server.port, path) for path in ("/healthz", "/readyz", "/v1/models")] == [200] * 3
        assert server.post(one_message("hi")).status_code == 200
        assert 40 <= open_ones(held) <= 50
        for one in held:
            one.close()


@pytest.mark.long
def test_probes_pass_where_every_connection_is_busy() -> None:
    body = b"POST " + PATH.encode() + b" HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: 500\r\n\r\n{"
    with running(loaded_model(), Limits(connections_per_client=20)) as server:
        held = holding(server.port, 20, body)
        time.sleep(0.3)
        assert open_ones(held) == 20
        beyond = holding(server.port, 100)  # more than are kept for probes
        assert [answer(server.port, path) for path in ("/healthz", "/readyz", "/v1/models")] == [200, 200, 503]
        refused = httpx.get(server.url + "/v1/models")
        assert refused.json()["error"]["code"] == "too_many_connections"
        assert refused.headers["connection"] == "close" and "content-security-policy" in refused.headers
        assert open_ones(held) == 20
        time.sleep(2.5)
        assert open_ones(beyond) == 0
        for one in held + beyond:
            one.close()


@pytest.mark.long
def test_junk_is_a_line_a_minute(capfd: pytest.CaptureFixture[str]) -> None:
    with running(loaded_model()) as server:
        for _ in range(30):
            server.raw(b"no HTTP\r\n\r\n")
            httpx.get(server.url, headers={"connection": "upgrade", "upgrade": "websocket"})
    said = capfd.readouterr().err
    assert said.count("Invalid HTTP request") <= 1 and said.count("Unsupported upgrade") <= 1, said


def ticks(pid: int) -> int:
    """The processor time of a process, in hundredths of a second."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


@pytest.mark.long
def test_what_uvicorn_logs_is_printed_by_the_console(capfd: pytest.CaptureFixture[str]) -> None:
    """A traceback has the words of whoever caused it: they cannot steer the terminal."""
    with running(None):
        try:
            raise ValueError("\x1b[2J\x9b31m\u202e")
        except ValueError:
            logging.getLogger("uvicorn.error").exception("failed: \x1b]0;title\x07")
    err = capfd.readouterr().err
    assert "error: failed: ]0;title" in err and "ValueError: [2J31m" in err
    assert printable(err) == err


def test_too_few_file_descriptors(trained: Path) -> None:
    """The limit is raised as far as it goes; beyond it there is one line, no traceback, no spinning, and probes are answered."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(1024, hard // 2), hard))
    try:
        one = Serve(trained)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    try:
        soft, hard = resource.prlimit(one.process.pid, resource.RLIMIT_NOFILE)
        assert soft == hard
        files = len(os.listdir(f"/proc/{one.process.pid}/fd"))
        resource.prlimit(one.process.pid, resource.RLIMIT_NOFILE, (files + 20, files + 20))  # below what the table reckons with
        held = [found for number in range(60) for found in holding(one.port, 1, source=f"127.0.0.{2 + number % 5}")]
        time.sleep(1)
        before = ticks(one.process.pid)
        assert [answer(one.port) for _ in range(5)] == [200] * 5
        time.sleep(3)
        assert ticks(one.process.pid) - before < 100
        assert sum("cannot be accepted" in line for line in one.log) == 1, one.log
        assert not any("Traceback" in line for line in one.log) and len(one.log) < 5, one.log
        for found in held:
            found.close()
        assert one.ask().status_code == 200
    finally:
        one.end()


# A crowd beside ordinary clients


@dataclass
class Place:
    """Where a program's clients run: the command before it, the server's address from there, and their own."""

    command: list[str]
    host: str
    source: str


@contextlib.contextmanager
def places() -> Iterator[list[Place]]:
    """Two addresses: in network namespaces of their own where this process may make them, else of loopback."""
    names = [f"nanochat{os.getpid() % 10_000}{letter}" for letter in "ab"]
    made: list[Place] = []
    with contextlib.ExitStack() as stack:
        for number, name in enumerate(names):
            network = f"10.{192 + os.getpid() // 256 % 64}.{os.getpid() % 256}"  # another process may run this test too
            host, source = f"{network}.{4 * number + 1}", f"{network}.{4 * number + 2}"
            steps = [
                f"ip netns add {name}",
                f"ip link add {name} type veth peer name inner netns {name}",
                f"ip addr add {host}/30 dev {name}",
                f"ip link set {name} up",
                f"ip -n {name} addr add {source}/30 dev inner",
                f"ip -n {name} link set inner up",
            ]
            stack.callback(subprocess.run, ["ip", "link", "del", name], capture_output=True)
            stack.callback(subprocess.run, ["ip", "netns", "del", name], capture_output=True)
            if os.geteuid() or not shutil.which("ip") or any(subprocess.run(one.split(), capture_output=True).returncode for one in steps):
                break
            made.append(Place(["ip", "netns", "exec", name], host, source))
        yield made if len(made) == 2 else [Place([], "127.0.0.1", f"127.0.0.{number}") for number in (2, 3)]


def program(place: Place, mode: str, port: int, count: int, seconds: float) -> "subprocess.Popen[str]":
    command = [*place.command, sys.executable, str(CROWD), mode, place.host, str(port), place.source, str(count), str(seconds)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def resident(pid: int) -> int:
    """Bytes of memory that a process holds."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.parametrize(
    ("count", "seconds"), [pytest.param(200, 6.0, marks=pytest.mark.long), pytest.param(2000, 60.0, marks=pytest.mark.slow)]
)
def test_a_crowd_beside_ordinary_clients(trained: Path, tmp_path: Path, count: int, seconds: float) -> None:
    """Idle, slow and leaving sockets of one address; eight clients of another are answered at once, and memory stays."""
    key = tmp_path / "key"
    key.write_text(KEY)
    key.chmod(0o600)
    server = Serve(trained, "--host=0.0.0.0", f"--api-key-file={key}")
    started: list[subprocess.Popen[str]] = []
    try:
        with places() as (crowd, ordinary):
            started.append(program(crowd, "hold", server.port, count, seconds + 30))
            assert started[0].stdout
            print(started[0].stdout.readline().strip(), "from", crowd.source, file=sys.stderr)
            before = resident(server.process.pid)
            started.append(program(ordinary, "ask", server.port, 8, seconds))
            found = json.loads(started[1].communicate(timeout=seconds + 60)[0])
            after = resident(server.process.pid)
            files = len(os.listdir(f"/proc/{server.process.pid}/fd"))
        took = found["seconds"]
        p99 = took[int(len(took) * 0.99)]
        print(f"{count} sockets: {found['statuses']}, p50 {took[len(took) // 2] * 1000:.0f} ms, p99 {p99 * 1000:.0f} ms, ", file=sys.stderr)
        print(f"RSS {before / 1e6:.0f} -> {after / 1e6:.0f} MB, {files} files", file=sys.stderr)
        assert set(found["statuses"]) == {"200"} and len(took) > 8 * seconds
        assert p99 < 3.0  # below 1 s on a machine with nothing else to do
        assert after - before < 30e6 and files < 300
        assert len(server.log) < 10 and not any("Traceback" in line for line in server.log), server.log
    finally:
        for one in started:
            one.send_signal(signal.SIGKILL)
            one.wait()
        server.end()
