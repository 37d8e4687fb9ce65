"""RunPod's API on loopback, for tests: checks what it is sent, plays faults, and counts what would cost money."""

import contextlib
import json
import os
import re
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

KEY = "rpa_SECRET0123456789"
CARD = "NVIDIA GeForce RTX 4090"
SECOND = "NVIDIA GeForce RTX 5090"
ROUTES = (("POST", "/v2/pods"), ("GET", "/v2/pods"), ("GET", "/v2/catalog/gpus"), ("GET", r"/v2/pods/[^/]+"), ("PATCH", r"/v2/pods/[^/]+"))
ROUTES += (("POST", r"/v2/pods/[^/]+/action"), ("GET", r"/v2/pods/[^/]+/logs"))


def description() -> dict[str, Any] | None:
    """The published description, where NANOCHAT_SCHEMAS names its folder."""
    folder = os.environ.get("NANOCHAT_SCHEMAS")
    return json.loads(Path(folder, "runpod-v2-openapi.json").read_text(encoding="utf-8")) if folder else None


def gpu(identifier: str, price: float = 0.5, free: str = "HIGH", most: int = 8) -> dict[str, Any]:
    return {
        "id": identifier,
        "name": identifier,
        "pool": None,
        "manufacturer": "NVIDIA",
        "memory": 24,
        "secure": True,
        "community": True,
        "price": {"secure": price, "community": price / 2},
        "maxCount": {"secure": most, "community": most},
        "availability": free,
    }


class FakeRunPod:
    """`faults` maps "METHOD path-regex" to answers that come first: (status, headers, detail), or "cut", or "made-then-cut"."""

    def __init__(self) -> None:
        self.pods: dict[str, dict[str, Any]] = {}
        self.catalog = [gpu(CARD), gpu(SECOND, 0.9)]
        self.requests: list[tuple[str, str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.invalid: list[str] = []
        self.faults: dict[str, list[Any]] = {}
        self.after_create = "RUNNING"  # the state that a new pod takes
        self.cost = 0.5
        self.lines = [f"step {i}" for i in range(6)]
        self.cut_after = 0  # lines of one connection; 0: all
        self.when_logged = "EXITED"  # the state of the pod once its whole log was read; "" leaves it
        self.schema = description()

    @property
    def running(self) -> list[str]:
        return [pod["id"] for pod in self.pods.values() if pod["status"] in ("PROVISIONING", "STARTING", "RUNNING")]

    def fault(self, what: str, *answers: Any) -> None:
        self.faults.setdefault(what, []).extend(answers)

    def calls(self, method: str, path: str) -> list[Any]:
        return [body for m, p, body in self.requests if m == method and re.fullmatch(path, p)]

    def check(self, schema: str, body: Any) -> list[str]:
        """What the published description has against a body."""
        if self.schema is None:
            return []
        import jsonschema_rs

        found = jsonschema_rs.Draft202012Validator({"$ref": f"#/components/schemas/{schema}", "components": self.schema["components"]})
        return [error.message for error in found.iter_errors(body)]

    def create(self, body: dict[str, Any]) -> dict[str, Any]:
        identifier = f"pod{len(self.pods)}"
        ssh: dict[str, Any] = {"proxy": None, "direct": None}
        pod = {"args": "", "disk": 1, "mounts": {}, "ports": [], "env": {}, "registry": None, "cloud": "SECURE"} | body
        pod |= {"id": identifier, "status": self.after_create, "actions": [], "dataCenterId": None, "cudaVersion": None, "ssh": ssh}
        pod |= {"template": None, "cost": self.cost, "locked": False, "runtime": None, "createdAt": "2026-11-24T00:00:00Z"}
        pod |= {"startedAt": None, "globalNetworking": {"enabled": False}}
        pod.pop("dataCenterIds", None)
        pod["gpu"] = {key: pod["gpu"][key] for key in ("id", "count")}
        self.invalid += [f"our own pod: {message}" for message in self.check("Pod", pod)]
        self.pods[identifier] = pod
        return pod


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    fake: FakeRunPod

    def log_message(self, *_: Any) -> None:
        pass

    def answer(self, status: int, value: Any = None, headers: dict[str, str] | None = None) -> None:
        data = b"" if value is None else json.dumps(value).encode()
        self.send_response(status)
        for key, text in {"Content-Type": "application/json", "Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(key, text)
        self.end_headers()
        self.wfile.write(data)

    def problem(self, status: int, detail: str, headers: dict[str, str] | None = None) -> None:
        self.answer(status, {"title": "Problem", "status": status, "detail": detail}, headers)

    def cut(self) -> None:
        self.close_connection = True
        self.connection.close()

    def handle_one_request(self) -> None:
        with contextlib.suppress(ConnectionError, ValueError, OSError):
            super().handle_one_request()

    def serve(self) -> None:
        fake, url = self.fake, urlsplit(self.path)
        body = json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)) or "null")
        fake.requests.append((self.command, url.path, body))
        fake.headers.append(dict(self.headers))
        if self.headers.get("Authorization") != f"Bearer {KEY}":
            return self.problem(401, f"wrong key {self.headers.get('Authorization')}")
        if not any(method == self.command and re.fullmatch(path, url.path) for method, path in ROUTES):
            fake.invalid.append(f"no route {self.command} {url.path}")
            return self.problem(404, "no such route")
        for what, answers in fake.faults.items():
            method, _, path = what.partition(" ")
            if method == self.command and re.fullmatch(path, url.path) and answers:
                fault = answers.pop(0)
                if fault == "made-then-cut":
                    fake.create(body)
                if isinstance(fault, str):
                    return self.cut()
                return self.problem(fault[0], fault[2] if len(fault) > 2 else "as asked", fault[1] if len(fault) > 1 else None)
        getattr(self, f"_{self.command.lower()}")(url.path, parse_qs(url.query), body)
        return None

    do_GET = do_POST = do_PATCH = do_DELETE = serve

    def _post(self, path: str, _query: Any, body: Any) -> None:
        fake = self.fake
        if errors := fake.check("CreatePodRequest" if path == "/v2/pods" else "PodActionRequest", body):
            fake.invalid += errors
            return self.problem(422, errors[0])
        if path == "/v2/pods":
            return self.answer(201, fake.create(body))
        pod = fake.pods.get(path.split("/")[3])
        if pod is None or pod["status"] == "TERMINATED":
            return self.problem(404, "pod not found")
        allowed = {"RUNNING": ("stop", "restart", "terminate"), "EXITED": ("start", "terminate"), "ERROR": ("start", "terminate")}
        if body["action"] not in allowed.get(pod["status"], ("stop", "terminate")):
            return self.problem(409, f"{body['action']} is not valid in {pod['status']}")
        pod["status"] = {"start": "RUNNING", "stop": "EXITED", "restart": "RUNNING", "terminate": "TERMINATED"}[body["action"]]
        return self.answer(204) if body["action"] == "terminate" else self.answer(200, pod)

    def _patch(self, path: str, _query: Any, body: Any) -> None:
        if errors := self.fake.check("UpdatePodRequest", body):
            self.fake.invalid += errors
            return self.problem(422, errors[0])
        pod = self.fake.pods[path.split("/")[3]]
        pod |= body
        return self.answer(200, pod)

    def _get(self, path: str, query: dict[str, list[str]], _body: Any) -> None:
        fake = self.fake
        if path == "/v2/catalog/gpus":
            known = {"include", "product", "count", "cloud", "minCudaVersion"}
            fake.invalid += [f"query {key}" for key in query if key not in known]
            return self.answer(200, {"gpus": fake.catalog})
        if path == "/v2/pods":
            return self.answer(200, {"pods": [pod for pod in fake.pods.values() if pod["status"] != "TERMINATED"]})
        pod = fake.pods.get(path.split("/")[3])
        if pod is None or pod["status"] == "TERMINATED":
            return self.problem(404, "pod not found")
        return self._logs(pod) if path.endswith("/logs") else self.answer(200, pod)

    def _logs(self, pod: dict[str, Any]) -> None:
        fake = self.fake
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        self.close_connection = True
        after = self.headers.get("Last-Event-ID")
        first = int(after.rpartition("/")[2]) + 1 if after else 0
        for i, line in list(enumerate(fake.lines))[first:]:
            if fake.cut_after and i >= first + fake.cut_after:
                self.wfile.write(b'id: 2026-06-01T12:02:03Z/99\ndata: {"li')  # torn in the middle of an event
                return
            event = {"ts": "2026-06-01T12:02:03Z", "source": "container", "line": line}
            self.wfile.write(f": beat\n\nid: 2026-06-01T12:02:03Z/{i}\ndata: {json.dumps(event)}\n\n".encode())
            self.wfile.flush()
        if fake.when_logged:
            pod["status"] = fake.when_logged


@contextlib.contextmanager
def serving() -> Iterator[tuple[FakeRunPod, str]]:
    """The server and its address."""
    fake = FakeRunPod()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"fake": fake}))
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield fake, f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5)
        time.sleep(0)
