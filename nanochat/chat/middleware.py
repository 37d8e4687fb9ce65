"""The first stop of every request: host and origin, API key, body size and time, concurrent requests. Next: the route in server.py.

Plain ASGI: a body that is too large is refused before it is read, and a stream passes unbuffered. headers.py parses the headers.
"""

import asyncio
import hmac
import ipaddress
import json
from collections import Counter
from collections.abc import Callable, MutableMapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from nanochat.chat.api_errors import ApiError, shown
from nanochat.chat.headers import Network, bearer_key, client_of, content_length, host_name, origin_netloc, read_headers

Message = MutableMapping[str, Any]
PROBES = ("/healthz", "/readyz")  # probes send the pod's address as Host, and no key
MAY_KNOW = "nanochat.may_know"  # in a probe's scope: its host, origin and key would be good for any other path too
PROBES_ONLY = "nanochat.probes_only"  # in the scope of a connection that is beyond the limits
KEYLESS = (*PROBES, "/", "/favicon.ico")  # the page itself holds no secret; what it shows comes with the key
ALWAYS_ALLOWED = ("localhost", "chat")  # chat: compose's name of the service

HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
    "cache-control": "no-store",
}


@dataclass(frozen=True)
class Limits:
    """Access and concurrency limits of requests."""

    api_key: str = ""
    allowed_hosts: tuple[str, ...] = ()  # names besides localhost and addresses; *.example allows every name under it
    body_bytes: int = 1_000_000
    body_seconds: float = 15.0  # for the whole of a request's body
    send_seconds: float = 20.0  # that one piece of a response may wait for a client that does not read
    per_client: int = 32  # concurrent requests of one address
    in_all: int = 128
    connections: int = 1_000
    connections_per_client: int = 128  # a browser has 6, a proxy a few dozen
    trusted_proxies: tuple[Network, ...] = ()  # whose X-Forwarded-For is believed


@dataclass
class SecurityMiddleware:
    """ASGI middleware around `app`. `count` is called with the path and the status of each response."""

    app: Any
    limits: Limits
    count: Callable[[str, int], None] = lambda path, status: None
    _running: Counter[str] = field(default_factory=Counter)  # concurrent requests by the client's address

    async def __call__(self, scope: Message, receive: Any, send: Any) -> None:
        """Pass a request on to the application, or answer it with its error."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        sender = _Sender(send, self.limits.send_seconds)
        try:
            headers = read_headers(scope["headers"])
            self._check_headers(scope, headers)
            peer = scope["client"][0] if scope.get("client") else ""
            client = client_of(peer, headers.get("x-forwarded-for", ""), self.limits.trusted_proxies)
            counted = scope["path"].startswith("/v1/") and scope["method"] == "POST"
            if counted:
                self._check_load(client)
            self._running[client] += counted
            try:
                await self.app(scope, _Receiver(receive, self.limits), sender)
            finally:
                self._running[client] -= counted
                self._running += Counter()  # forget clients that have none
        except ApiError as error:
            if not sender.status:
                with suppress(TimeoutError):
                    await _send_error(error, sender)
        except TimeoutError:  # the client does not read: uvicorn closes the connection of a response that was not finished
            sender.status = sender.status or 408
        self.count(scope["path"], sender.status)

    def _check_headers(self, scope: Message, headers: dict[str, str]) -> None:
        """Raise ApiError unless the headers allow the request: its host, its origin, its key, the length of its body."""
        path = scope["path"]
        if path in PROBES:
            scope[MAY_KNOW] = self._may_know(headers)
        else:
            if scope.get(PROBES_ONLY):
                raise ApiError(503, "too many connections are open", "too_many_connections", retry_after=2)
            self._check_host(headers.get("host", ""), headers.get("origin"))
            if path not in KEYLESS and not path.startswith("/web/"):
                self._check_key(headers.get("authorization", ""))
        length = content_length(headers.get("content-length", "0"))
        if length is None or length > self.limits.body_bytes:
            raise _too_large(self.limits)

    def _may_know(self, headers: dict[str, str]) -> bool:
        """Whether a probe comes from somebody whom every other path would answer too."""
        with suppress(ApiError):
            self._check_host(headers.get("host", ""), headers.get("origin"))
            self._check_key(headers.get("authorization", ""))
            return True
        return False

    def _check_host(self, host: str, origin: str | None) -> None:
        """Raise ApiError for a host name that is not ours (DNS rebinding), and for a page of another site (its Origin)."""
        if not self._known(host):
            name = shown(host_name(host) or host)
            raise ApiError(403, f"the host {name} is not served here: nanochat serve --allow-host NAME allows it", "host_not_allowed")
        if origin is None:
            return
        netloc = origin_netloc(origin)
        if not netloc or (netloc != host.lower() and not self._declared(host_name(netloc))):
            raise ApiError(403, "requests from other sites' pages are not served", "origin_not_allowed")

    def _check_key(self, authorization: str) -> None:
        """Raise ApiError unless there is no key, or the Authorization header has it."""
        if self.limits.api_key and not hmac.compare_digest(bearer_key(authorization), self.limits.api_key.encode()):
            raise ApiError(401, "a key is needed: Authorization: Bearer KEY, the one the server was started with", "invalid_api_key")

    def _check_load(self, client: str) -> None:
        """Raise ApiError if this client, or all clients together, have too many concurrent requests."""
        if self._running[client] >= self.limits.per_client:
            raise ApiError(429, f"{self.limits.per_client} requests of yours are under way", "too_many_requests", retry_after=1)
        if self._running.total() >= self.limits.in_all:
            raise ApiError(429, "too many requests are under way", "too_many_requests", retry_after=2)

    def _known(self, host: str) -> bool:
        """Whether `host` names this server: an address (no name that could be rebound), localhost, or a declared name."""
        name = host_name(host)
        with suppress(ValueError):
            ipaddress.ip_address(name)
            return True
        return name in ALWAYS_ALLOWED or self._declared(name)

    def _declared(self, name: str) -> bool:
        return any(name.endswith(allowed[1:]) if allowed.startswith("*.") else name == allowed for allowed in self.limits.allowed_hosts)


class _Sender:
    """ASGI's `send` with the security headers and a time limit a message; `status` is the response's, 0 before it begins."""

    def __init__(self, send: Any, seconds: float):
        self.status = 0
        self._send, self._seconds = send, seconds

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            names = {name for name, _ in message["headers"]}
            added = [(name.encode(), value.encode()) for name, value in HEADERS.items() if name.encode() not in names]
            message["headers"] = [*message["headers"], *added]
        async with asyncio.timeout(self._seconds):
            await self._send(message)


class _Receiver:
    """ASGI's `receive` with a limit on the size and the time of the body."""

    def __init__(self, receive: Any, limits: Limits):
        self._receive, self._limits = receive, limits
        self._read, self._complete = 0, False
        self._deadline = asyncio.get_running_loop().time() + limits.body_seconds

    async def __call__(self) -> Message:
        if self._complete:  # what comes now is the client's disconnecting
            left: Message = await self._receive()
            return left
        try:
            async with asyncio.timeout_at(self._deadline):
                message: Message = await self._receive()
        except TimeoutError:
            raise ApiError(408, f"the body did not arrive within {self._limits.body_seconds:g} seconds", "request_timeout") from None
        self._read += len(message.get("body", b""))
        self._complete = message["type"] != "http.request" or not message.get("more_body", False)
        if self._read > self._limits.body_bytes:
            raise _too_large(self._limits)
        return message


def _too_large(limits: Limits) -> ApiError:
    return ApiError(413, f"a request has at most {limits.body_bytes:,} bytes", "request_too_large")


async def _send_error(error: ApiError, send: Any) -> None:
    """Send `error` as a whole response."""
    body = json.dumps(error.body()).encode()
    headers = {"content-type": "application/json", "content-length": str(len(body))} | error.headers()
    raw = [(name.encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": error.status, "headers": raw})
    await send({"type": "http.response.body", "body": body})
