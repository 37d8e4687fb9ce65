"""Manifests of a training run on Kubernetes, which the user's kubectl applies.

One node is a Job. Several nodes are a JobSet, which starts and restarts them together. Pods meet the "restricted" pod security
profile, and a NetworkPolicy limits connections to them. A Job without a GPU downloads the data first, so that no GPU waits for it.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from nanochat.cloud import network
from nanochat.cloud.workload import DATA, FINAL_CODES, GRACE_SECONDS, PORT, RETRIES, USER, Workload
from nanochat.train.deadline import VARIABLE as END

Manifest = dict[str, Any]

GPU = "nvidia.com/gpu"
INDEX = "batch.kubernetes.io/job-completion-index"
INSTANCE = "app.kubernetes.io/instance"
COMPONENT = "app.kubernetes.io/component"
CHAT_PORT = 8000
KEPT_SECONDS = 7 * 86400  # time for which a finished Job is kept, for its logs
DOWNLOAD_HOURS = 12
QUEUE_HOURS = 7 * 24  # time in a queue that is added to a deadline from the estimate


@dataclass(frozen=True)
class ManifestOptions:
    """Settings of the cluster."""

    namespace: str = ""
    gpu_type: str = ""  # the label nvidia.com/gpu.product of the nodes
    node_selector: Mapping[str, str] | None = None
    queue: str = ""  # of Kueue
    pull_secrets: tuple[str, ...] = ()
    secrets: tuple[str, ...] = ()  # secrets whose keys become environment variables of the run
    environment: Mapping[str, str] | None = None
    claim: str = ""  # an existing PersistentVolumeClaim; else one is created
    storage: str = ""  # size of the new claim; default: the plan's
    storage_class: str = ""
    host_path: str = ""  # a directory of the node instead of a claim, which the "restricted" policy forbids
    max_hours: float = 0.0  # 0: from the plan
    chat: bool = False
    chat_secret: str = ""  # the secret with the chat's key under `api-key`
    chat_hosts: tuple[str, ...] = ()  # host names of an Ingress for the chat
    cpus: str = ""  # of each training pod, as request and limit; else by the number of GPUs
    memory: str = ""
    network_policy: bool = True


@dataclass(frozen=True)
class Resources:
    """A container's requests and limits of CPUs and memory in Kubernetes' notation, and its GPUs."""

    cpus: tuple[str, str]  # request and limit, because a namespace's quota may require both
    memory: tuple[str, str]
    gpus: int = 0

    def manifest(self) -> Manifest:
        """The container's `resources`."""
        request, limit = ({"cpu": cpus, "memory": memory} for cpus, memory in zip(self.cpus, self.memory, strict=True))
        return {"requests": request, "limits": limit | ({GPU: str(self.gpus)} if self.gpus else {})}


DOWNLOAD = Resources(("1", "4"), ("2Gi", "8Gi"))
CHAT = Resources(("1", "8"), ("4Gi", "16Gi"))


def manifests(work: Workload, options: ManifestOptions, now: float | None = None) -> list[Manifest]:
    """All objects to apply, in order: volume, download, training, chat. The deadline counts from `now` (default: the current time)."""
    made = [] if options.claim or options.host_path else [_claim(work, options)]
    if work.download:
        download = _pod(work, options, "download", work.download, work.environment(), DOWNLOAD)
        made.append(_job(work, options, "download", download, DOWNLOAD_HOURS * 3600))
    if options.network_policy:
        made.append(_training_policy(work, options))
    end = {END: str(int(time.time() if now is None else now) + _deadline(work, options) + _queue_seconds(options))}
    if work.nodes == 1:
        pod = _training_pod(work, options, work.environment() | end)
        made.append(_job(work, options, "train", pod, _deadline(work, options) + GRACE_SECONDS))
    else:
        made.append(_jobset(work, options, end))
    if options.chat:
        made += _chat(work, options)
    return made


def name_of(work: Workload, component: str) -> str:
    """The name of a component's object; that of the run is the workload's name."""
    return work.name if component == "train" else f"{work.name}-{component}"


def _labels(work: Workload, component: str) -> dict[str, str]:
    return {
        "app.kubernetes.io/name": "nanochat",
        "app.kubernetes.io/managed-by": "nanochat",
        INSTANCE: work.name,
        COMPONENT: component,
    }


def _meta(work: Workload, options: ManifestOptions, component: str, name: str = "") -> dict[str, Any]:
    place = {"namespace": options.namespace} if options.namespace else {}
    return {"name": name or name_of(work, component), **place, "labels": _labels(work, component)}


def _deadline(work: Workload, options: ManifestOptions) -> int:
    """Time limit of the run in seconds: the user's, or twice the estimate plus an hour."""
    return int(3600 * (options.max_hours or 2 * work.hours + 1))


def _queue_seconds(options: ManifestOptions) -> int:
    """Seconds that the time in a queue adds to the absolute end; 0 if the user has set the hours."""
    return 3600 * QUEUE_HOURS if options.queue and not options.max_hours else 0


# ---- pods -----------------------------------------------------------------------------------------------------


def _pod(
    work: Workload,
    options: ManifestOptions,
    component: str,
    arguments: Sequence[str],
    environment: Mapping[str, str],
    resources: Resources,
) -> Manifest:
    """A pod template: one container of the image with the volume at /data, allowed by the "restricted" policy."""
    # The image requests all GPUs from NVIDIA's runtime, which would give them to a pod without GPUs.
    hidden = {} if resources.gpus else {"NVIDIA_VISIBLE_DEVICES": "void"}
    own = {} if component == "chat" else dict(options.environment or {})
    container: Manifest = {
        "name": component,
        "image": work.image,
        "imagePullPolicy": "IfNotPresent" if "@sha256:" in work.image else "Always",
        "args": list(arguments),
        "env": [{"name": key, "value": value} for key, value in {**environment, **hidden, **own}.items()],
        "resources": resources.manifest(),
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "readOnlyRootFilesystem": True,
        },
        "volumeMounts": [{"name": "data", "mountPath": DATA}, {"name": "tmp", "mountPath": "/tmp"}],
    }
    spec: Manifest = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": GRACE_SECONDS,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": USER,
            "runAsGroup": USER,
            "fsGroup": USER,
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [container],
        "volumes": [_data(work, options), {"name": "tmp", "emptyDir": {"sizeLimit": "2Gi"}}],
    }
    if options.pull_secrets:
        spec["imagePullSecrets"] = [{"name": name} for name in options.pull_secrets]
    if component != "chat" and options.secrets:
        container["envFrom"] = [{"secretRef": {"name": name}} for name in options.secrets]
    return {"metadata": {"labels": _labels(work, component)}, "spec": spec}


def _data(work: Workload, options: ManifestOptions) -> Manifest:
    if options.host_path:
        return {"name": "data", "hostPath": {"path": options.host_path, "type": "Directory"}}
    return {"name": "data", "persistentVolumeClaim": {"claimName": options.claim or f"{work.name}-data"}}


def _training_pod(work: Workload, options: ManifestOptions, environment: Mapping[str, str]) -> Manifest:
    """The pod of one node, with its GPUs, node selection, and shared memory for the processes."""
    cards = max(work.cards, 1)
    cpus = (str(4 * cards), str(8 * cards)) if work.cards else ("2", "8")
    memory = (f"{16 * cards}Gi", f"{32 * cards}Gi") if work.cards else ("4Gi", "16Gi")  # shared memory is part of it
    cpus, memory = (options.cpus,) * 2 if options.cpus else cpus, (options.memory,) * 2 if options.memory else memory
    template = _pod(work, options, "train", work.command, environment, Resources(cpus, memory, work.cards))
    spec, container = template["spec"], template["spec"]["containers"][0]
    container["ports"] = [{"name": "store", "containerPort": PORT}]
    container["volumeMounts"].append({"name": "shm", "mountPath": "/dev/shm"})
    spec["volumes"].append({"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": f"{4 * cards}Gi"}})
    selector = dict(options.node_selector or {})
    if work.cards:
        spec["tolerations"] = [{"key": GPU, "operator": "Exists", "effect": "NoSchedule"}]
        if options.gpu_type:
            selector["nvidia.com/gpu.product"] = options.gpu_type
    if selector:
        spec["nodeSelector"] = selector
    return template


def _final(container: str) -> Manifest:
    """The rule that fails a Job at a final exit code. FailJob takes precedence over the limit of retries."""
    return {"action": "FailJob", "onExitCodes": {"containerName": container, "operator": "In", "values": sorted(FINAL_CODES)}}


def _job(work: Workload, options: ManifestOptions, component: str, template: Manifest, deadline: int) -> Manifest:
    """A Job of one pod, restarted from the newest checkpoint. Evictions do not count as retries; the deadline includes them."""
    meta = _meta(work, options, component)
    if options.queue and component == "train":
        meta["labels"] |= {"kueue.x-k8s.io/queue-name": options.queue}
    disrupted = {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": _marked(meta, options),
        "spec": {
            "completions": 1,
            "parallelism": 1,
            "backoffLimit": RETRIES,
            "podReplacementPolicy": "Failed",  # never two pods in one run's directory
            "podFailurePolicy": {"rules": [disrupted, _final(component)]},
            "activeDeadlineSeconds": deadline,
            "ttlSecondsAfterFinished": KEPT_SECONDS,
            "template": template,
        },
    }


def _jobset(work: Workload, options: ManifestOptions, end: dict[str, str]) -> Manifest:
    """All nodes as one indexed Job, which fails with a lost pod, in a JobSet that then restarts all nodes."""
    meta = _meta(work, options, "train")
    if options.queue:
        meta["labels"] |= {"kueue.x-k8s.io/queue-name": options.queue}
    template = _training_pod(work, options, work.environment(f"{work.name}-train-0-0.{work.name}") | end)
    for variable in template["spec"]["containers"][0]["env"]:
        if variable["name"] == "PET_NODE_RANK":
            del variable["value"]
            variable["valueFrom"] = {"fieldRef": {"fieldPath": f"metadata.annotations['{INDEX}']"}}
    job = {
        "metadata": {"labels": _labels(work, "train")},
        "spec": {
            "completionMode": "Indexed",
            "completions": work.nodes,
            "parallelism": work.nodes,
            "backoffLimit": 0,
            "podReplacementPolicy": "Failed",
            "podFailurePolicy": {"rules": [_final("train")]},
            "activeDeadlineSeconds": _deadline(work, options)
            + GRACE_SECONDS,  # for this start only; the pods themselves keep the absolute end
            "template": template,
        },
    }
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": _marked(meta, options),
        "spec": {
            "network": {"enableDNSHostnames": True, "publishNotReadyAddresses": True},
            "failurePolicy": {
                "maxRestarts": RETRIES,
                "restartStrategy": "BlockingRecreate",
                "rules": [{"name": "final", "action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy", "DeadlineExceeded"]}],
            },
            "ttlSecondsAfterFinished": KEPT_SECONDS,
            "replicatedJobs": [{"name": "train", "replicas": 1, "template": job}],
        },
    }


def _marked(meta: Manifest, options: ManifestOptions) -> Manifest:
    if options.host_path:
        meta["annotations"] = {"nanochat/pod-security": "not restricted: hostPath"}
    return meta


# ---- volume, network and chat -----------------------------------------------------------------------------------


def _claim(work: Workload, options: ManifestOptions) -> Manifest:
    """The volume of the data directory, 1.5 times the plan's size, and ReadWriteMany if several pods share it."""
    size = options.storage or f"{max(round(1.5 * work.plan.disk_bytes / 2**30), 10)}Gi"
    spec: Manifest = {
        "accessModes": ["ReadWriteMany" if work.nodes > 1 or options.chat else "ReadWriteOnce"],
        "resources": {"requests": {"storage": size}},
    }
    if options.storage_class:
        spec["storageClassName"] = options.storage_class
    meta = _meta(work, options, "data")
    return {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": meta, "spec": spec}


def _training_policy(work: Workload, options: ManifestOptions) -> Manifest:
    """A policy that allows connections to training pods only from each other, because their ports need no password."""
    pods = {INSTANCE: work.name, COMPONENT: "train"}
    return network.ingress_policy(_meta(work, options, "train"), pods, network.among_themselves(pods) if work.nodes > 1 else [])


def _chat(work: Workload, options: ManifestOptions) -> list[Manifest]:
    """The chat on a CPU beside the run: it shows the run's progress, and answers when there is a checkpoint."""
    name = name_of(work, "chat")
    hosts = (*network.service_names(name, options.namespace), *options.chat_hosts)
    arguments = ["serve", "--host", "0.0.0.0", "--port", str(CHAT_PORT)]
    arguments += [word for host in hosts for word in ("--allow-host", host)] + ["--device", "cpu"]
    template = _pod(work, options, "chat", arguments, {"NANOCHAT_BASE_DIR": DATA, "PYTHONUNBUFFERED": "1"}, CHAT)
    template["spec"]["restartPolicy"] = "Always"
    container = template["spec"]["containers"][0]
    key = {"name": options.chat_secret or f"{name}-key", "key": "api-key"}
    container["env"].append({"name": "NANOCHAT_API_KEY", "valueFrom": {"secretKeyRef": key}})
    container["env"] += [] if options.namespace else [network.namespace_variable()]
    container["ports"] = [{"name": "http", "containerPort": CHAT_PORT}]
    for kind, path, failures in (("startupProbe", "/healthz", 60), ("livenessProbe", "/healthz", 3), ("readinessProbe", "/healthz", 3)):
        container[kind] = {
            "httpGet": {"path": path, "port": "http"},
            "periodSeconds": 10,
            "timeoutSeconds": 5,
            "failureThreshold": failures,
        }
    labels = {INSTANCE: work.name, COMPONENT: "chat"}
    deployment = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": _marked(_meta(work, options, "chat"), options),
        "spec": {"replicas": 1, "strategy": {"type": "Recreate"}, "selector": {"matchLabels": labels}, "template": template},
    }
    ports = [{"name": "http", "port": 80, "targetPort": "http"}]
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": _meta(work, options, "chat"),
        "spec": {"selector": labels, "ports": ports},
    }
    rules = network.at_port(CHAT_PORT, from_outside=bool(options.chat_hosts))
    return [*([network.ingress_policy(_meta(work, options, "chat"), labels, rules)] if options.network_policy else []), deployment, service]


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:  # write repeated values in full
        return True


def to_yaml(made: Sequence[Manifest]) -> Iterator[str]:
    """Each object as a YAML document."""
    for one in made:
        yield "---\n" + yaml.dump(one, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)
