"""uvicorn with bounds on headers, connections and time, and a shutdown that lets running answers finish."""

import asyncio
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from nanochat import paths
from nanochat.chat.metrics import ServerMetrics
from nanochat.chat.middleware import Limits
from nanochat.chat.scheduler import Scheduler
from nanochat.chat.server import create_app
from nanochat.chat.training import TrainingView
from nanochat.console import log

HEADER_BYTES = 16_384
HEADER_SECONDS = 10.0  # for the whole of a request's headers
KEEP_ALIVE_SECONDS = 15
DRAIN_SECONDS = 25  # that running answers have after SIGTERM
CONNECTIONS = 1_000


def http_server(scheduler: Scheduler, metrics: ServerMetrics, limits: Limits, host: str, port: int) -> "Server":
    """The application in uvicorn, with bounds on headers, connections and time."""
    config = uvicorn.Config(
        create_app(scheduler, metrics, limits, TrainingView(paths.runs_dir())),
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
