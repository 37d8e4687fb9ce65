"""uvicorn with bounds on headers, connections and time, and a shutdown that lets running answers finish."""

import asyncio
import logging
from functools import partial
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from nanochat import paths
from nanochat.chat.connections import Acceptor, ConnectionTable, Seldom
from nanochat.chat.headers import address_of, within
from nanochat.chat.launch import Launcher
from nanochat.chat.library import ModelLibrary
from nanochat.chat.metrics import ServerMetrics
from nanochat.chat.middleware import PROBES_ONLY, Limits
from nanochat.chat.scheduler import Scheduler
from nanochat.chat.server import create_app
from nanochat.chat.training import TrainingView
from nanochat.console import log

HEADER_BYTES = 16_384
HEADER_SECONDS = 10.0  # for the whole of a request's headers
KEEP_ALIVE_SECONDS = 15
DRAIN_SECONDS = 25  # that running answers have after SIGTERM
PROBE_SECONDS = 2.0  # for the headers on a connection that was accepted for a probe alone


def http_server(
    scheduler: Scheduler,
    metrics: ServerMetrics,
    limits: Limits,
    host: str,
    port: int,
    library: ModelLibrary | None = None,
    launcher: Launcher | None = None,
) -> "Server":
    """The application in uvicorn, with bounds on headers, connections and time."""
    proxies = limits.trusted_proxies
    table = ConnectionTable(limits.connections_per_client, limits.connections, lambda peer: within(address_of(peer), proxies))
    config = uvicorn.Config(
        create_app(scheduler, metrics, limits, TrainingView(paths.runs_dir()), paths.runs_dir(), library, launcher),
        host=host,
        port=port,
        loop="asyncio",  # connections.py accepts in its stead
        http=partial(PatientProtocol, table),  # type: ignore[arg-type]  # a class, made with the table
        ws="none",
        proxy_headers=False,  # middleware.py reads X-Forwarded-For, and only from proxies that were named
        access_log=False,  # no prompt, no address in a log
        log_level="warning",
        log_config=None,
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=DRAIN_SECONDS + 5,
        h11_max_incomplete_event_size=HEADER_BYTES,
        backlog=1024,
    )
    logging.getLogger("uvicorn.error").addFilter(_seldom)
    for name in ("uvicorn", "asyncio"):
        logging.getLogger(name).handlers = [ConsoleHandler()]
    return Server(config, scheduler, table, launcher)


class ConsoleHandler(logging.Handler):
    """Prints what libraries log as this program's own messages: a traceback may hold the words of a client or of a model."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print the record, a line of the console for each of its lines."""
        for line in f"{record.levelname.lower()}: {self.format(record)}".splitlines():
            log(line)


_may_print = Seldom()


def _seldom(record: logging.LogRecord) -> bool:
    """Whether to print uvicorn's message about an invalid request: once a minute, not once per request."""
    return (record.levelno > logging.WARNING and not record.exc_info) or _may_print(f"{record.pathname}:{record.lineno}")


class Server(uvicorn.Server):
    """uvicorn with a time limit for draining, announced to clients, and exit code 0 after a signal."""

    def __init__(self, config: uvicorn.Config, scheduler: Scheduler, table: ConnectionTable, launcher: Launcher | None = None):
        super().__init__(config)
        self._scheduler, self.table, self._launcher = scheduler, table, launcher

    def handle_exit(self, sig: int, frame: Any) -> None:
        """Stop listening; running answers get their time, the second Ctrl-C ends them."""
        first = not self.should_exit
        super().handle_exit(sig, frame)
        self._captured_signals.clear()
        if first:
            log(f"stopping: running answers have {DRAIN_SECONDS} s (Ctrl-C again ends them)")
            if self._launcher:
                self._launcher.server_stops()

    async def startup(self, sockets: Any = None) -> None:
        """Listen, and say where."""
        await super().startup(sockets)
        if self.started:
            made: Any = self.config.http_protocol_class
            protocol = partial(made, self.config, self.server_state, self.lifespan.state)
            self.servers = [Acceptor(server, protocol, self.table) for server in self.servers]  # type: ignore[misc]
            host, port = self.servers[0].sockets[0].getsockname()[:2]
            shown = {"0.0.0.0": "localhost", "::": "localhost"}.get(host, f"[{host}]" if ":" in host else host)
            log(f"open http://{shown}:{port}/ in a browser; OpenAI clients: the same with /v1")

    async def on_tick(self, counter: int) -> bool:
        """Called by uvicorn ten times a second; once a second, close connections that do not end."""
        if counter % 10 == 0:
            self.table.sweep()
        return await super().on_tick(counter)

    async def shutdown(self, sockets: Any = None) -> None:
        """Drain, then tell whoever is left."""
        timer = asyncio.get_running_loop().call_later(DRAIN_SECONDS, self._scheduler.end)
        await super().shutdown(sockets)
        timer.cancel()


class PatientProtocol(H11Protocol):
    """uvicorn's HTTP/1.1, with bounds on connections, and closing those whose headers do not arrive in time (slowloris)."""

    _deadline: asyncio.TimerHandle | None = None

    def __init__(self, table: ConnectionTable, *arguments: Any, **options: Any):
        super().__init__(*arguments, **options)
        self._table = table
        self.address, self.idle_since = "", 0.0

    @property
    def idle(self) -> bool:
        """Whether no request is under way."""
        return self.cycle is None or self.cycle.response_complete

    @property
    def closing(self) -> bool:
        """Whether it is closed, but has bytes left to send."""
        return self.transport.is_closing()

    def abort(self) -> None:
        """Close it at once."""
        self.transport.abort()

    def connection_made(self, transport: Any) -> None:
        """Start the clock."""
        super().connection_made(transport)
        self.address, self.idle_since = self.client[0] if self.client else "", self.loop.time()
        welcome = self._table.add(self)
        if not welcome:
            self.app = partial(_probes_only, self.app)
        self._deadline = self.loop.call_later(HEADER_SECONDS if welcome else PROBE_SECONDS, self._too_slow)

    def data_received(self, data: bytes) -> None:
        """Start the clock with the first bytes of a later request, stop it when the headers are whole."""
        if self.idle and self._deadline is None:
            self._deadline = self.loop.call_later(HEADER_SECONDS, self._too_slow)
        super().data_received(data)
        if self._deadline and not self.idle:
            self._deadline.cancel()
            self._deadline = None

    def on_response_complete(self) -> None:
        """Note when the connection became idle."""
        self.idle_since = self.loop.time()
        super().on_response_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the clock."""
        self._table.remove(self)
        if self._deadline:
            self._deadline.cancel()
            self._deadline = None
        super().connection_lost(exc)

    def _too_slow(self) -> None:
        self._deadline = None
        if self.idle and not self.transport.is_closing():
            self.transport.close()


async def _probes_only(app: Any, scope: Any, receive: Any, send: Any) -> None:
    """ASGI application: `app`, which answers probes alone; then the connection is closed."""

    async def closing(message: Any) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message["headers"], (b"connection", b"close")]
        await send(message)

    await app(scope | {PROBES_ONLY: True}, receive, closing)
