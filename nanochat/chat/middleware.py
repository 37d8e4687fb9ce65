"""What every request passes before the application sees it: host and origin, key, sizes, time, how many at once.

Plain ASGI, so that a body that is too large is refused before it is read, and a stream passes untouched.
"""

import asyncio
import hmac
import ipaddress
import json
from collections import Counter
from collections.abc import Callable, Iterable, MutableMapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from nanochat.chat.api import ApiError

Message = MutableMapping[str, Any]
PROBES = ("/healthz", "/readyz")  # probes send the pod's address as Host, and no key
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
    """Who may ask, and how much at once."""

    api_key: str = ""
    allowed_hosts: tuple[str, ...] = ()  # names besides localhost and addresses; *.example allows every name under it
    body_bytes: int = 1_000_000
    body_seconds: float = 15.0  # for the whole of a request's body
    send_seconds: float = 20.0  # that one piece of a response may wait for a client that does not read
    per_client: int = 32  # requests of one address under way
    in_all: int = 128


@dataclass
class Gate:
    """ASGI middleware. `count` is told the path and the status of each response."""

    app: Any
    limits: Limits
    count: Callable[[str, int], None] = lambda path, status: None
    _running: Counter[str] = field(default_factory=Counter)

    async def __call__(self, scope: Message, receive: Any, send: Any) -> None:
        """Let a request through, or answer it with the error it deserves."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        status = 0

        async def guarded_send(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                names = {name for name, _ in message["headers"]}
                message["headers"] = [
                    *message["headers"],
                    *((name.encode(), value.encode()) for name, value in HEADERS.items() if name.encode() not in names),
                ]
            async with asyncio.timeout(self.limits.send_seconds):
                await send(message)

        client = scope["client"][0] if scope.get("client") else ""
        counted = scope["path"].startswith("/v1/") and scope["method"] == "POST"
        try:
            self._check(scope, client if counted else None)
            self._running[client] += counted
            try:
                await self.app(scope, self._bounded(receive), guarded_send)
            finally:
                self._running[client] -= counted
                self._running += Counter()  # forget clients that have none
        except ApiError as error:
            if not status:
                with suppress(TimeoutError):
                    await answer(error, guarded_send)
        except TimeoutError:  # it does not read: uvicorn closes the connection of a response that was not finished
            status = status or 408
        self.count(scope["path"], status)

    def _check(self, scope: Message, client: str | None) -> None:
        """Raise ApiError unless the headers entitle the request to be heard."""
        headers: dict[str, str] = {}
        for name, value in scope["headers"]:
            if name == b"host" and "host" in headers:
                raise ApiError(400, "more than one Host header")
            headers[name.decode("latin-1")] = value.decode("latin-1")
        path = scope["path"]
        host = headers.get("host", "")
        if path not in PROBES:
            if not self._known(host):
                raise ApiError(
                    403, f"the host {_name(host)[:80]!r} is not served here: serve --allow-host NAME allows it", "host_not_allowed"
                )
            origin = headers.get("origin")
            if (
                origin is not None
                and urlsplit(origin).netloc.lower() != host.lower()
                and not self._declared(_name(urlsplit(origin).netloc))
            ):
                raise ApiError(403, "requests from other sites' pages are not served", "origin_not_allowed")
        if self.limits.api_key and path not in KEYLESS and not path.startswith("/web/"):
            kind, _, key = headers.get("authorization", "").partition(" ")
            if kind.lower() != "bearer" or not hmac.compare_digest(key.strip().encode("latin-1"), self.limits.api_key.encode()):
                raise ApiError(401, "a key is needed: Authorization: Bearer KEY, the one the server was started with", "invalid_api_key")
        length = headers.get("content-length", "0")
        if not length.isascii() or not length.isdigit() or int(length[:20]) > self.limits.body_bytes:
            raise self._too_large()
        if client is not None:
            if self._running[client] >= self.limits.per_client:
                raise ApiError(429, f"{self.limits.per_client} requests of yours are under way", "too_many_requests", retry_after=1)
            if self._running.total() >= self.limits.in_all:
                raise ApiError(429, "too many requests are under way", "too_many_requests", retry_after=2)

    def _known(self, host: str) -> bool:
        """Whether `host` names this server: an address (no name that could be rebound), localhost, or a declared name."""
        name = _name(host)
        with suppress(ValueError):
            ipaddress.ip_address(name)
            return True
        return name in ALWAYS_ALLOWED or self._declared(name)

    def _declared(self, name: str) -> bool:
        return any(name.endswith(allowed[1:]) if allowed.startswith("*.") else name == allowed for allowed in self.limits.allowed_hosts)

    def _bounded(self, receive: Any) -> Any:
        """`receive`, with an end to the size and the time of the body."""
        read, whole = 0, False
        deadline = asyncio.get_running_loop().time() + self.limits.body_seconds

        async def bounded() -> Message:
            nonlocal read, whole
            if whole:  # what comes now is the client's leaving
                left: Message = await receive()
                return left
            try:
                async with asyncio.timeout_at(deadline):
                    message: Message = await receive()
            except TimeoutError:
                raise ApiError(408, f"the body did not arrive within {self.limits.body_seconds:g} seconds", "request_timeout") from None
            read += len(message.get("body", b""))
            whole = message["type"] != "http.request" or not message.get("more_body", False)
            if read > self.limits.body_bytes:
                raise self._too_large()
            return message

        return bounded

    def _too_large(self) -> ApiError:
        return ApiError(413, f"a request has at most {self.limits.body_bytes:,} bytes", "request_too_large")


def _name(host: str) -> str:
    """The name or address in a Host header, without its port."""
    with suppress(ValueError):
        return (urlsplit(f"//{host}").hostname or "").rstrip(".")
    return ""


def headers_of(error: ApiError) -> Iterable[tuple[str, str]]:
    """The headers that go with an error."""
    if error.retry_after is not None:
        yield "retry-after", str(error.retry_after)
    if error.status == 401:
        yield "www-authenticate", "Bearer"
    if error.status in (408, 413):  # the rest of the body will not be read
        yield "connection", "close"


async def answer(error: ApiError, send: Any) -> None:
    """Send `error` as a whole response."""
    body = json.dumps(error.body()).encode()
    headers = [("content-type", "application/json"), ("content-length", str(len(body))), *headers_of(error)]
    await send(
        {"type": "http.response.start", "status": error.status, "headers": [(name.encode(), value.encode()) for name, value in headers]}
    )
    await send({"type": "http.response.body", "body": body})
