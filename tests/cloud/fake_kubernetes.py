"""A Kubernetes API server on loopback, large enough for a real kubectl: discovery, POST, GET, PATCH, DELETE, watch, logs, and faults."""

import contextlib
import datetime
import json
import re
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

GROUPS: dict[str, list[tuple[str, str]]] = {
    "v1": [("persistentvolumeclaims", "PersistentVolumeClaim"), ("pods", "Pod"), ("services", "Service"), ("events", "Event")],
    "batch/v1": [("jobs", "Job")],
    "apps/v1": [("deployments", "Deployment"), ("replicasets", "ReplicaSet")],
    "networking.k8s.io/v1": [("networkpolicies", "NetworkPolicy")],
    "jobset.x-k8s.io/v1alpha2": [("jobsets", "JobSet")],
    "storage.k8s.io/v1": [("storageclasses", "StorageClass")],
}
SHORT = {"persistentvolumeclaims": ["pvc"]}
BEGAN = datetime.datetime(2026, 11, 24, tzinfo=datetime.UTC)  # the first line of the log
OBJECT = re.compile(
    r"/(?:api|apis)/(?P<group>v1|[^/]+/[^/]+)(?:/namespaces/(?P<space>[^/]+))?/(?P<kind>[^/]+)(?:/(?P<name>[^/]+))?(?:/(?P<sub>log))?"
)


def patched(value: Any, patch: Any) -> Any:
    """`value` after a patch: mappings are joined key by key, null removes a key, everything else replaces what was there.

    Lists of objects, which Kubernetes merges by a key of each, are not changed by any test that asks this server.
    """
    if not isinstance(patch, dict):
        assert not isinstance(patch, list) or not any(isinstance(part, dict) for part in patch), patch
        return patch
    result = dict(value) if isinstance(value, dict) else {}
    for name, part in patch.items():
        assert not name.startswith("$"), f"a directive of the strategic merge: {name}"
        if part is None:
            result.pop(name, None)
        else:
            result[name] = patched(result.get(name), part)
    return result


class FakeKubernetes:
    """`faults` maps "METHOD path-regex" to (status, reason) answers that come first, or "cut"."""

    def __init__(self) -> None:
        self.objects: dict[tuple[str, str], dict[str, Any]] = {}  # (plural, name)
        self.requests: list[tuple[str, str]] = []
        self.faults: dict[str, list[Any]] = {}
        self.groups = dict(GROUPS)
        self.complete: set[str] = set()  # Jobs that are complete as soon as somebody has looked once
        self.logs: list[str] = []  # pieces: each connection brings one more than the one before, and then breaks
        self.logged = 0
        self.log_outcome = ("Complete", 0)  # once the last log was read
        # What the watches of an object that is being deleted do, in turn: "cut", or seconds of silence until it is gone. Without
        # any, objects are gone at once.
        self.watches: list[str | float] = []
        self.quota = False  # one that allows no pod
        self.pod_status: dict[str, Any] = {"phase": "Running"}  # of a pod that was created without a controller

    def fault(self, what: str, *answers: Any) -> None:
        self.faults.setdefault(what, []).extend(answers)

    def warn(self, kind: str, name: str, reason: str, message: str, at: str = "2026-11-24T00:00:00Z", **about: str) -> None:
        """An event about an object, as a controller records it."""
        meta = {"name": f"{name}.{len(self.objects)}", "namespace": "default"}
        event = {"apiVersion": "v1", "kind": "Event", "metadata": meta, "type": "Warning", "reason": reason, "message": message}
        self.objects["events", meta["name"]] = event | {"lastTimestamp": at, "involvedObject": {"kind": kind, "name": name} | about}

    def storage_class(self, name: str, provisioner: str, default: bool = False) -> None:
        meta = {"name": name, "annotations": {"storageclass.kubernetes.io/is-default-class": str(default).lower()}}
        one = {"apiVersion": "storage.k8s.io/v1", "kind": "StorageClass", "metadata": meta, "provisioner": provisioner}
        self.objects["storageclasses", name] = one

    def finish(self, name: str, condition: str, code: int, reason: str = "") -> None:
        for plural in ("jobs", "jobsets"):
            if (plural, name) in self.objects:
                made = {"type": condition, "status": "True", "reason": reason, "message": "the pod said so"}
                self.objects[plural, name]["status"] = {"conditions": [made]}
        for (plural, _), one in self.objects.items():
            if plural == "pods":
                state = {"terminated": {"exitCode": code, "finishedAt": "2026-11-24T00:00:00Z"}}
                one["status"] = {"phase": "Failed" if code else "Succeeded", "containerStatuses": [{"restartCount": 0, "state": state}]}

    def remove(self, plural: str, name: str) -> None:
        """Forget an object, and the pods of a Job with it."""
        del self.objects[plural, name]
        for key in [key for key in self.objects if key[0] == "pods" and key[1].startswith(f"{name}-")]:
            del self.objects[key]

    def add_pod(self, job: dict[str, Any]) -> None:
        """What the controllers of a cluster would do: the job's pod, running."""
        template = job["spec"]["template"] if job["kind"] == "Job" else job["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]
        name = f"{job['metadata']['name']}-0"
        meta = {"name": name, "namespace": "default", "uid": f"uid-{name}", "labels": template["metadata"]["labels"]}
        state = {"phase": "Running", "containerStatuses": [{"restartCount": 0, "state": {"running": {}}}]}
        self.objects["pods", name] = {"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": template["spec"], "status": state}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    fake: FakeKubernetes

    def log_message(self, *_: Any) -> None:
        pass

    def handle_one_request(self) -> None:
        with contextlib.suppress(ConnectionError, ValueError, OSError):
            super().handle_one_request()

    def answer(self, status: int, value: Any, kind: str = "application/json") -> None:
        data = value.encode() if isinstance(value, str) else json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def refuse(self, status: int, reason: str, message: str = "as asked") -> None:
        meta: dict[str, Any] = {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure"}
        self.answer(status, meta | {"message": message, "reason": reason, "code": status})

    def serve(self) -> None:
        fake, url = self.fake, urlsplit(self.path)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        fake.requests.append((self.command, url.path))
        for what, answers in fake.faults.items():
            method, _, path = what.partition(" ")
            if method == self.command and re.fullmatch(path, url.path) and answers:
                fault = answers.pop(0)
                if fault == "cut":
                    self.close_connection = True
                    return self.connection.close()
                return self.refuse(*fault)
        if found := OBJECT.fullmatch(url.path):
            return self.object(found, parse_qs(url.query), body)
        return self.discover(url.path)

    do_GET = do_POST = do_PATCH = do_DELETE = serve

    def discover(self, path: str) -> None:
        fake = self.fake
        if path == "/version":
            return self.answer(200, {"major": "1", "minor": "35", "gitVersion": "v1.35.0"})
        if path == "/openapi/v2":  # a description without types, as protobuf: kubectl then leaves validation to the server
            return self.answer(200, "", "application/com.github.proto-openapi.spec.v2.v1.0+protobuf")
        if path == "/api":
            return self.answer(200, {"kind": "APIVersions", "versions": ["v1"]})
        if path == "/apis":
            groups = []
            for group in fake.groups:
                name, _, version = group.partition("/")
                if version:
                    one = {"groupVersion": group, "version": version}
                    groups.append({"name": name, "versions": [one], "preferredVersion": one})
            return self.answer(200, {"kind": "APIGroupList", "apiVersion": "v1", "groups": groups})
        group = path.removeprefix("/apis/").removeprefix("/api/")
        if group in fake.groups:
            verbs = ["create", "delete", "get", "list", "patch", "update", "watch"]
            listed = [
                {
                    "name": plural,
                    "singularName": kind.lower(),
                    "namespaced": kind != "StorageClass",
                    "kind": kind,
                    "verbs": verbs,
                    "shortNames": SHORT.get(plural, []),
                }
                for plural, kind in fake.groups[group]
            ]
            return self.answer(200, {"kind": "APIResourceList", "groupVersion": group, "resources": listed})
        return self.refuse(404, "NotFound", "the server could not find the requested resource")

    def object(self, found: re.Match[str], query: dict[str, list[str]], body: bytes) -> None:
        fake, plural, name = self.fake, found["kind"], found["name"]
        kind = dict(fake.groups.get(found["group"], [])).get(plural, "")
        if not kind:
            return self.refuse(404, "NotFound", "the server could not find the requested resource")
        if found["sub"]:
            return self.log(query)
        if self.command == "POST":
            made = json.loads(body)
            name = made["metadata"]["name"]
            if (plural, name) in fake.objects:
                return self.refuse(409, "AlreadyExists", f"{plural} {name!r} already exists")
            made["metadata"] |= {"namespace": found["space"], "uid": f"uid-{name}", "resourceVersion": "1"}
            fake.objects[plural, name] = made
            if kind in ("Job", "JobSet") and not fake.quota:
                fake.add_pod(made)
            if kind == "Pod":
                made["status"] = fake.pod_status
            return self.answer(201, made)
        if self.command == "GET" and name is None:
            return self.listed(found["group"], kind, plural, query)
        if (plural, name) not in fake.objects:
            return self.refuse(404, "NotFound", f'{plural} "{name}" not found')
        if self.command == "PATCH":
            changed = patched(fake.objects[plural, name], json.loads(body))
            if kind in ("Job", "JobSet") and changed["spec"] != fake.objects[plural, name]["spec"]:
                return self.refuse(422, "Invalid", f"{kind} {name!r} is invalid: spec: field is immutable")
            fake.objects[plural, name] = changed
        if self.command == "DELETE":
            gone = fake.objects[plural, name]
            gone["metadata"]["deletionTimestamp"] = "2026-11-24T00:00:00Z"
            if not fake.watches:
                fake.remove(plural, name)
            return self.answer(200, gone)
        return self.answer(200, fake.objects[plural, name])

    def listed(self, group: str, kind: str, plural: str, query: dict[str, list[str]]) -> None:
        fake = self.fake
        wanted = dict(part.split("=") for part in query.get("labelSelector", [""])[0].split(",") if part)
        selected = query.get("fieldSelector", [""])[0]
        assert selected in ("", "type=Warning") or selected.startswith("metadata.name="), selected
        field = selected.removeprefix("metadata.name=") if plural != "events" else ""
        if query.get("watch") == ["true"]:
            self.watch(plural, field)
            return
        items = [
            one
            for (known, name), one in fake.objects.items()
            if known == plural
            and field in ("", name)
            and all(one["metadata"].get("labels", {}).get(key) == value for key, value in wanted.items())
        ]
        self.answer(200, {"kind": f"{kind}List", "apiVersion": group, "metadata": {"resourceVersion": "1"}, "items": items})
        for one in items:
            if one["metadata"]["name"] in fake.complete:
                fake.finish(one["metadata"]["name"], "Complete", 0)

    def watch(self, plural: str, name: str) -> None:
        """What happens to one object: it is deleted, or the connection breaks before."""
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        self.wfile.flush()
        self.close_connection = True
        self.fake.requests.append(("WATCH", f"{plural}/{name}"))
        how = self.fake.watches.pop(0) if self.fake.watches else 0.0
        if how == "cut":
            return  # no last chunk
        time.sleep(float(how))
        if (plural, name) not in self.fake.objects:
            return
        event = json.dumps({"type": "DELETED", "object": self.fake.objects[plural, name]}) + "\n"
        self.wfile.write(f"{len(event):x}\r\n{event}\r\n0\r\n\r\n".encode())  # fails where nobody listens any more
        self.wfile.flush()
        self.fake.remove(plural, name)

    def log(self, query: dict[str, list[str]]) -> None:
        """All that was logged up to the next piece; the connection breaks after it, but after the last, which ends the training."""
        fake = self.fake
        fake.logged += len(fake.logs[fake.logged : fake.logged + 1])
        since = datetime.datetime.fromisoformat(query.get("sinceTime", ["2000-01-01T00:00:00Z"])[0]).replace(microsecond=0)
        lines = "".join(fake.logs[: fake.logged]).splitlines()
        timed = [(BEGAN + datetime.timedelta(seconds=0.3 * index), line) for index, line in enumerate(lines)]
        piece = "".join(f"{at:%Y-%m-%dT%H:%M:%S.%f}000Z {line}\n" for at, line in timed if at >= since)
        assert query["timestamps"] == ["true"]
        self.send_response(200)
        self.send_header("Content-Type", "text/plain")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        if piece:
            self.wfile.write(f"{len(piece.encode()):x}\r\n{piece}\r\n".encode())
        self.close_connection = True
        if fake.logged < len(fake.logs):
            return  # cut: no last chunk
        self.wfile.write(b"0\r\n\r\n")
        for plural, name in list(fake.objects):
            if plural in ("jobs", "jobsets") and not name.endswith("-download"):
                fake.finish(name, *fake.log_outcome, reason="PodFailurePolicy")


@contextlib.contextmanager
def serving() -> Iterator[tuple[FakeKubernetes, dict[str, Any]]]:
    """The server, and a kubeconfig for it."""
    fake = FakeKubernetes()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"fake": fake}))
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "c",
        "clusters": [{"name": "c", "cluster": {"server": f"http://127.0.0.1:{server.server_address[1]}"}}],
        "users": [{"name": "u", "user": {}}],
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
    }
    try:
        yield fake, config
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5)
