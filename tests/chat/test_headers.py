"""Header parsers: what they accept, and that nothing that a client may send makes them, or the application, fail."""

import asyncio
import ipaddress
import re
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from nanochat.chat.api_errors import MESSAGE_CHARACTERS, STATUSES, ApiError, shown
from nanochat.chat.headers import (
    SINGLE,
    allowed_host,
    bearer_key,
    client_of,
    content_length,
    host_name,
    origin_netloc,
    read_headers,
    trusted_proxy,
)
from nanochat.chat.metrics import ServerMetrics
from nanochat.chat.middleware import Limits
from nanochat.chat.scheduler import Scheduler
from nanochat.chat.server import create_app
from nanochat.errors import UsageError

KEY = "correct horse battery staple"
TEXT = st.text(st.characters(max_codepoint=255), max_size=60)
PIECES = st.lists(
    st.sampled_from([*"[]:/@%#?,;. \\\x00\xad\xb2", "localhost", "http://", "127.0.0.1", "::1", "Bearer", "bytes=0-"]), max_size=8
)
VALUE = TEXT | PIECES.map("".join)
NAMES = (
    *SINGLE,
    "x-forwarded-for",
    "forwarded",
    "accept",
    "accept-encoding",
    "last-event-id",
    "range",
    "if-range",
    "cookie",
    "transfer-encoding",
)


@pytest.mark.parametrize(
    ("host", "name"),
    [
        ("localhost", "localhost"),
        ("LocalHost.:80", "localhost"),
        ("[::1]:8000", "::1"),
        ("chat.team-a.svc.cluster.local.", "chat.team-a.svc.cluster.local"),
        ("localhost:", "localhost"),
        *(
            (bad, "")
            for bad in ("", "[::1", "evil@localhost", "localhost/x", "localhost#e", "localhost?x", "a b", "localhost:x", "lo\xadcal", "::1")
        ),
    ],
)
def test_hosts(host: str, name: str) -> None:
    assert host_name(host) == name


@pytest.mark.parametrize(
    ("origin", "netloc"),
    [
        ("http://localhost:8000", "localhost:8000"),
        ("https://Chat.example.org", "chat.example.org"),
        ("http://[::1]:1", "[::1]:1"),
        *((bad, "") for bad in ("null", "", "http://[", "http://", "localhost", "http://a@localhost", "http://localhost/", "http://a b")),
    ],
)
def test_origins(origin: str, netloc: str) -> None:
    assert origin_netloc(origin) == netloc


@pytest.mark.parametrize(
    ("value", "key"),
    [
        ("Bearer abc", b"abc"),
        ("bearer  abc ", b"abc"),
        ("Bearer", b""),
        ("Basic abc", b""),
        ("Bearer\tabc", b""),
        ("Bearer a\xe9", b"a\xe9"),
    ],
)
def test_keys(value: str, key: bytes) -> None:
    assert bearer_key(value) == key


@pytest.mark.parametrize(
    ("value", "number"), [("0", 0), ("12", 12), ("", None), ("-1", None), ("1.0", None), ("²", None), ("9" * 30, None)]
)
def test_lengths(value: str, number: int | None) -> None:
    assert content_length(value) == number


PROXY = (ipaddress.ip_network("10.0.0.0/8"), ipaddress.ip_network("fd00::/8"))


@pytest.mark.parametrize(
    ("peer", "forwarded", "client"),
    [
        ("127.0.0.1", "1.2.3.4", "127.0.0.1"),  # no proxy
        ("192.0.2.1", "10.0.0.1", "192.0.2.1"),
        ("10.0.0.1", "", "10.0.0.1"),
        ("10.0.0.1", "1.2.3.4", "1.2.3.4"),
        ("10.0.0.1", "8.8.8.8, 1.2.3.4", "1.2.3.4"),  # the first was sent by the client itself
        ("10.0.0.1", "8.8.8.8, 1.2.3.4, 10.0.0.2", "1.2.3.4"),
        ("10.0.0.1", "1.2.3.4, evil", "10.0.0.1"),
        ("10.0.0.1", "1.2.3.4:5678", "1.2.3.4"),
        ("fd00::1", "[2001:db8::1]:99", "2001:db8::1"),
        ("::ffff:10.0.0.1", "::ffff:1.2.3.4", "1.2.3.4"),
        ("10.0.0.1", "10.0.0.2," * 1000, "10.0.0.1"),
        ("", "1.2.3.4", ""),
    ],
)
def test_forwarded_clients(peer: str, forwarded: str, client: str) -> None:
    assert client_of(peer, forwarded, PROXY) == client
    assert client_of(peer, forwarded, ()) == peer


@given(VALUE)
def test_no_value_makes_a_parser_fail(value: str) -> None:
    assert host_name(value) == host_name(value).lower()
    origin_netloc(value), bearer_key(value), content_length(value)
    ipaddress.ip_address(client_of("10.0.0.1", value, PROXY))


@pytest.mark.parametrize("name", SINGLE)
def test_a_second_header_is_refused(name: str) -> None:
    with pytest.raises(ApiError, match="more than one"):
        read_headers([(name.encode(), b"a"), (name.upper().encode(), b"a")])


@pytest.mark.parametrize(
    ("value", "name"),
    [
        ("Chat.Example.org.", "chat.example.org"),
        ("chat.example.org:8443", "chat.example.org"),
        ("*.Example.org", "*.example.org"),
        ("chat.ns.svc", "chat.ns.svc"),
        ("0.0.0.0", "0.0.0.0"),
        ("[::1]", "::1"),
        ("bücher.example", "xn--bcher-kva.example"),
    ],
)
def test_declared_hosts(value: str, name: str) -> None:
    assert allowed_host(value, "--allow-host") == name


@pytest.mark.parametrize("value", ["https://chat.example.org/", "*", "", "a b", "a/b", "a..b", "*.*", "x" * 300])
def test_declared_hosts_that_are_none(value: str) -> None:
    with pytest.raises(UsageError, match="no host name") as raised:
        allowed_host(value, "--allow-host")
    assert "chat.example.org" in raised.value.hint and len(raised.value.message) < 200


def test_proxies() -> None:
    assert str(trusted_proxy("10.1.2.3/8", "--trust-proxy")) == "10.0.0.0/8"
    for value in ("", "proxy.example.org", "10.0.0.0/99"):
        with pytest.raises(UsageError, match="no address"):
            trusted_proxy(value, "--trust-proxy")


def test_errors_are_short_and_one_line() -> None:
    assert shown("a\x1b[2J\u202eb") == r"'a\x1b[2J\u202eb'" and len(shown("x" * 10**6)) < 100
    message = ApiError(400, "a\nb\x1b" + "x" * 10**6).message
    assert message.startswith(r"a\nb\x1bxxx") and len(message) < 2 * MESSAGE_CHARACTERS


def respond(app: Any, path: str, headers: list[tuple[bytes, bytes]], body: bytes = b"") -> int:
    """The status of one request, sent to the application itself."""
    sent: list[dict[str, Any]] = []
    scope = {
        "type": "http",
        "method": "POST" if body else "GET",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
    }
    scope |= {"headers": headers, "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 2), "scheme": "http", "http_version": "1.1"}

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    asyncio.run(app(scope, receive, send))
    return int(sent[0]["status"])


@pytest.mark.long
@settings(deadline=None, max_examples=300)
@given(
    st.sampled_from(("/v1/models", "/v1/chat/completions", "/readyz", "/", "/web/app.js", "/api/training", "/metrics")),
    st.lists(st.tuples(st.sampled_from(NAMES), VALUE), max_size=5),
    st.sampled_from(((), (ipaddress.ip_network("127.0.0.0/8"),))),
)
@example("/v1/models", [("origin", "http://[")], ())
@example("/v1/models", [("origin", "http://localhost"), ("origin", "null")], ())
@example("/", [("range", "bytes=0-,0-,5-1")], ())
@example("/v1/chat/completions", [("content-type", "application/json; charset*=%%")], ())
def test_no_header_makes_the_application_fail(path: str, headers: list[tuple[str, str]], proxies: tuple[Any, ...]) -> None:
    """Every answer is one that is documented, and without the key nothing but probes and the page is answered."""
    app = create_app(Scheduler(ServerMetrics()), ServerMetrics(), Limits(api_key=KEY, trusted_proxies=proxies))
    raw = [(name.encode(), value.encode("latin-1")) for name, value in headers]
    body = b"{}" if path.endswith("completions") else b""
    for base in ([], [(b"host", b"localhost")], [(b"host", b"localhost"), (b"authorization", f"Bearer {KEY}".encode())]):
        named = {name.decode() for name, _ in base}
        status = respond(app, path, [*base, *(pair for pair in raw if pair[0].decode() not in named)], body)
        assert status in {200, *STATUSES}, (status, headers)
        if len(base) < 2 and not re.match("/(readyz|web/.*)?$", path):
            assert status in (400, 401, 403, 413)
