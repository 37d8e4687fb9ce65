"""Who may ask, from where, and how much at once: hosts, origins, keys, paths, malformed HTTP, many and slow clients."""

import ipaddress
import json
import socket
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from nanochat.chat.loading import LoadedModel
from nanochat.chat.middleware import Limits
from tests.chat.serving import KEY, PATH, Running, loaded_model, one_message, running

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with running(loaded_model(), Limits(allowed_hosts=("chat.example.org", "*.proxy.example"))) as one:
        yield one


@pytest.fixture(scope="module")
def locked() -> Iterator[Running]:
    with running(loaded_model(), Limits(api_key=KEY)) as one:
        yield one


@pytest.mark.parametrize(
    "host", ["evil.example", "localhost.evil.example", "127.0.0.1.evil.example", "", "proxy.example", "[::1", "evilchat"]
)
def test_forged_hosts(server: Running, host: str) -> None:
    answer = httpx.get(server.url + "/v1/models", headers={"host": host})
    assert answer.status_code in (400, 403)
    for probe in ("/healthz", "/readyz"):
        assert httpx.get(server.url + probe, headers={"host": host or "x"}).status_code == 200


@pytest.mark.parametrize(
    "host", ["localhost:1", "127.0.0.1", "[::1]:8000", "192.168.1.7:8000", "chat:8000", "chat.example.org", "a.b.proxy.example"]
)
def test_hosts_that_are_ours(server: Running, host: str) -> None:
    assert httpx.get(server.url + "/v1/models", headers={"host": host}).status_code == 200


def test_two_hosts(server: Running) -> None:
    assert b" 400 " in server.raw(b"GET /v1/models HTTP/1.1\r\nhost: localhost\r\nhost: evil\r\nconnection: close\r\n\r\n")[:20]


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        ("http://evil.example", 403),
        ("null", 403),
        ("http://[::1", 403),
        ("http://localhost:9", 403),
        ("https://chat.example.org", 200),
        (None, 200),
        ("same", 200),
    ],
)
def test_origins(server: Running, origin: str | None, status: int) -> None:
    headers = {} if origin is None else {"origin": server.url if origin == "same" else origin}
    answer = server.post(one_message("hi"), headers=headers)
    assert answer.status_code == status
    assert "access-control-allow-origin" not in answer.headers
    preflight = httpx.options(server.url + PATH, headers=headers | {"access-control-request-method": "POST"})
    assert "access-control-allow-origin" not in preflight.headers


@pytest.mark.parametrize("key", [None, "", "Bearer", f"Bearer {KEY}x", f"Bearer {KEY[:-1]}", f"Basic {KEY}", "Bearer ключ", f"{KEY}"])
def test_missing_and_wrong_keys(locked: Running, key: str | None) -> None:
    headers = {} if key is None else {"authorization": key.encode("utf-8")}
    for method, path in (("POST", PATH), ("GET", "/v1/models"), ("GET", "/metrics"), ("GET", "/api/training"), ("GET", "/openapi.json")):
        answer = httpx.request(method, locked.url + path, headers=headers)
        assert answer.status_code == 401
        assert answer.headers["www-authenticate"] == "Bearer"
    assert httpx.get(locked.url + "/", headers=headers).status_code == 200
    assert httpx.get(locked.url + "/healthz").status_code == 200


def test_the_right_key(locked: Running) -> None:
    assert locked.post(one_message("hi"), headers={"authorization": f"bearer {KEY}"}).status_code == 200


@pytest.mark.parametrize(
    "path",
    [
        "/web/../server.py",
        "/web/%2e%2e/server.py",
        "/web/..%2fserver.py",
        "//etc/passwd",
        "/web//etc/passwd",
        "/%00",
        "/web/.",
        "/web/%5c..%5cserver.py",
    ],
)
def test_path_tricks(server: Running, path: str) -> None:
    answer = server.raw(f"GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n".encode())
    assert answer.split(b" ")[1] in (b"404", b"400")
    assert b"import" not in answer


@pytest.mark.parametrize(
    "data",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
        b"GET\r\n\r\n",
        b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: -1\r\n\r\n",
        b"POST / HTTP/1.1\r\nhost: localhost\r\ncontent-length: 3\r\ntransfer-encoding: chunked\r\nconnection: close\r\n\r\n0\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: localhost\r\nrange: bytes=0-,0-,0-,0-\r\nconnection: close\r\n\r\n",
    ],
)
def test_malformed_http(server: Running, data: bytes) -> None:
    answer = server.raw(data)
    assert b" 500 " not in answer[:20]
    assert server.still_answers()


def test_a_long_name_is_not_echoed(server: Running) -> None:
    """Of a model, of a host, of a path, of a field: no error is longer than it has to be, or has a control character."""
    name = "\x1b[2J" + "x" * 900_000
    answers = [server.post(one_message("hi") | {"model": name}), server.post({"prompt": "a", "model": name}, "/v1/completions")]
    answers += [server.post({name: name, "messages": [{"role": name, "content": "x"}]}), server.post({"messages": name})]
    answers += [server.post(one_message("hi") | {name: 1, "stop": [name]}), server.post(one_message("hi") | {"tools": name})]
    long = "%1b[2J" + "x" * 12_000
    answers += [httpx.get(server.url + path + long) for path in ("/v1/models/", "/web/", "/")]
    answers.append(httpx.get(server.url + "/v1/models", headers={"host": "x" * 12_000}))
    for answer in answers:
        assert 400 <= answer.status_code < 500 and len(answer.content) < 700, answer.text[:200]
        assert "\x1b" not in answer.json()["error"]["message"] and "x" * 100 not in answer.text


def test_readiness_names_nothing_without_the_key(locked: Running, server: Running) -> None:
    for headers in ({}, {"authorization": "Bearer x"}, {"authorization": f"Bearer {KEY}", "host": "evil.example"}):
        assert httpx.get(locked.url + "/readyz", headers=headers).json() == {"status": "ready"}
    assert httpx.get(locked.url + "/readyz", headers={"authorization": f"Bearer {KEY}"}).json() == {"status": "ready", "model": "tiny"}
    assert httpx.get(server.url + "/readyz", headers={"host": "evil.example"}).json() == {"status": "ready"}  # another site's page


def slow(model: LoadedModel) -> LoadedModel:
    """A model that takes its time."""
    step = model.batch.step

    def slowly() -> Any:
        time.sleep(0.02)
        return step()

    model.batch.step = slowly  # type: ignore[method-assign]
    return model


def stream(client: httpx.Client, server: Running) -> httpx.Response:
    """A stream of many tokens, of which nothing has been read yet."""
    return client.send(
        client.build_request("POST", server.url + PATH, json=one_message("x") | {"max_tokens": 400, "stream": True}), stream=True
    )


def test_one_client_cannot_take_everything() -> None:
    with running(slow(loaded_model(slots=2)), Limits(per_client=3)) as server, httpx.Client() as client:
        streams = [stream(client, server) for _ in range(3)]
        assert [one.status_code for one in streams] == [200] * 3
        refused = server.post(one_message("y"))
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "too_many_requests")
        assert refused.headers["retry-after"] == "1"
        streams.pop().close()
        assert server.idle_but(2)
        with httpx.Client(transport=httpx.HTTPTransport(local_address="127.0.0.2"), timeout=60) as other:
            asked = other.send(other.build_request("POST", server.url + PATH, json=one_message("z") | {"stream": True}), stream=True)
            assert asked.status_code == 200
            asked.close()
        for one in streams:
            one.close()
        assert server.idle()
        assert server.post(one_message("y")).status_code == 200


@pytest.mark.parametrize(("proxies", "status"), [((), 429), (("192.0.2.0/24",), 429), (("127.0.0.0/8",), 200)])
def test_invented_forwarded_addresses(proxies: tuple[str, ...], status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The header counts only where it comes from a proxy that was named; loopback is none by itself, nor by uvicorn's own variable."""
    monkeypatch.setenv("FORWARDED_ALLOW_IPS", "*")
    limits = Limits(per_client=2, trusted_proxies=tuple(map(ipaddress.ip_network, proxies)))
    with running(slow(loaded_model(slots=2)), limits) as server, httpx.Client() as client:
        streams = []
        for number in range(3):
            client.headers["x-forwarded-for"] = f"198.51.100.{number}"
            streams.append(stream(client, server))
        assert [one.status_code for one in streams] == [200, 200, status]
        for one in streams:
            one.close()


def test_a_full_queue_is_said() -> None:
    with running(slow(loaded_model(slots=1)), queue=1) as server, httpx.Client() as client:
        first = stream(client, server)
        assert server.idle_but(1)
        second = stream(client, server)
        refused = server.post(one_message("y"))
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "queue_full")
        assert int(refused.headers["retry-after"]) > 0
        first.close()
        second.close()


def test_a_client_that_does_not_read_is_cut_off() -> None:
    """Its answers are more than the connection's buffers hold; the slots are free long before it would have read them."""
    with running(loaded_model(slots=8), Limits(send_seconds=1.0)) as server:
        with socket.socket() as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.connect(("127.0.0.1", server.port))
            body = json.dumps(one_message("x") | {"max_tokens": 480, "n": 8, "stream": True, "logprobs": True, "top_logprobs": 20}).encode()
            head = f"POST {PATH} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
            connection.sendall(head.encode() + body)
            assert server.idle(60)
        assert server.still_answers()
