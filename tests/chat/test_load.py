"""A server under load on loopback, for minutes: nothing but declared answers, flat memory, no slot left behind."""

import asyncio
import json
import os
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.chat.serve_process import Serve

pytestmark = pytest.mark.slow
CLIENTS = 200
SECONDS = 180.0
NONSENSE: tuple[bytes, ...] = (
    b"{",
    b'{"messages": 5}',
    b'{"messages": [{"role": "user", "content": "\\ud800"}]}',
    b"\x00" * 5000,
    b'{"messages": [{"role": "user", "content": "x"}], "n": 1000000000}',
    b'{"messages": [{"role": "user", "content": "' + b"x" * 50_000 + b'"}]}',
)


@pytest.fixture
def server(trained: Path) -> Iterator[Serve]:
    one = Serve(trained, "--slots=32")
    yield one
    one.end()


def resident(pid: int) -> int:
    """Bytes of memory that a process holds."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


async def client(server: Serve, number: int, end: float, statuses: Counter[str]) -> None:
    """Ask until `end`: a third leave in the middle of an answer, a tenth send nonsense. Each has an address of its own."""
    rng = random.Random(number)
    transport = httpx.AsyncHTTPTransport(local_address=f"127.0.{1 + number // 100}.{1 + number % 100}")
    async with httpx.AsyncClient(transport=transport, timeout=60) as http:
        while time.monotonic() < end:
            url, kind = server.url + "/v1/chat/completions", rng.random()
            if kind < 0.1:
                answer = await http.post(url, content=rng.choice(NONSENSE), headers={"content-type": "application/json"})
                statuses[f"nonsense {answer.status_code}"] += 1
                continue
            words = " ".join(rng.choice(("cat", "dog", "old", "貓")) for _ in range(rng.randint(1, 25)))
            body = {"messages": [{"role": "user", "content": words}], "max_tokens": rng.randint(1, 120), "temperature": rng.choice((0, 1))}
            async with http.stream("POST", url, json=body | {"stream": True}) as answer:
                if answer.status_code == 429:
                    await answer.aread()
                    assert int(answer.headers["retry-after"]) > 0
                    statuses["429"] += 1
                    await asyncio.sleep(rng.random())
                    continue
                statuses[str(answer.status_code)] += 1
                leave_after = rng.randint(1, 30) if kind < 0.43 else 10_000
                last = ""
                async for line in answer.aiter_lines():
                    last = line or last
                    leave_after -= 1
                    if not leave_after:
                        break
                else:
                    assert last == "data: [DONE]", last


async def probe(server: Serve, end: float, seconds: list[float]) -> None:
    async with httpx.AsyncClient(timeout=30) as http:
        while time.monotonic() < end:
            began = time.monotonic()
            assert (await http.get(server.url + "/healthz")).status_code == 200
            seconds.append(time.monotonic() - began)
            await asyncio.sleep(0.1)


async def crowd(server: Serve, seconds: float, statuses: Counter[str], health: list[float]) -> None:
    end = time.monotonic() + seconds
    await asyncio.gather(*(client(server, number, end, statuses) for number in range(CLIENTS)), probe(server, end, health))


def metric(server: Serve, name: str) -> float:
    lines = httpx.get(server.url + "/metrics").text.splitlines()
    return float(next(line.split()[1] for line in lines if line.startswith(name + " ")))


def test_two_hundred_clients_for_three_minutes(server: Serve) -> None:
    statuses: Counter[str] = Counter()
    health: list[float] = []
    asyncio.run(crowd(server, 45, statuses, []))  # warm-up: every slot used, every buffer at its size
    before = resident(server.process.pid)
    asyncio.run(crowd(server, SECONDS, statuses, health))
    end = time.monotonic() + 30
    while metric(server, "nanochat_requests_running") + metric(server, "nanochat_requests_waiting") and time.monotonic() < end:
        time.sleep(0.1)
    after = resident(server.process.pid)
    health.sort()
    p99 = health[int(len(health) * 0.99)] * 1000
    rate = metric(server, "nanochat_generated_tokens_total") / (SECONDS + 45)
    print(
        f"{dict(statuses)}; {rate:.0f} tokens/s; healthz median {health[len(health) // 2] * 1000:.0f} ms, p99 {p99:.0f} ms; "
        f"RSS {before / 1e6:.0f} -> {after / 1e6:.0f} MB",
        file=sys.stderr,
    )
    assert metric(server, "nanochat_requests_running") == metric(server, "nanochat_requests_waiting") == 0
    assert metric(server, "nanochat_engine_failures_total") == 0
    assert set(statuses) <= {"200", "429", "nonsense 400", "nonsense 429"}, statuses
    assert statuses["200"] > 100
    assert abs(after - before) < 0.05 * before
    assert server.ask().status_code == 200


def test_killed_and_restarted_under_load(trained: Path) -> None:
    """Every client sees a transport error that it can retry, or an answer; the next server answers at once."""

    async def ask_until_killed(one: Serve) -> Counter[str]:
        seen: Counter[str] = Counter()

        async def ask(number: int) -> None:
            async with httpx.AsyncClient(timeout=30) as http:
                body = {"messages": [{"role": "user", "content": f"cat {number}"}], "max_tokens": 200, "stream": True}
                for _ in range(50):
                    try:
                        async with http.stream("POST", one.url + "/v1/chat/completions", json=body) as answer:
                            lines = [line async for line in answer.aiter_lines() if line]
                            seen["429" if answer.status_code == 429 else "whole" if lines[-1] == "data: [DONE]" else "cut"] += 1
                    except httpx.TransportError:
                        seen["retry"] += 1
                        return

        asking = [asyncio.ensure_future(ask(number)) for number in range(40)]
        await asyncio.sleep(2)
        one.process.send_signal(signal.SIGKILL)
        await asyncio.gather(*asking)
        return seen

    for _ in range(3):
        one = Serve(trained)
        seen = asyncio.run(ask_until_killed(one))
        one.end()
        assert seen["cut"] == 0, seen
        assert seen["retry"] == 40, seen
    again = Serve(trained)
    try:
        assert json.loads(again.ask().text)["choices"]
    finally:
        again.end()
