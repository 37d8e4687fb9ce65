"""`serve`: the chat server around the newest model, from its options to its end.

listener.py listens, server.py answers, models.py chooses the model.
"""

import errno
import ipaddress
import os
import socket
from dataclasses import dataclass
from pathlib import Path

from nanochat import paths
from nanochat.chat.api_key import read_key
from nanochat.chat.connections import raise_file_limit
from nanochat.chat.headers import allowed_host, trusted_proxy
from nanochat.chat.launch import Launcher
from nanochat.chat.library import ModelLibrary
from nanochat.chat.listener import http_server
from nanochat.chat.loading import MAX_SLOTS, load_model
from nanochat.chat.metrics import ServerMetrics
from nanochat.chat.middleware import Limits
from nanochat.chat.models import ModelWatcher
from nanochat.chat.scheduler import Scheduler
from nanochat.errors import PreflightError, UsageError
from nanochat.hardware.machine import this_machine
from nanochat.runs import record as runs


@dataclass(frozen=True)
class ServeOptions:
    """Options of `serve`."""

    host: str = "127.0.0.1"
    port: int = 8000
    run: str | None = None
    api_key_file: Path | None = None
    allowed_hosts: tuple[str, ...] = ()
    trusted_proxies: tuple[str, ...] = ()
    insecure_no_key: bool = False
    device: str = "auto"
    slots: int = 0  # 0: as many as the memory planned for the cache holds, up to 64
    queue: int = 64
    allow_training: bool = False  # the page may start training runs


def serve(options: ServeOptions) -> int:
    """Answer until SIGTERM or Ctrl-C. Raises UsageError where anyone on the network could ask, or start a run, without a key."""
    key = read_key(options.api_key_file)
    hosts = [allowed_host(value, source) for value, source in _given(options.allowed_hosts, "--allow-host", "NANOCHAT_ALLOWED_HOSTS")]
    given = _given(options.trusted_proxies, "--trust-proxy", "NANOCHAT_TRUSTED_PROXIES")
    proxies = [trusted_proxy(value, source) for value, source in given]
    if options.allow_training and not key and (not _loopback(options.host) or hosts or proxies):
        raise UsageError(
            "--allow-training lets other machines start training runs here, and no key is set",
            "set NANOCHAT_API_KEY or --api-key-file, or leave out --allow-training",
        )
    if not _loopback(options.host) and not key and not options.insecure_no_key:
        raise UsageError(
            f"--host {options.host} lets other machines ask, and no key is set",
            "set NANOCHAT_API_KEY or --api-key-file; or --insecure-no-key where something else guards the port",
        )
    raise_file_limit()
    metrics = ServerMetrics()
    scheduler = Scheduler(metrics, options.queue)
    device = "cuda" if options.device != "cpu" and this_machine(options.device).cuda else "cpu"

    def make_space() -> None:
        library.forget()
        watcher.look()

    launcher = Launcher(make_space) if options.allow_training else None
    watcher = ModelWatcher(
        scheduler,
        lambda: runs.finished_steps(options.run or runs.newest_run()),
        lambda folder, place: load_model(folder, place, options.slots),
        paths.runs_dir(),
        device,
        lambda: launcher is not None and launcher.needs_gpu,
    )
    limits = Limits(key, tuple(hosts), in_all=options.queue + MAX_SLOTS, trusted_proxies=tuple(proxies))
    library = ModelLibrary(lambda folder: load_model(folder, watcher.place(), options.slots), paths.runs_dir(), options.run)
    server = http_server(scheduler, metrics, limits, options.host, options.port, library, launcher)
    sockets = bind(options.host, options.port)  # before the model is loaded: a busy port is known at once
    try:
        watcher.start()
        server.run(sockets)
    except (SystemExit, OSError) as error:  # uvicorn could not listen: another process has begun to since
        raise _cannot_listen(options.host, options.port, "the port is in use") from error
    finally:
        watcher.stop()
        if launcher:
            launcher.server_stopped()
        for one in sockets:
            one.close()
    return 0


def bind(host: str, port: int) -> list[socket.socket]:
    """A socket for each address of `host`, bound to `port` and not listening yet. Raises PreflightError where that is not possible."""
    sockets: list[socket.socket] = []
    failure: OSError | None = None
    try:
        addresses = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        raise PreflightError(f"--host {host}: there is no such address", "use 127.0.0.1, 0.0.0.0, or this machine's name") from error
    for family, kind, protocol, _, address in dict.fromkeys(addresses):
        one = socket.socket(family, kind, protocol)
        try:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            one.bind(address)
            sockets.append(one)
        except OSError as error:
            one.close()
            failure = error
            if error.errno != errno.EADDRNOTAVAIL:  # a name may stand for an IPv6 address that this machine does not have
                break
    if failure and (not sockets or failure.errno != errno.EADDRNOTAVAIL):
        for one in sockets:
            one.close()
        raise _cannot_listen(host, port, os.strerror(failure.errno or 0).lower()) from failure
    return sockets


def _cannot_listen(host: str, port: int, why: str) -> PreflightError:
    return PreflightError(f"cannot listen on {host}:{port}: {why}", "choose another port with --port, if another server uses this one")


def _given(options: tuple[str, ...], flag: str, variable: str) -> list[tuple[str, str]]:
    """The values of a flag and of an environment variable, each with the name of the one that gave it."""
    return [(value, flag) for value in options] + [(value, variable) for value in os.environ.get(variable, "").replace(",", " ").split()]


def _loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
