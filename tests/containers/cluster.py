"""A cluster of containers: pods, Jobs and JobSets of the manifests as Docker runs them, on a private network without a way out.

What a cluster's controllers would do is done here, by what the manifests say: the completion index, host names, the security
context, volumes, and what happens when a container has ended.
"""

import json
import re
import subprocess
import sys
import time
import uuid
from typing import Any

import yaml

from nanochat.cloud.kubernetes import INDEX
from tests.containers.engine import HANG, IMAGE, ROOT, call, docker

Manifest = dict[str, Any]


def dry_run(*arguments: str) -> list[Manifest]:
    """The documents that `submit k8s --dry-run ARGUMENTS` prints for the image under test."""
    command = [sys.executable, "entrypoint.py", "submit", "k8s", "--image", IMAGE, "--dry-run", *arguments]
    done = subprocess.run(command, cwd=ROOT, text=True, capture_output=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return list(yaml.safe_load_all(done.stdout))


def of_kind(made: list[Manifest], kind: str) -> Manifest:
    """The only document of a kind."""
    (one,) = [document for document in made if document["kind"] == kind]
    return one


def environment(pod: Manifest, index: int, secrets: dict[str, str]) -> dict[str, str]:
    """A container's environment: values as they stand, the pod's index and namespace, and keys of secrets."""
    values = {}
    for variable in pod["spec"]["containers"][0]["env"]:
        source = variable.get("valueFrom", {})
        if source.get("fieldRef") == {"fieldPath": "metadata.namespace"}:
            values[variable["name"]] = "default"
        elif "fieldRef" in source:
            assert source["fieldRef"]["fieldPath"] == f"metadata.annotations['{INDEX}']"
            values[variable["name"]] = str(index)
        elif "secretKeyRef" in source:
            values[variable["name"]] = secrets[source["secretKeyRef"]["key"]]
        else:
            values[variable["name"]] = variable["value"]
    return values


def options(pod: Manifest, index: int, volume: str, secrets: dict[str, str]) -> list[str]:
    """What of a pod's template is an option of `docker run`."""
    spec, container = pod["spec"], pod["spec"]["containers"][0]
    own, context = spec["securityContext"], container["securityContext"]
    found = [f"--user={own['runAsUser']}:{own['runAsGroup']}", *(f"--cap-drop={name}" for name in context["capabilities"]["drop"])]
    found += ["--read-only"] * context["readOnlyRootFilesystem"]
    found += ["--security-opt=no-new-privileges"] * (not context["allowPrivilegeEscalation"])
    found.append(f"--memory={container['resources']['limits']['memory'].removesuffix('i').lower()}")
    found += [f"--env={key}={value}" for key, value in environment(pod, index, secrets).items()]
    volumes = {one["name"]: one for one in spec["volumes"]}
    for mount in container["volumeMounts"]:
        if "persistentVolumeClaim" in volumes[mount["name"]]:
            found.append(f"--volume={volume}:{mount['mountPath']}")
        else:
            size = volumes[mount["name"]]["emptyDir"]["sizeLimit"].removesuffix("i").lower()
            found.append(f"--tmpfs={mount['mountPath']}:size={size}")
    return found


class Network:
    """A network of its own, and the containers on it. A context manager that removes both."""

    def __init__(self) -> None:
        self.name = f"nanochat-test-{uuid.uuid4().hex[:8]}"
        self.containers: list[str] = []

    def __enter__(self) -> "Network":
        docker("network", "create", "--internal", self.name)
        return self

    def __exit__(self, *_: object) -> None:
        self.remove(self.containers)
        call("docker", "network", "rm", self.name)

    def start(self, pod: Manifest, volume: str, host: str, index: int = 0, secrets: dict[str, str] | None = None) -> str:
        """Start a pod's container under a host name; returns the container's name."""
        name = f"{self.name}-{uuid.uuid4().hex[:8]}"
        place = ["--name", name, f"--network={self.name}", f"--hostname={host.partition('.')[0]}", f"--network-alias={host}"]
        container = pod["spec"]["containers"][0]
        values = environment(pod, index, secrets or {})
        arguments = [re.sub(r"\$\((\w+)\)", lambda found: values[found[1]], word) for word in container["args"]]
        docker("run", "-d", *place, *options(pod, index, volume, secrets or {}), container["image"], *arguments)
        self.containers.append(name)
        return name

    def remove(self, names: list[str]) -> None:
        """Remove containers, whatever they do."""
        if names:
            call("docker", "rm", "-f", *names)
        self.containers = [name for name in self.containers if name not in names]

    def cut(self, name: str) -> None:
        """Take a container off the network."""
        docker("network", "disconnect", self.name, name)


def ended(name: str) -> int | None:
    """A container's exit code, None while it runs."""
    state = json.loads(docker("inspect", "-f", "{{json .State}}", name))
    return None if state["Running"] else int(state["ExitCode"])


def log_of(name: str) -> str:
    """What a container has said so far."""
    done = call("docker", "logs", name)
    return done.stdout + done.stderr


class Training:
    """A Job, or a JobSet's one replicated Job, driven to its end as its own policies say."""

    def __init__(self, body: Manifest, network: Network, volume: str):
        self.network, self.volume, self.name = network, volume, body["metadata"]["name"]
        self.set = body["spec"] if body["kind"] == "JobSet" else None
        if self.set:
            (part,) = self.set["replicatedJobs"]
            assert part["replicas"] == 1 and self.set["network"]["enableDNSHostnames"]
            self.job = part["template"]["spec"]
            assert self.job["completionMode"] == "Indexed" and self.job["backoffLimit"] == 0
        else:
            self.job = body["spec"]
        self.pod, self.nodes = self.job["template"], self.job["completions"]
        self.hosts = [f"{self.name}-train-0-{index}.{self.name}" for index in range(self.nodes)]
        self.attempts: list[list[int]] = []  # the exit codes of each, by index
        self.logs: list[list[str]] = []
        self.names: list[str] = []

    def start(self) -> list[str]:
        """Start every pod anew; their containers' names."""
        self.names = [self.network.start(self.pod, self.volume, host, index) for index, host in enumerate(self.hosts)]
        return self.names

    def end(self, asked: bool = True) -> bool:
        """Wait for the attempt's end: whether all is over (done, failed for good), or everything is to be started again.

        The first container that fails is the Job's failure, which deletes its pods: the others are `asked` to end, or have to do
        it by themselves, as on machines that nobody watches.
        """
        until, codes = time.monotonic() + HANG, self.codes()
        while None in codes and not (asked and any(codes)):
            assert time.monotonic() < until, "\n".join(map(log_of, self.names))
            time.sleep(0.2)
            codes = self.codes()
        if left := [name for name, code in zip(self.names, codes, strict=True) if code is None]:
            call("docker", "stop", f"--time={self.pod['spec']['terminationGracePeriodSeconds']}", *left)
        failed = [code for code in codes if code]
        self.attempts.append([code or 0 for code in self.codes()])
        self.logs.append([log_of(name) for name in self.names])
        self.network.remove(self.names)
        return not failed or bool(set(failed) & set(self.final_codes())) or len(self.attempts) > self.retries()

    def codes(self) -> list[int | None]:
        """The exit code of each container, None while it runs."""
        return [ended(name) for name in self.names]

    def final_codes(self) -> list[int]:
        """The exit codes that the policies of Job and JobSet make final."""
        (rule,) = [rule for rule in self.job["podFailurePolicy"]["rules"] if "onExitCodes" in rule]
        assert rule["action"] == "FailJob" and rule["onExitCodes"]["operator"] == "In"
        if self.set:
            (outer,) = self.set["failurePolicy"]["rules"]
            assert outer["action"] == "FailJobSet" and "PodFailurePolicy" in outer["onJobFailureReasons"]
        return list(rule["onExitCodes"]["values"])

    def retries(self) -> int:
        """How often everything is started again."""
        return int(self.set["failurePolicy"]["maxRestarts"] if self.set else self.job["backoffLimit"])

    def run(self) -> list[list[int]]:
        """From the start to the end; the exit codes of each attempt."""
        over = False
        while not over:
            self.start()
            over = self.end()
        return self.attempts
