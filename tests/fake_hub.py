"""A hub on this machine, for tests of downloads and of whole runs."""

import hashlib
import http.server
import io
import json
import threading

import pyarrow as pa
import pyarrow.parquet as pq


def parquet(label: str, **columns) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.table(columns or {"text": [f"{label} document {i}" for i in range(50)]}), sink)
    return sink.getvalue()


class Hub:
    """A small hub: files by repository and path; `faults` are answers to give before the right one, by path."""

    def __init__(self) -> None:
        self.files: dict[str, dict[str, bytes]] = {}
        self.assets: dict[str, bytes] = {}
        self.faults: dict[str, list] = {}
        self.requests: list[str] = []
        self.tokens: list[str | None] = []
        self.hashes = self.listing = True
        hub_ = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                hub_.answer(self)

            def log_message(self, *arguments) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def fetched(self) -> list[str]:
        return [path.rpartition("/")[2] for path in self.requests if "/resolve/" in path]

    def answer(self, handler) -> None:
        path, _, query = handler.path.partition("?")
        self.requests.append(path)
        self.tokens.append(handler.headers["Authorization"])
        name = path.rpartition("/")[2]
        if path.startswith("/api/datasets/") and path.endswith("/tree/main"):
            repo, name = path.removeprefix("/api/datasets/").removesuffix("/tree/main"), "tree"
            body = self.tree(repo, query) if self.listing and repo in self.files else None
        elif path.startswith("/datasets/"):
            repo, _, file = path.removeprefix("/datasets/").partition("/resolve/main/")
            body = self.files.get(repo, {}).get(file)
        else:
            body = self.assets.get(path)
        fault = self.faults[name].pop(0) if self.faults.get(name) else None
        if fault is None:
            self.send(handler, 404 if body is None else 200, body or b"", self.link(path, query))
        elif isinstance(fault, tuple):
            self.send(handler, fault[0], b"", fault[1])
        elif fault == "cut":  # says how much, sends half
            handler.send_response(200)
            handler.send_header("Content-Length", str(len(body)))
            handler.end_headers()
            handler.wfile.write(body[: len(body) // 2])
        elif fault == "short":  # half a file that claims to be whole
            self.send(handler, 200, body[: len(body) // 2])
        elif fault == "flip":
            self.send(handler, 200, bytes([*body[:100], body[100] ^ 1, *body[101:]]))

    @staticmethod
    def send(handler, status: int, body: bytes, headers=()) -> None:
        handler.send_response(status)
        for key, value in dict(headers).items():
            handler.send_header(key, value)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)

    def tree(self, repo: str, query: str) -> bytes:
        """Two files a page, with a folder among them."""
        start = int(query.partition("cursor=")[2] or 0)
        entries = [{"type": "directory", "path": "data", "size": 0}]
        for path, body in list(self.files[repo].items())[start : start + 2]:
            entry = {"type": "file", "path": path, "size": len(body), "oid": "0" * 40}
            if self.hashes:
                entry |= {"lfs": {"oid": hashlib.sha256(body).hexdigest(), "size": len(body)}}
            entries.append(entry)
        return json.dumps(entries).encode()

    def link(self, path: str, query: str) -> dict[str, str]:
        repo = path.removeprefix("/api/datasets/").removesuffix("/tree/main")
        start = int(query.partition("cursor=")[2] or 0) + 2
        return {"Link": f'<{self.url}{path}?cursor={start}>; rel="next"'} if start < len(self.files.get(repo, {})) else {}
