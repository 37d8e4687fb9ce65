"""The user's own kubectl: apply a training run's manifests, follow, show and delete it. Only kubectl has access to the cluster."""

import datetime
import json
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Sequence
from typing import Any

from nanochat.cloud.absolute_end import end_of, set_end
from nanochat.cloud.cluster_events import Warn, newest_warnings
from nanochat.cloud.kubernetes import COMPONENT, INSTANCE, Manifest, to_yaml
from nanochat.console import duration, log, show
from nanochat.errors import NanochatError, PreflightError, UsageError

TRIES = 4
POLL_SECONDS = 5.0
REQUEST_TIMEOUT = "30s"

_LOGGED = re.compile(r"(\[\S+\]) (\d{4}-\S+) (.*)")  # a line with kubectl's --prefix and --timestamps
_KLOG = re.compile(r"[EWI]\d{4} ")  # a line of kubectl's log, which its error repeats

# Parts of kubectl's messages -> hint.
_HINTS = (
    (("Unauthorized", "must be logged in"), "log in to the cluster again, then run the same command"),
    (("Forbidden", "forbidden"), "ask the cluster's administrator for this permission, or use another --namespace"),
    (("field is immutable", "is invalid"), "stop the running job with `nanochat submit cancel NAME`, or choose another --name"),
    (
        ("no matches for kind", "doesn't have a resource type"),
        "install JobSet in the cluster, which several nodes need, or use --nodes 1",
    ),
    (("not found", "NotFound"), "see the run with `nanochat submit status NAME`, or set another --namespace"),
)
_AGAIN: tuple[str, ...] = (
    "Conflict",
    "the object has been modified",
    "InternalError",
    "Internal error",
    "ServiceUnavailable",
    "TooManyRequests",
    "EOF",
)
_AGAIN += ("connection refused", "connection reset", "timeout", "Timeout", "unable to handle the request", "an error on the server")


class Kubectl:
    """kubectl with the user's context and namespace. Methods raise NanochatError with kubectl's message and a hint."""

    def __init__(self, namespace: str = "", context: str = "", pause: float = 1.0):
        path = shutil.which("kubectl")
        if path is None:
            raise PreflightError("kubectl is not installed", "install it, or print the manifests with --dry-run and apply them elsewhere")
        place = ([f"--namespace={namespace}"] if namespace else []) + ([f"--context={context}"] if context else [])
        self.command, self.pause = [path, *place], pause
        self._told: set[str] = set()  # warnings that were already printed

    def run(self, *arguments: str, text: str = "") -> str:
        """kubectl's stdout. All commands here are idempotent, so they are repeated after a conflict or a server error."""
        command = [*self.command, f"--request-timeout={REQUEST_TIMEOUT}", *arguments]
        for attempt in range(TRIES):
            done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
            if done.returncode == 0:
                return done.stdout
            said = " ".join(line.strip() for line in done.stderr.splitlines() if not _KLOG.match(line))
            if attempt == TRIES - 1 or not any(part in said for part in _AGAIN):
                break
            log(f"kubectl: {said[:300]}; trying again")
            time.sleep(self.pause * 2**attempt)
        hint = next((hint for parts, hint in _HINTS if any(part in said for part in parts)), "see kubectl's message")
        raise NanochatError(f"kubectl {arguments[0]}: {said[:1000]}", hint)

    def apply(self, made: Sequence[Manifest]) -> None:
        """Create missing objects and update mutable ones."""
        for line in self.run("apply", "-f", "-", text="".join(to_yaml(made))).splitlines():
            log(line)

    def objects(self, kinds: str, name: str, component: str = "") -> list[Manifest]:
        """The run's objects of some kinds; none of a kind that the cluster does not have."""
        selector = f"{INSTANCE}={name}" + (f",{COMPONENT}={component}" if component else "")
        try:
            found = json.loads(self.run("get", kinds, "-l", selector, "-o", "json"))
        except NanochatError as error:
            if "doesn't have a resource type" in error.message:
                return []
            raise
        return list(found["items"])

    def controllers(self, name: str, component: str) -> list[Manifest]:
        """The controllers of a component's pods: its Deployment, JobSet or Job."""
        kinds = ("deployment",) if component == "chat" else ("jobset", "job")
        return next(filter(None, (self.objects(kind, name, component) for kind in kinds)), [])

    def warnings(self, objects: Sequence[Manifest]) -> dict[str, Warn]:
        """Kind/name -> the newest warning in the cluster's events; {} if this user may not read them."""
        try:
            events = json.loads(self.run("get", "events", "--field-selector=type=Warning", "-o", "json"))["items"]
        except NanochatError as error:
            if "orbidden" not in error.message:
                raise
            return {}
        return newest_warnings(events, objects)

    def tell(self, name: str, component: str) -> None:
        """Print the cluster's warnings about a component, each once."""
        objects = self.objects("job,pod,deployment,replicaset", name, component)
        if any(one["kind"] == "Pod" and one.get("status", {}).get("phase") == "Running" for one in objects):
            return
        for warning in self.warnings(objects + self.objects("jobset", name, component)).values():
            if warning.reason not in self._told:
                self._told.add(warning.reason)
                log(f"warning: {warning}" + (f"\nhint: {warning.hint}" if warning.hint else ""))

    def outcome(self, name: str, component: str) -> tuple[str, str]:
        """("running" | "complete" | "failed" | "", why); "" if there is no such object."""
        found = self.controllers(name, component)
        for condition in (condition for one in found for condition in one.get("status", {}).get("conditions", [])):
            if condition.get("status") == "True" and condition["type"] in ("Complete", "Completed"):
                return "complete", ""
            if condition.get("status") == "True" and condition["type"] == "Failed":
                return "failed", f"{condition.get('reason', '')}: {condition.get('message', '')}"
        return ("running", "") if found else ("", "")

    def wait(self, name: str, component: str, poll: float = POLL_SECONDS) -> None:
        """Wait until a component is complete. Raises NanochatError if it failed or has gone."""
        began, said = time.monotonic(), 0.0
        while True:
            state, why = self.outcome(name, component)
            if state == "complete":
                return
            if state != "running":
                raise NanochatError(
                    f"the {component} job of {name} {'failed: ' + why if state else 'was deleted'}",
                    f"see its log with `nanochat submit logs {name} --component {component}`",
                )
            if time.monotonic() - said > 60:
                said = time.monotonic()
                log(f"{component}: running for {duration(said - began)}")
            self.tell(name, component)
            time.sleep(poll)

    def logs(self, name: str, component: str, follow: bool, poll: float = POLL_SECONDS) -> int:
        """Print a component's log on stdout; with `follow` until it ends, and return its exit code.

        After a broken connection or a replaced pod the log continues at the next line.
        """
        seen: dict[str, datetime.datetime] = {}
        told = ""
        while True:
            code, said = self._stream(name, component, follow, seen)
            if not follow:
                if code:
                    raise NanochatError(f"kubectl logs: {said}", f"see its pods with `nanochat submit status {name}`")
                return 0
            state, why = self.outcome(name, component)
            if state == "running":
                if code and said != told:  # for example, a pod that waits for a node or for its image
                    log(f"kubectl: {said}; trying again")
                    told = said
                self.tell(name, component)
                time.sleep(poll)
                continue
            self._stream(name, component, False, seen)  # the rest after a broken connection
            if state == "complete":
                return 0
            log(f"error: the {component} job of {name} " + (f"failed: {why}" if state else "does not exist"))
            return self.exit_code(name, component)

    def _stream(self, name: str, component: str, follow: bool, seen: dict[str, datetime.datetime]) -> tuple[int, str]:
        """Print the new lines of one connection; returns kubectl's exit code and message. `seen` maps containers to their last time."""
        command = [*self.command, "logs", "-l", f"{INSTANCE}={name},{COMPONENT}={component}", "--prefix", "--timestamps", "--tail=-1"]
        command += ["--max-log-requests=64", *(["-f"] if follow else [])]
        command += [f"--since-time={min(seen.values()).isoformat()}"] if seen else []
        before = dict(seen)
        with tempfile.TemporaryFile("w+") as errors:
            with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, errors="replace") as process:
                assert process.stdout is not None
                for line in process.stdout:
                    if found := _LOGGED.match(line):
                        container, at = found[1], datetime.datetime.fromisoformat(found[2])
                        if container in before and at <= before[container]:
                            continue
                        seen[container] = at
                        line = f"{container} {found[3]}\n"
                    show(line, end="")
            errors.seek(0)
            return process.returncode, " ".join(errors.read().split())

    def exit_code(self, name: str, component: str) -> int:
        """The exit code of the component's last container; 1 if the cluster no longer has it."""
        ended = []
        for pod in self.objects("pod", name, component):
            states = [one.get("state", {}).get("terminated") for one in pod.get("status", {}).get("containerStatuses", [])]
            ended += [(state.get("finishedAt", ""), state["exitCode"]) for state in states if state]
        return max(ended)[1] or 1 if ended else 1

    def status(self, name: str) -> list[dict[str, Any]]:
        """Kind, name, state (or reason for waiting), reason and restarts of each object. Raises UsageError if there is none."""
        objects = self.objects("job,pod,deployment,replicaset,persistentvolumeclaim", name) + self.objects("jobset", name)
        warned = self.warnings(objects) if objects else {}
        rows = []
        for one in objects:
            phase, well = _phase(one)
            warning = None if well else warned.get(f"{one['kind']}/{one['metadata']['name']}")
            if one["kind"] == "ReplicaSet" and not warning:
                continue  # a Deployment's ReplicaSet, of interest only if it cannot create pods
            if warning and one["kind"] in ("Job", "JobSet", "ReplicaSet"):
                phase = warning.reason
            state = one.get("status", {})
            counted = sum(container.get("restartCount", 0) for container in state.get("containerStatuses", []))
            row = {"kind": one["kind"], "name": one["metadata"]["name"], "state": phase, "restarts": state.get("restarts", counted)}
            rows.append(row | {"why": warning.message if warning else "", "hint": warning.hint if warning else ""})
        if not rows:
            raise UsageError(f"there is no run {name!r}", "use the --name and --namespace of its submission")
        return rows

    def cancel(self, name: str) -> None:
        """Delete the run and its chat, with time to save a checkpoint. The volume stays."""
        for kinds in ("jobset", "job,deployment,service", "networkpolicy"):  # the policies guard the pods while they save
            if found := self.objects(kinds, name):
                # Without a limit of the request: the server answers at once, kubectl then waits for the pods to save.
                names = [f"{one['kind'].lower()}/{one['metadata']['name']}" for one in found]
                self.run("delete", *names, "--ignore-not-found", "--cascade=foreground", "--timeout=10m")
                log(f"deleted: {', '.join(names)}")
        if claims := self.objects("persistentvolumeclaim", name):
            named = ", ".join(one["metadata"]["name"] for one in claims)
            log(f"kept, with the checkpoints: {named} (kubectl delete pvc {named} removes it and costs no more)")


def submit(kubectl: Kubectl, name: str, made: Sequence[Manifest], poll: float = POLL_SECONDS) -> None:
    """Apply the manifests, those of the run and the chat after the download is complete. Called again, it continues."""
    first = [one for one in made if one["kind"] == "PersistentVolumeClaim" or one["metadata"]["labels"][COMPONENT] == "download"]
    rest = [one for one in made if one not in first]
    began, (state, why) = time.time(), kubectl.outcome(name, "train")
    if state in ("complete", "failed"):
        raise UsageError(
            f"the run {name!r} has ended already ({state}{': ' + why if why else ''})",
            f"choose another --name, or run `nanochat submit cancel {name}` first",
        )
    if not state and first:
        kubectl.apply(first)
        if any(one["kind"] == "Job" for one in first):
            log("downloading the data first, without a GPU (after an interruption, the same command continues)")
            kubectl.wait(name, "download", poll)
    if end := end_of(rest):
        if kept := end_of(kubectl.controllers(name, "train")) if state else "":  # a Job's pod template is immutable
            at = datetime.datetime.fromtimestamp(int(kept), datetime.UTC)
            log(f"{name} is running already and keeps its deadline of {at:%Y-%m-%d %H:%M} UTC")
        set_end(rest, kept or str(int(end) + int(time.time() - began)))  # without the download's time
    kubectl.apply(rest)


def _phase(one: Manifest) -> tuple[str, bool]:
    """(an object's state or reason for waiting, whether it is healthy and older warnings no longer apply)."""
    state = one.get("status", {})
    ended = [condition["type"] for condition in state.get("conditions", []) if condition.get("status") == "True"]
    waits = [container.get("state", {}).get("waiting", {}).get("reason") for container in state.get("containerStatuses", [])]
    waits += [one.get("reason") for one in state.get("conditions", []) if (one["type"], one["status"]) == ("PodScheduled", "False")]
    waiting = next(filter(None, waits), None)
    phase = waiting or state.get("phase")
    phase = phase or next((end for end in ("Failed", "Complete", "Completed", "Available") if end in ended), "Active")
    ready = one["kind"] == "ReplicaSet" and state.get("replicas", 0) >= one.get("spec", {}).get("replicas", 1)
    well = phase in ("Running", "Succeeded", "Bound", "Complete", "Completed", "Available") and not waiting
    return phase, well or ready or bool(state.get("active"))
