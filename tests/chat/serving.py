"""A real server on loopback, around a small model with random weights, for the tests of the chat."""

import contextlib
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import torch

from nanochat.chat.metrics import Meters
from nanochat.chat.middleware import Limits
from nanochat.chat.scheduler import Scheduler, Served
from nanochat.chat.serve import http_server
from nanochat.model.build import build_model
from nanochat.model.scaling import GPTConfig
from nanochat.model.transformer import Transformer
from nanochat.tokenizer.tokenizer import Tokenizer

TOKENIZER = Tokenizer([bytes([b]) for b in range(256)])
CONTEXT = 512
KEY = "correct horse battery staple"


def random_model(seed: int = 0, context: int = CONTEXT) -> Transformer:
    """Every weight random, so that answers depend on all of the prompt; the head small, so that they do not end too soon."""
    shape: dict[str, Any] = {"depth": 2, "dim": 64, "n_head": 2, "n_kv_head": 1, "head_dim": 32}
    model = build_model(GPTConfig(vocab_size=TOKENIZER.vocab_size, max_seq_len=context, **shape), seed=seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * (0.2 if parameter.dim() > 1 else 0.5))
        model.head.weight[256:] = 0  # specials are never the likeliest
    return model


def served(seed: int = 0, slots: int = 4, chats: bool = True, name: str = "tiny", **more: Any) -> Served:
    """`random_model`, as the scheduler takes it."""
    model = random_model(seed, more.pop("context", CONTEXT))
    return Served(name, "sft", 7, model, more.pop("tokenizer", TOKENIZER), chats, more.pop("trial", False), 1000, slots)


@dataclass
class Running:
    """A server under test."""

    url: str
    port: int
    scheduler: Scheduler
    meters: Meters

    def post(self, body: Any, path: str = "/v1/chat/completions", **options: Any) -> httpx.Response:
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
            if len(self.scheduler._running) == running and not self.scheduler._waiting:
                return True
            time.sleep(0.01)
        return False


@contextlib.contextmanager
def running(model: Served | None, limits: Limits | None = None, queue: int = 64) -> Iterator[Running]:
    """A server with `model` on a free port of loopback, ended with the block."""
    torch.set_num_threads(1)
    meters = Meters()
    scheduler = Scheduler(meters, queue)
    if model:
        scheduler.serve(model)
    server = http_server(scheduler, meters, limits or Limits(), "127.0.0.1", 0)
    thread = threading.Thread(target=server.run)
    thread.start()
    end = time.monotonic() + 60
    while not server.started:
        assert thread.is_alive() and time.monotonic() < end
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield Running(f"http://127.0.0.1:{port}", port, scheduler, meters)
    finally:
        server.should_exit = True
        thread.join(60)
        assert not thread.is_alive()
