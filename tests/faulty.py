"""A web server on this machine that misbehaves by a seeded schedule: for tests of the downloader, and for its benchmark."""

import email.utils
import hashlib
import http.server
import random
import socket
import struct
import threading
import time
from typing import Any

import numpy as np

MB = 1 << 20
KINDS = (
    *("drop", "reset", "stall", "truncate", "flip", "replace", "redirect", "too many", "unavailable"),
    *("longer", "no range", "other range", "refuse range"),
)


def content(seed: int, size: int) -> bytes:
    """`size` bytes that no compression could shorten."""
    return np.random.default_rng(seed).bytes(size)


class FaultyServer:
    """One file at /file, whole in the end, but each answer may be spoilt in one of `kinds`, as the seed decides.

    drop, reset: the connection ends after a few MB. stall: it goes silent. truncate: the length is too small, longer: too
    large. flip: a bit is wrong. replace: from then on it is another file. redirect: it lies elsewhere. too many, unavailable:
    429 and 503 with the two forms of Retry-After. no range, other range, refuse range: what is answered to a Range.
    """

    def __init__(self, seed: int, kinds: tuple[str, ...], size: int = 64 * MB, rate: float = 0.5, stalls: float = 3.0):
        self.random, self.kinds, self.rate, self.stalls = random.Random(seed), kinds, rate, stalls
        self.bodies = [content(seed, size), content(seed + 1000, size)] if "replace" in kinds else [content(seed, size)]
        self.current = 0
        self.pace = 0.0  # bytes a second of one connection; 0: as fast as it goes
        self.patience: float | None = None  # seconds after which it closes a connection whose client takes nothing
        self.sent = 0  # bytes of bodies
        self.requests: list[dict[str, str]] = []
        self.lock = threading.Lock()
        self.every = max(size // 16, 1), max(size // 6, 2)  # bytes after which a connection drops
        server = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.connection.settimeout(server.patience)
                server.answer(self)

            def do_HEAD(self) -> None:
                server.head(self)

            def log_message(self, *arguments: Any) -> None:
                pass

        class Quiet(http.server.ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *arguments: Any) -> None:  # clients go away
                pass

        self.server = Quiet(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/file"
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def close(self) -> None:
        """Stop serving."""
        self.server.shutdown()
        self.server.server_close()

    @property
    def body(self) -> bytes:
        """The file as it is now."""
        return self.bodies[self.current]

    @property
    def sha256(self) -> str:
        """Its hash."""
        return hashlib.sha256(self.body).hexdigest()

    def headers(self) -> dict[str, str]:
        """What every answer says of the file, in the hub's words too."""
        return {
            "ETag": f'"{self.sha256[:20]}"',
            "X-Linked-Etag": f'"{self.sha256}"',
            "X-Linked-Size": str(len(self.body)),
            "Accept-Ranges": "bytes",
            "X-Repo-Commit": "0" * 40,
        }

    def head(self, handler: Any) -> None:
        """The answer to a HEAD, always a right one."""
        handler.send_response(200)
        for key, value in (self.headers() | {"Content-Length": str(len(self.body))}).items():
            handler.send_header(key, value)
        handler.end_headers()

    def answer(self, handler: Any) -> None:
        """Answer one GET."""
        with self.lock:
            self.requests.append({key.lower(): value for key, value in handler.headers.items()})
            others = [kind for kind in self.kinds if kind != "drop"]
            kind = self.random.choice(others) if others and self.random.random() < self.rate else "plain"
            if kind == "replace":
                self.current = 1
            body, headers = self.body, self.headers()
            limit = self.random.randrange(*self.every) if "drop" in self.kinds or kind in ("reset", "stall", "truncate") else len(body)
            flipped = self.random.random()
        if kind in ("too many", "unavailable", "redirect"):
            return self._short(handler, kind)
        status, start = 200, 0
        asked = handler.headers.get("Range", "").removeprefix("bytes=").partition("-")[0]
        same = handler.headers.get("If-Range") in (None, headers["ETag"])
        if asked.isdigit() and same and kind != "no range":
            status, start = 206, int(asked)
            if kind == "other range":
                start = max(start - 1000, 0)
            if kind == "refuse range" or start >= len(body):
                handler.send_response(416)
                handler.send_header("Content-Range", f"bytes */{len(body)}")
                handler.send_header("Content-Length", "0")
                handler.end_headers()
                return None
            headers["Content-Range"] = f"bytes {start}-{len(body) - 1}/{len(body)}"
        part = memoryview(body)[start:]
        length = len(part) + 1000 * (kind == "longer")
        if kind == "truncate":
            part = part[:limit]
            length = len(part)
        sent, cut = part[:limit], limit < len(part)
        if kind == "flip":
            spoilt = bytearray(sent)
            spoilt[int(flipped * len(spoilt))] ^= 1
            sent = memoryview(spoilt)
        handler.send_response(status)
        for key, value in (headers | {"Content-Length": str(length)}).items():
            handler.send_header(key, value)
        handler.end_headers()
        self._body(handler, sent)
        if kind == "stall" and cut:
            time.sleep(self.stalls)
        if kind == "reset":
            handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        if cut or kind in ("longer", "reset"):
            handler.close_connection = True
            handler.connection.close() if kind == "reset" else handler.connection.shutdown(socket.SHUT_RDWR)
        return None

    def _short(self, handler: Any, kind: str) -> None:
        status = {"too many": 429, "unavailable": 503, "redirect": 302}[kind]
        after = {"too many": "1", "unavailable": email.utils.formatdate(time.time() + 1, usegmt=True), "redirect": ""}[kind]
        handler.send_response(status)
        if after:
            handler.send_header("Retry-After", after)
        if kind == "redirect":
            handler.send_header("Location", f"{self.url}?elsewhere={self.random.random()}")
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    def _body(self, handler: Any, part: memoryview) -> None:
        size = MB if not self.pace else 1 << 16
        for begin in range(0, len(part), size):
            block = part[begin : begin + size]
            handler.wfile.write(block)
            time.sleep(len(block) / self.pace if self.pace else 0)
            with self.lock:
                self.sent += len(block)


def schedule(seed: int) -> tuple[str, ...]:
    """The kinds of faults that schedule `seed` mixes: the first ones have one kind each, the others two to five."""
    if seed < len(KINDS):
        return (KINDS[seed],)
    rng = random.Random(seed)
    return tuple(rng.sample(KINDS, rng.randint(2, 5)))
