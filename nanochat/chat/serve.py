"""`serve`: the chat server around the newest model, from its options to its end."""

import asyncio
import ipaddress
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from nanochat import paths
from nanochat.chat.metrics import Meters
from nanochat.chat.middleware import Limits
from nanochat.chat.models import ModelWatcher
from nanochat.chat.scheduler import Scheduler, Served
from nanochat.chat.server import create_app
from nanochat.chat.training import TrainingView
from nanochat.console import log
from nanochat.errors import PreflightError, UsageError
from nanochat.hardware.machine import this_machine
from nanochat.model.scaling import GPTConfig, count_parameters
from nanochat.runs import record as runs
from nanochat.runs.checkpoint import verify

MAX_SLOTS = 64
CACHE_BYTES = 1 << 30  # for the KV cache of all slots, on a CPU
GPU_CACHE_PART = 0.25  # of the GPU's free memory
HEADER_BYTES = 16_384
HEADER_SECONDS = 10.0  # for the whole of a request's headers
KEEP_ALIVE_SECONDS = 15
DRAIN_SECONDS = 25  # that running answers have after SIGTERM
CONNECTIONS = 1_000


@dataclass(frozen=True)
class Options:
    """What `serve` was asked for."""

    host: str = "127.0.0.1"
    port: int = 8000
    run: str | None = None
    api_key_file: Path | None = None
    allowed_hosts: tuple[str, ...] = ()
    insecure_no_key: bool = False
    device: str = "auto"
    slots: int = 0  # 0: as many as the memory planned for the cache holds, up to 64
    queue: int = 64


def serve(options: Options) -> int:
    """Answer until SIGTERM or Ctrl-C. Raises UsageError where anyone on the network could ask without a key."""
    key = _key(options)
    hosts = (*options.allowed_hosts, *os.environ.get("NANOCHAT_ALLOWED_HOSTS", "").replace(",", " ").split())
    if not _loopback(options.host) and not key and not options.insecure_no_key:
        raise UsageError(
            f"--host {options.host} lets other machines ask, and no key is set",
            "set NANOCHAT_API_KEY or --api-key-file; or --insecure-no-key where something else guards the port",
        )
    meters = Meters()
    scheduler = Scheduler(meters, options.queue)
    device = "cuda" if options.device != "cpu" and this_machine(options.device).cuda else "cpu"
    watcher = ModelWatcher(
        scheduler,
        lambda: runs.finished_steps(options.run or runs.newest_run()),
        lambda folder, place: load(folder, place, options.slots),
        paths.runs_dir(),
        device,
    )
    limits = Limits(key, tuple(host.lower() for host in hosts), in_all=options.queue + MAX_SLOTS)
    server = http_server(scheduler, meters, limits, options.host, options.port)
    try:
        watcher.start()
        server.run()
    except SystemExit as ended:  # uvicorn could not bind; it has said why
        raise PreflightError(
            f"cannot listen on {options.host}:{options.port}", "another server may have that port: choose one with --port"
        ) from ended
    finally:
        watcher.stop()
    return 0


def http_server(scheduler: Scheduler, meters: Meters, limits: Limits, host: str, port: int) -> "Server":
    """The application in uvicorn, with bounds on headers, connections and time."""
    config = uvicorn.Config(
        create_app(scheduler, meters, limits, TrainingView(paths.runs_dir())),
        host=host,
        port=port,
        http=PatientProtocol,
        ws="none",
        access_log=False,  # no prompt, no address in a log
        log_level="warning",
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=DRAIN_SECONDS + 5,
        h11_max_incomplete_event_size=HEADER_BYTES,
        limit_concurrency=CONNECTIONS,
        backlog=1024,
    )
    return Server(config, scheduler)


def load(folder: Path, device: str, slots: int = 0) -> Served:
    """The model of a checkpoint's folder, ready to answer. Raises DataError where it is damaged."""
    opened = runs.open_checkpoint(folder.parts[-3], verify(folder), device)
    meta, config = opened.checkpoint.meta, opened.model.config
    return Served(
        name=opened.run,
        stage=meta["stage"],
        step=opened.checkpoint.step,
        model=opened.model,
        tokenizer=opened.tokenizer,
        chats=opened.chats,
        trial=bool(meta.get("trial")),
        parameters=count_parameters(config)["total"],
        slots=slots or _slots(config, device),
    )


def _slots(config: GPTConfig, device: str) -> int:
    """How many answers at once: as the cache's planned memory allows."""
    budget, bytes_each = float(CACHE_BYTES), 4
    if device == "cuda":
        import torch

        budget, bytes_each = GPU_CACHE_PART * torch.cuda.mem_get_info()[0], 2
    one = 2 * config.depth * config.n_kv_head * config.head_dim * (config.max_seq_len + 1) * bytes_each
    return max(1, min(MAX_SLOTS, int(budget // one)))


def _key(options: Options) -> str:
    if options.api_key_file is None:
        return os.environ.get("NANOCHAT_API_KEY", "").strip()
    try:
        key = options.api_key_file.expanduser().read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            f"the key cannot be read from {options.api_key_file}: {error}", "the file holds the key and nothing else"
        ) from error
    if not key:
        raise UsageError(f"{options.api_key_file} is empty", "the file holds the key and nothing else")
    return key


def _loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class Server(uvicorn.Server):
    """uvicorn, with an end to draining that its clients are told of, and exit code 0 after a signal that it obeyed."""

    def __init__(self, config: uvicorn.Config, scheduler: Scheduler):
        super().__init__(config)
        self._scheduler = scheduler

    def handle_exit(self, sig: int, frame: Any) -> None:
        """Stop listening; running answers get their time, the second Ctrl-C ends them."""
        first = not self.should_exit
        super().handle_exit(sig, frame)
        self._captured_signals.clear()
        if first:
            log(f"stopping: running answers have {DRAIN_SECONDS} s (Ctrl-C again ends them)")

    async def startup(self, sockets: Any = None) -> None:
        """Listen, and say where."""
        await super().startup(sockets)
        if self.started:
            host, port = self.servers[0].sockets[0].getsockname()[:2]
            shown = {"0.0.0.0": "localhost", "::": "localhost"}.get(host, f"[{host}]" if ":" in host else host)
            log(f"open http://{shown}:{port}/ in a browser; OpenAI clients: the same with /v1")

    async def shutdown(self, sockets: Any = None) -> None:
        """Drain, then tell whoever is left."""
        timer = asyncio.get_running_loop().call_later(DRAIN_SECONDS, self._scheduler.end)
        await super().shutdown(sockets)
        timer.cancel()


class PatientProtocol(H11Protocol):
    """uvicorn's HTTP/1.1, closing connections whose headers do not arrive in time (slowloris)."""

    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """Start the clock."""
        super().connection_made(transport)
        self._deadline = self.loop.call_later(HEADER_SECONDS, self._too_slow)

    def data_received(self, data: bytes) -> None:
        """Start the clock with the first bytes of a later request, stop it when the headers are whole."""
        waiting = self.cycle is None or self.cycle.response_complete
        if waiting and self._deadline is None:
            self._deadline = self.loop.call_later(HEADER_SECONDS, self._too_slow)
        super().data_received(data)
        if self._deadline and self.cycle is not None and not self.cycle.response_complete:
            self._deadline.cancel()
            self._deadline = None

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the clock."""
        if self._deadline:
            self._deadline.cancel()
            self._deadline = None
        super().connection_lost(exc)

    def _too_slow(self) -> None:
        self._deadline = None
        if (self.cycle is None or self.cycle.response_complete) and not self.transport.is_closing():
            self.transport.close()
