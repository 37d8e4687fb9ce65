"""One file over a network that misbehaves: it is right or there is a clear error, little comes twice, and little disk is taken."""

import hashlib
import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from nanochat.errors import DataError, UsageError
from nanochat.hub import addresses as hub
from nanochat.hub import transfer
from nanochat.hub.addresses import Remote
from nanochat.hub.transfer import PART, Meter, fetch, parse_rate
from tests.faulty import KINDS, MB, FaultyServer, schedule
from tests.tiny import ROOT

SMALL = 3 * MB


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waiting costs little."""
    monkeypatch.setattr(hub, "FIRST_WAIT", 0.01)
    monkeypatch.setattr(hub, "LONGEST_BACKOFF", 0.1)
    monkeypatch.setattr(hub, "TIMEOUT", (5.0, 1.5))


@pytest.fixture
def serve() -> Iterator[object]:
    servers: list[FaultyServer] = []

    def start(seed: int, kinds: tuple[str, ...], size: int = SMALL, rate: float = 0.5) -> FaultyServer:
        servers.append(FaultyServer(seed, kinds, size, rate))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


def remote(server: FaultyServer, hashed: bool = True) -> Remote:
    return Remote(server.url, "file", len(server.body), server.sha256 if hashed else None)


class Usage(threading.Thread):
    """The most bytes that a folder took on the disk meanwhile."""

    def __init__(self, folder: Path):
        super().__init__(daemon=True)
        self.folder, self.most, self.over = folder, 0, threading.Event()
        self.start()

    def run(self) -> None:
        while not self.over.wait(0.005):
            total = 0
            for path in self.folder.glob("*"):
                try:
                    total += path.stat().st_blocks * 512
                except FileNotFoundError:
                    continue
            self.most = max(self.most, total)

    def end(self) -> int:
        self.over.set()
        self.join()
        return self.most


def survive(server: FaultyServer, folder: Path) -> str:
    """Fetch the server's file; "whole", "replaced", or the error's message. Never a wrong file."""
    folder.mkdir()
    usage, meter = Usage(folder), Meter()
    try:
        digest = fetch(remote(server), folder, meter, relist=lambda _: remote(server))
        data = (folder / "file").read_bytes()
        assert hashlib.sha256(data).hexdigest() == digest
        assert data in server.bodies
        assert [path.name for path in folder.iterdir()] == ["file"]
        outcome = "replaced" if data != server.bodies[0] else "whole"
    except DataError as error:
        outcome = error.message
    if outcome not in ("whole", "replaced"):
        assert not (folder / "file").exists()
        assert "file" in outcome and ("attempts" in outcome or "whole files" in outcome)
    assert usage.end() <= len(server.body) * 1.02 + 2 * MB
    if server.kinds == ("drop",):
        assert server.sent <= len(server.body) * 1.02
    return outcome


@pytest.mark.long
@pytest.mark.parametrize("seed", range(len(KINDS) + 7))
def test_a_small_file_survives(serve, tmp_path: Path, seed: int) -> None:
    print(schedule(seed), survive(serve(seed, schedule(seed)), tmp_path / "files"))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(50))
def test_sixty_four_megabytes_survive(serve, tmp_path: Path, seed: int) -> None:
    server = serve(seed, schedule(seed), 64 * MB)
    outcome = survive(server, tmp_path / "files")
    print(f"schedule {seed} {', '.join(server.kinds)}: {outcome}, {len(server.requests)} requests, {server.sent / len(server.body):.3f}x")


@pytest.mark.long
def test_what_is_asked_for_again(serve, tmp_path: Path) -> None:
    server = serve(1, ("drop",))
    fetch(remote(server), tmp_path)
    assert "range" not in server.requests[0] and len(server.requests) > 3
    offsets = [int(request["range"].removeprefix("bytes=").removesuffix("-")) for request in server.requests[1:]]
    assert offsets == sorted(offsets) and all(offset > 0 for offset in offsets)
    assert {request["if-range"] for request in server.requests[1:]} == {server.headers()["ETag"]}


@pytest.mark.long
def test_a_file_replaced_midway_is_fetched_anew(serve, tmp_path: Path) -> None:
    server = serve(3, ("drop", "replace"), rate=0.0)
    server.rate = 0.0
    took = Meter.take

    def replace(meter: Meter, count: int) -> float:
        server.current = 1
        return took(meter, count)

    meter = Meter()
    meter.take = replace.__get__(meter)
    fetch(remote(server), tmp_path, meter, relist=lambda _: remote(server))
    assert (tmp_path / "file").read_bytes() == server.bodies[1]


@pytest.mark.long
def test_without_a_published_hash(serve, tmp_path: Path) -> None:
    """The server's validator alone keeps two versions apart."""
    server = serve(2, ("drop",))
    server.headers = lambda: {"ETag": '"one"'}  # nothing but a name for the version
    fetch(remote(server, hashed=False), tmp_path)
    assert (tmp_path / "file").read_bytes() == server.body
    assert server.sent <= len(server.body) * 1.02
    bare = serve(2, ("reset",), rate=0.3)
    bare.headers = lambda: {"ETag": 'W/"weak"'}  # which proves nothing about bytes: no part can be kept
    fetch(remote(bare, hashed=False), tmp_path)
    assert all("range" not in request for request in bare.requests)


@pytest.mark.long
def test_parts_of_another_file_are_not_gone_on_with(serve, tmp_path: Path) -> None:
    server = serve(4, ())
    (tmp_path / f"{PART}file").write_bytes(b"x" * 1000)  # no record: nobody knows what it is
    fetch(remote(server), tmp_path)
    (tmp_path / f"{PART}file").write_bytes(b"x" * 1000)
    (tmp_path / f"{PART}file.json").write_text(json.dumps({"url": server.url, "validator": None, "sha256": "0" * 64}))
    fetch(remote(server), tmp_path)
    assert all("range" not in request for request in server.requests)
    (tmp_path / f"{PART}file").write_bytes(b"x" * 1000)  # the record says that it fits, the hash that it does not
    (tmp_path / f"{PART}file.json").write_text(json.dumps({"url": server.url, "validator": None, "sha256": server.sha256}))
    fetch(remote(server), tmp_path)
    assert (tmp_path / "file").read_bytes() == server.body and "range" in server.requests[2]


@pytest.mark.long
def test_the_limit_is_kept(serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server = serve(5, (), size=MB)
    monkeypatch.setenv(transfer.LIMIT, "2M")
    began = time.monotonic()
    fetch(remote(server), tmp_path)
    assert 0.4 < time.monotonic() - began < 5


@pytest.mark.parametrize(("text", "rate"), [("", 0), ("500K", 5e5), ("2M", 2e6), ("1.5mb/s", 1.5e6), ("30000", 3e4)])
def test_rates(text: str, rate: float) -> None:
    assert parse_rate(text) == rate


@pytest.mark.parametrize("text", ["fast", "-1", "10", "0", "1MM"])
def test_no_rates(text: str) -> None:
    with pytest.raises(UsageError, match="not a number of bytes"):
        parse_rate(text)


PROGRAM = """
import sys
from pathlib import Path
from nanochat.hub.addresses import Remote
from nanochat.hub.download import fetch_all
url, folder, size, sha256 = sys.argv[1:]
print("begun", flush=True)
fetch_all("downloading", [Remote(url, "file", int(size), sha256)], Path(folder), print)
"""


def program(server: FaultyServer, folder: Path) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", PROGRAM, server.url, str(folder), str(len(server.body)), server.sha256]
    return subprocess.Popen(command, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def killed(server: FaultyServer, folder: Path, times: int, signal_: int, pace: float) -> None:
    """Kill the downloader `times` times while bytes come at `pace`; the last call goes on to the end."""
    server.pace = pace
    for _ in range(times):
        process = program(server, folder)
        assert process.stdout is not None
        process.stdout.readline()
        sent = server.sent
        while server.sent < sent + len(server.body) // (2 * times) and process.poll() is None:
            time.sleep(0.002)
        assert process.poll() is None, process.stderr.read() if process.stderr else ""
        process.send_signal(signal_)
        began = time.monotonic()
        process.wait(20)
        assert time.monotonic() - began < 5
    server.pace = 0.0
    process = program(server, folder)
    assert process.wait(60) == 0, process.stderr.read() if process.stderr else ""
    assert (folder / "file").read_bytes() == server.body
    assert [path.name for path in folder.iterdir()] == ["file"]
    offsets = [int(request["range"].removeprefix("bytes=").removesuffix("-")) for request in server.requests if "range" in request]
    assert offsets == sorted(offsets) and len(offsets) >= times // 2
    again = server.sent - len(server.body)
    print(f"killed {times} times: {again / len(server.body):.4f} of the file sent twice, {again / times / 1024:.0f} KiB a kill")
    assert again <= times * MB  # what is on its way: the buffers of two sockets


@pytest.mark.slow
def test_killed_thirty_times(serve, tmp_path: Path) -> None:
    killed(serve(6, (), 64 * MB), tmp_path, 30, signal.SIGKILL, 20e6)


@pytest.mark.long
@pytest.mark.parametrize("signal_", [signal.SIGKILL, signal.SIGINT])
def test_killed_once_or_twice(serve, tmp_path: Path, signal_: int) -> None:
    killed(serve(7, (), 16 * MB), tmp_path, 2, signal_, 8e6)
