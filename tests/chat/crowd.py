"""Clients of a server, as a program that runs in a network namespace or on an address of loopback. Standard library only.

crowd.py hold HOST PORT SOURCE COUNT SECONDS    sockets: a third idle, a third send a byte now and then, a third leave and return
crowd.py ask  HOST PORT SOURCE COUNT SECONDS    clients of /healthz on new connections; prints their statuses and seconds as JSON
"""

import http.client
import json
import resource
import socket
import struct
import sys
import threading
import time
from collections import Counter

RESET = struct.pack("ii", 1, 0)


def connect(host: str, port: int, source: str) -> socket.socket | None:
    """A connection from `source`, None where it is refused."""
    one = socket.socket()
    one.settimeout(5)
    try:
        one.bind((source, 0))
        one.connect((host, port))
    except OSError:
        one.close()
        return None
    one.setblocking(False)
    return one


def hold(host: str, port: int, source: str, count: int, seconds: float) -> None:
    """Keep `count` sockets; those that the server closes are opened again by the third that leaves and returns."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(count + 100, resource.getrlimit(resource.RLIMIT_NOFILE)[1]),) * 2)
    end = time.monotonic() + seconds
    held = [connect(host, port, source) for _ in range(count)]
    print(f"holding {sum(one is not None for one in held)}", flush=True)
    while time.monotonic() < end:
        for number, one in enumerate(held):
            try:
                if one is None:
                    held[number] = connect(host, port, source) if number % 3 == 2 else None
                elif number % 3 == 1:
                    one.send(b"G")
                elif number % 3 == 2:
                    one.send(b"GET /v1/models HTTP/1.1\r\nhost: localhost\r\n\r\n")
                    one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
                    one.close()
                    held[number] = None
            except OSError:
                if one is not None:
                    one.close()
                held[number] = None
            if time.monotonic() > end:
                break
        time.sleep(0.2)


def ask(host: str, port: int, source: str, count: int, seconds: float) -> None:
    """Ask until the time is over."""
    statuses: Counter[str] = Counter()
    took: list[float] = []

    def client() -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            began = time.monotonic()
            connection = http.client.HTTPConnection(host, port, timeout=30, source_address=(source, 0))
            try:
                connection.request("GET", "/healthz")
                statuses[str(connection.getresponse().status)] += 1
            except OSError as error:
                statuses[type(error).__name__] += 1
            connection.close()
            took.append(time.monotonic() - began)
            time.sleep(0.05)

    threads = [threading.Thread(target=client) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print(json.dumps({"statuses": statuses, "seconds": sorted(took)}))


if __name__ == "__main__":
    mode, host, port, source, count, seconds = sys.argv[1:]
    {"hold": hold, "ask": ask}[mode](host, int(port), source, int(count), float(seconds))
