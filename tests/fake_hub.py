"""A hub on this machine, for tests of downloads, of uploads with huggingface_hub, and of whole runs."""

import base64
import hashlib
import http.server
import io
import json
import re
import threading

import pyarrow as pa
import pyarrow.parquet as pq
import yaml


def parquet(label: str, **columns) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.table(columns or {"text": [f"{label} document {i}" for i in range(50)]}), sink)
    return sink.getvalue()


def card_faults(card: str) -> list[str]:
    """What the hub's own check of a model card's metadata complains about, by its documented rules."""
    head = yaml.safe_load(card.removeprefix("---\n").split("\n---\n", 1)[0])
    faults = []
    if not re.fullmatch(r"[a-z0-9][a-z0-9.-]*", head.get("license", "other")) or head.get("license") == "MIT":
        faults.append("license must be one of the hub's identifiers")
    if (head.get("license") == "other") != ("license_name" in head) or not re.fullmatch(
        r"[a-z0-9][a-z0-9._-]*", head.get("license_name", "x")
    ):
        faults.append("license_name must be a lowercase identifier, with license: other")
    lists = ("language", "datasets", "tags")
    faults += [f"{name} must be a list of strings" for name in lists if not all(isinstance(one, str) and one for one in head.get(name, []))]
    if not all(re.fullmatch(r"[a-z]{2,3}", one) for one in head.get("language", [])):
        faults.append("language must be ISO 639 codes")
    for model in head.get("model-index", []):
        for result in model["results"]:
            if not {"type"} <= result["task"].keys() or not {"name", "type"} <= result["dataset"].keys():
                faults.append("a result needs task.type, dataset.name and dataset.type")
            if not all({"type", "value"} <= metric.keys() for metric in result["metrics"]):
                faults.append("a metric needs type and value")
    return faults


class Hub:
    """A small hub: files by repository and path; `faults` are answers to give before the right one, by path."""

    def __init__(self) -> None:
        self.files: dict[str, dict[str, bytes]] = {}
        self.assets: dict[str, bytes] = {}
        self.faults: dict[str, list] = {}
        self.requests: list[str] = []
        self.tokens: list[str | None] = []
        self.hashes = self.listing = True
        self.models: dict[str, dict[str, bytes]] = {}  # repositories of models, by name
        self.private: set[str] = set()
        self.commits: list[str] = []  # summaries
        self.refused = 0  # status with which every upload is refused
        self.stored: dict[str, bytes] = {}  # large files, by SHA-256
        hub_ = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                hub_.answer(self)

            def do_POST(self) -> None:
                hub_.receive(self)

            def do_PUT(self) -> None:
                hub_.receive(self)

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
        elif path.startswith("/api/models/"):
            repo = path.removeprefix("/api/models/").removesuffix("/revision/main")
            body = json.dumps({"id": repo, "sha": "0" * 40, "private": repo in self.private}).encode() if repo in self.models else None
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

    def receive(self, handler) -> None:
        """Uploads as huggingface_hub makes them: the repository, each file's way, large files by Git LFS, and one commit."""
        path = handler.path.partition("?")[0]
        body = handler.rfile.read(int(handler.headers["Content-Length"] or 0))
        self.requests.append(f"{handler.command} {path}")
        self.tokens.append(handler.headers["Authorization"])
        if self.refused:
            self.send(handler, self.refused, b'{"error": "refused"}')
        elif handler.command == "PUT":
            self.stored[hashlib.sha256(body).hexdigest()] = body
            self.send(handler, 200, b"")
        elif path == "/api/validate-yaml":
            errors = [{"message": text} for text in card_faults(json.loads(body)["content"])]
            self.send(handler, 400 if errors else 200, json.dumps({"errors": errors, "warnings": []}).encode())
        elif path == "/api/repos/create" and self.named(body) in self.models:
            self.send(handler, 409, b'{"error": "You already created this model repo"}')
        else:
            self.send(handler, 200, json.dumps(self.received(path, body)).encode())

    def received(self, path: str, body: bytes) -> dict:
        """The answer to one step of an upload."""
        repo = path.removeprefix("/api/models/").rpartition("/")[0].rpartition("/")[0]
        if path.endswith("/commit/main"):
            header, *operations = map(json.loads, body.splitlines())
            self.commits.append(header["value"]["summary"])
            for value in (operation["value"] for operation in operations):
                inline = "content" in value
                self.models[repo][value["path"]] = base64.b64decode(value["content"]) if inline else self.stored[value["oid"]]
            return {"commitUrl": f"{self.url}/{repo}/commit/{'1' * 40}", "commitOid": "1" * 40, "commitMessage": self.commits[-1]}
        asked = json.loads(body)
        if path == "/api/repos/create":
            name = self.named(body)
            self.models.setdefault(name, {})
            if asked.get("private") or asked.get("visibility") == "private":
                self.private.add(name)
            return {"url": f"{self.url}/{name}", "name": name}
        if path.endswith("/preupload/main"):
            large = (".safetensors", ".gguf")
            modes = {file["path"]: "lfs" if file["path"].endswith(large) else "regular" for file in asked["files"]}
            return {"files": [{"path": name, "uploadMode": mode, "shouldIgnore": False} for name, mode in modes.items()]}
        assert path.endswith("/info/lfs/objects/batch"), path
        objects = [one | {"actions": {"upload": {"href": f"{self.url}/lfs/{one['oid']}"}}} for one in asked["objects"]]
        return {"transfer": "basic", "objects": objects}

    @staticmethod
    def named(body: bytes) -> str:
        """The repository that a request to create one names."""
        asked = json.loads(body)
        return "/".join(filter(None, (asked.get("organization"), asked["name"])))

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
