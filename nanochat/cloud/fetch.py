"""Fetching a trained run from a cluster: a pod beside its volume packs it, kubectl copies it, and it is verified here."""

import json
import subprocess
import tempfile
import time
import uuid
from pathlib import Path
from typing import Any

from nanochat import paths, untrusted
from nanochat.cloud.kubectl import POLL_SECONDS, Kubectl
from nanochat.cloud.kubernetes import COMPONENT, INSTANCE, Manifest
from nanochat.cloud.workload import DATA, USER
from nanochat.console import Progress, log
from nanochat.errors import NanochatError, PreflightError, UsageError
from nanochat.hub.download import require_space
from nanochat.runs.archive import Packed, unpack
from nanochat.runs.step_files import checked_run

START_SECONDS = 900.0  # for a node and the image
LIVES_SECONDS = 12 * 3600  # after which the cluster ends the pod if this process could not
BLOCK = 1 << 20


def fetch(kubectl: Kubectl, name: str, run: str = "", image: str = "", replace: bool = False, poll: float = POLL_SECONDS) -> Packed:
    """Pack the run of job `name` in the cluster, copy it here and unpack it.

    `run` is its name, by default the job's. `image` is needed if the job is no longer in the cluster. Raises NanochatError with kubectl's
    message, UsageError if the run cannot be found, and the errors of `unpack`.
    """
    template = _template(kubectl, name)
    pod = _pod(name, template, image, kubectl)
    run = run or _run_of(template, name)
    place = pod["metadata"]["name"]
    kubectl.apply([pod])
    try:
        _wait(kubectl, name, place, poll)
        about = _about(kubectl, place, run)
        require_space(f"the run {run}", 2 * about["size_bytes"], paths.base_dir())
        paths.base_dir().mkdir(parents=True, exist_ok=True)
        file = paths.base_dir() / f"{paths.TEMPORARY}{uuid.uuid4().hex}.tar"
        try:
            _copy(kubectl, place, run, file, about["size_bytes"])
            return unpack(file, replace)
        finally:
            file.unlink(missing_ok=True)
    finally:
        kubectl.run("delete", "pod", place, "--ignore-not-found", "--wait=false")


def _template(kubectl: Kubectl, name: str) -> Manifest:
    """The pod of the run's training job; {} if the cluster no longer has it."""
    for one in kubectl.controllers(name, "train"):
        spec = one["spec"]
        return dict((spec["template"] if one["kind"] == "Job" else spec["replicatedJobs"][0]["template"]["spec"]["template"])["spec"])
    return {}


def _run_of(template: Manifest, name: str) -> str:
    """The run's name by the job's arguments: --run, else the profile's (and -trial)."""
    words = [str(word) for container in template.get("containers", [])[:1] for word in container.get("args", [])]
    pairs = [part for word in words for part in (word.split("=", 1) if word.startswith("--") else [word])]
    named = pairs[pairs.index("--run") + 1 : pairs.index("--run") + 2] if "--run" in pairs else []
    profile = pairs[pairs.index("--profile") + 1 : pairs.index("--profile") + 2] if "--profile" in pairs else []
    found = named or [each + ("-trial" if "--trial" in pairs else "") for each in profile] or [name.removeprefix("nanochat-")]
    try:
        return checked_run(found[0])
    except ValueError as error:
        raise UsageError(f"the job {name} does not say which run it trains", "name it with --run") from error


def _pod(name: str, template: Manifest, image: str, kubectl: Kubectl) -> Manifest:
    """A pod without GPUs that mounts the run's volume, under the restricted profile, and waits."""
    if not template and (not image or not kubectl.objects("persistentvolumeclaim", name)):
        raise UsageError(
            f"the cluster has no job {name!r}" + (" and no volume of it" if image else ""),
            f"see what there is with `nanochat submit status {name}`; if only its volume is left, pass --image REF",
        )
    image = image or str(template["containers"][0]["image"])
    volumes = [volume for volume in template.get("volumes", []) if volume["name"] == "data"]
    claim: Manifest = {"name": "data", "persistentVolumeClaim": {"claimName": f"{name}-data"}}
    own = {"runAsNonRoot": True, "runAsUser": USER, "runAsGroup": USER, "fsGroup": USER, "seccompProfile": {"type": "RuntimeDefault"}}
    kept: Manifest = {key: template[key] for key in ("imagePullSecrets", "tolerations") if key in template}
    container: Manifest = {
        "name": "fetch",
        "image": image,
        "command": ["tini", "--", "sleep", str(LIVES_SECONDS)],
        "env": [{"name": "NANOCHAT_BASE_DIR", "value": DATA}, {"name": "NVIDIA_VISIBLE_DEVICES", "value": "void"}],
        "resources": {"requests": {"cpu": "500m", "memory": "1Gi"}, "limits": {"cpu": "2", "memory": "4Gi"}},
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}, "readOnlyRootFilesystem": True},
        "volumeMounts": [{"name": "data", "mountPath": DATA}, {"name": "tmp", "mountPath": "/tmp"}],
    }
    spec: Manifest = {
        "restartPolicy": "Never",
        "activeDeadlineSeconds": LIVES_SECONDS,
        "terminationGracePeriodSeconds": 5,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": template.get("securityContext", own),
        "containers": [container],
        "volumes": [volumes[0] if volumes else claim, {"name": "tmp", "emptyDir": {"sizeLimit": "1Gi"}}],
        **kept,
    }
    labels = {"app.kubernetes.io/name": "nanochat", "app.kubernetes.io/managed-by": "nanochat", INSTANCE: name, COMPONENT: "fetch"}
    meta = {"name": f"{name}-fetch-{uuid.uuid4().hex[:5]}", "labels": labels}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": spec}


def _wait(kubectl: Kubectl, name: str, place: str, poll: float) -> None:
    """Wait until the pod runs. Raises PreflightError with the cluster's reason if it does not."""
    began = time.monotonic()
    while True:
        pods = [one for one in kubectl.objects("pod", name, "fetch") if one["metadata"]["name"] == place]
        phase = pods[0].get("status", {}).get("phase", "Pending") if pods else "deleted"
        if phase == "Running":
            return
        if phase != "Pending" or time.monotonic() - began > START_SECONDS:
            why = next(iter(kubectl.warnings(pods).values()), None)
            raise PreflightError(
                f"the pod {place} that copies the run did not start ({phase}{f': {why}' if why else ''})",
                "wait until the run has ended, because a ReadWriteOnce volume serves one node, then run the same command again",
            )
        kubectl.tell(name, "fetch")
        time.sleep(poll)


def _about(kubectl: Kubectl, place: str, run: str) -> dict[str, Any]:
    """`runs show --json` in the pod. Raises NanochatError if there is no such run."""
    text = kubectl.run("exec", place, "--", "nanochat", "runs", "show", run, "--json")
    try:
        found = untrusted.table(untrusted.parse_json(text.strip().splitlines()[-1]), "the run")
        return found | {"size_bytes": untrusted.integer(found["size_bytes"], "size_bytes")}
    except (ValueError, KeyError, IndexError, json.JSONDecodeError) as error:
        raise NanochatError(
            f"the pod did not answer as expected: {untrusted.reason(error)}", "use the image that trained the run"
        ) from error


def _copy(kubectl: Kubectl, place: str, run: str, file: Path, size: int) -> None:
    """Write the archive of `run` that the pod sends into `file`. A broken connection leaves half of it, which unpacking would refuse."""
    command = [*kubectl.command, "exec", place, "--", "nanochat", "runs", "pack", run, "-"]
    log(f"copying the run {run}")
    with tempfile.TemporaryFile("w+") as errors, file.open("xb") as target, Progress(f"copying {run}", size, "bytes") as progress:
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors) as process:
            assert process.stdout is not None
            while block := process.stdout.read(BLOCK):
                target.write(block)
                progress.advance(len(block))
        if process.returncode:
            errors.seek(0)
            said = untrusted.reason(Exception(errors.read()[-1000:]))
            raise NanochatError(f"copying the run failed (exit code {process.returncode}): {said}", "run the same command again")
