"""A real server on loopback, around a small model with random weights, for the tests of the chat."""

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import torch

from nanochat.chat.launch import Launcher
from nanochat.chat.listener import http_server
from nanochat.chat.loading import LoadedModel
from nanochat.chat.metrics import ServerMetrics
from nanochat.chat.middleware import Limits
from nanochat.chat.scheduler import Scheduler
from nanochat.model.transformer import Transformer
from tests.generate import models
from tests.generate.models import TOKENIZER

CONTEXT = 512
KEY = "correct horse battery staple"
PATH = "/v1/chat/completions"


def random_model(seed: int = 0, context: int = CONTEXT) -> Transformer:
    """Every weight random, so that answers depend on all of the prompt; the head small, so that they do not end too soon."""
    model = models.random_model(seed, depth=2, max_seq_len=context)
    with torch.no_grad():
        model.head.weight[256:] = 0  # specials are never the likeliest
    return model


def loaded_model(
    seed: int = 0, slots: int = 4, chats: bool = True, name: str = "tiny", trial: bool = False, context: int = CONTEXT
) -> LoadedModel:
    """`random_model`, as the scheduler takes it."""
    return LoadedModel(name, "sft", 7, random_model(seed, context), TOKENIZER, chats, trial, 1000, slots)


def one_message(text: str, **more: Any) -> dict[str, Any]:
    """A request for two tokens after one message."""
    return {"messages": [{"role": "user", "content": text}], "max_tokens": 2} | more


@dataclass
class Running:
    """A server under test."""

    url: str
    port: int
    scheduler: Scheduler
    metrics: ServerMetrics

    def post(self, body: Any, path: str = PATH, **options: Any) -> httpx.Response:
        """POST JSON."""
        return httpx.post(self.url + path, json=body, timeout=60, **options)

    def ask(self, text: str, **options: Any) -> dict[str, Any]:
        """The whole answer to one message."""
        answer = self.post({"messages": [{"role": "user", "content": text}], "temperature": 0, "max_tokens": 8} | options)
        assert answer.status_code == 200, answer.text
        return answer.json()  # type: ignore[no-any-return]

    def idle(self, seconds: float = 20) -> bool:
        """Whether every slot is free and nothing waits, within `seconds`."""
        return self.idle_but(0, seconds)

    def idle_but(self, running: int, seconds: float = 20) -> bool:
        """Whether so many answers run and none waits, within `seconds`."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if self.scheduler.running == running and not self.scheduler.waiting:
                return True
            time.sleep(0.01)
        return False

    def still_answers(self) -> bool:
        """Whether nothing runs any more, and a message is answered."""
        return self.idle() and self.post(one_message("hi")).status_code == 200

    def raw(self, data: bytes, seconds: float = 10) -> bytes:
        """Send bytes, and read to the end of the connection."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=seconds) as connection:
            connection.sendall(data)
            received = b""
            with contextlib.suppress(ConnectionResetError):  # it was closed on bytes that nobody wanted to read
                while part := connection.recv(65536):
                    received += part
            return received


@contextlib.contextmanager
def running(
    model: LoadedModel | None, limits: Limits | None = None, queue: int = 64, launcher: Launcher | None = None
) -> Iterator[Running]:
    """A server with `model` on a free port of loopback, ended with the block."""
    torch.set_num_threads(1)
    metrics = ServerMetrics()
    scheduler = Scheduler(metrics, queue)
    if model:
        scheduler.serve(model)
    server = http_server(scheduler, metrics, limits or Limits(), "127.0.0.1", 0, launcher=launcher)
    thread = threading.Thread(target=server.run)
    thread.start()
    end = time.monotonic() + 60
    while not (server.started and server.servers[0].sockets):  # an Acceptor takes the place of asyncio's own server at once
        assert thread.is_alive() and time.monotonic() < end
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield Running(f"http://127.0.0.1:{port}", port, scheduler, metrics)
    finally:
        server.should_exit = True
        thread.join(60)
        assert not thread.is_alive()
