"""`serve` in a process of its own, as its user starts it."""

import socket
import threading
import time
from pathlib import Path
from typing import Any

import httpx

from tests.tiny import start, wait_for


class Serve:
    """`serve` in a process of its own."""

    def __init__(self, base: Path, *options: str, program: tuple[str, ...] = ("entrypoint.py",)):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.process = start(base, *program, "serve", f"--port={self.port}", "--device=cpu", *options)
        wait_for(self.process, "open http://")
        self.log: list[str] = []
        threading.Thread(target=lambda: self.log.extend(self.process.stderr or ()), daemon=True).start()
        self.url = f"http://127.0.0.1:{self.port}"

    def ask(self, timeout: float | None = 60, **options: Any) -> httpx.Response:
        body = {"messages": [{"role": "user", "content": "cat"}], "max_tokens": 8, "temperature": 0} | options
        return httpx.post(self.url + "/v1/chat/completions", json=body, timeout=timeout)

    def wait_log(self, text: str, seconds: float = 30) -> str:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if found := next((line for line in self.log if text in line), None):
                return found
            time.sleep(0.05)
        raise AssertionError(f"{text!r} did not come: {self.log}")

    def end(self) -> None:
        self.process.kill()
        self.process.wait(30)
