"""The manifests: the strict schemas of three Kubernetes versions, JobSet's own, the restricted profile, and what a patch does."""

import itertools
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from nanochat.cloud import kubernetes
from nanochat.cloud.kubernetes import ManifestOptions, manifests, to_yaml
from nanochat.cloud.manifest_patch import merge, patched
from nanochat.cloud.network import checked_host
from nanochat.cloud.workload import FINAL_CODES, GRACE_SECONDS, Workload, workload
from nanochat.config import PROFILE_NAMES
from nanochat.errors import UsageError
from nanochat.train.deadline import VARIABLE as END

ROOT = Path(__file__).resolve().parents[2]
VERSIONS = ("1.35", "1.36", "1.37")
RICH = ManifestOptions(
    namespace="team",
    gpu_type="NVIDIA-H100-80GB-HBM3",
    node_selector={"pool": "gpus"},
    queue="training",
    pull_secrets=("registry",),
    secrets=("hf",),
    environment={"HF_ENDPOINT": "https://mirror.example.org"},
    storage_class="fast",
    max_hours=10,
    chat=True,
    chat_hosts=("chat.example.org",),
    cpus="24",
    memory="200Gi",
)


def job(profile: str, nodes: int = 1, trial: bool = False) -> Workload:
    arguments = ["--device_batch_size=1", "--total_batch_size=1024"] if profile == "cpu" else []
    return workload("registry.example.org/nanochat:1", "", profile, trial, arguments, nodes)


KINDS = [
    (profile, nodes, trial)
    for profile in PROFILE_NAMES
    for nodes in (1, 2)
    for trial in (False, True)
    if not trial or profile in ("cpu", "h100x8")
]


def pods(made: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Every pod template in the manifests."""
    found = []
    for one in made:
        if one["kind"] == "JobSet":
            found += [part["template"]["spec"]["template"] for part in one["spec"]["replicatedJobs"]]
        elif "template" in one["spec"]:
            found.append(one["spec"]["template"])
    return found


def violations(pod: dict[str, Any]) -> list[str]:
    """What the restricted pod security profile has against a pod: each of its controls."""
    spec, found = pod["spec"], []
    allowed = {"configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret"}
    found += [f"volume {volume['name']}" for volume in spec.get("volumes", []) if not set(volume) - {"name"} <= allowed]
    found += [key for key in ("hostNetwork", "hostPID", "hostIPC") if spec.get(key)]
    own = spec.get("securityContext", {})
    found += [key for key in ("sysctls", "windowsOptions", "seLinuxOptions", "appArmorProfile") if key in own]
    for container in spec["containers"] + spec.get("initContainers", []):
        context = container.get("securityContext", {})
        both = own | context
        found += ["runAsNonRoot"] * (both.get("runAsNonRoot") is not True) + ["runAsUser"] * (both.get("runAsUser") == 0)
        found += ["seccomp"] * (both.get("seccompProfile", {}).get("type") not in ("RuntimeDefault", "Localhost"))
        found += ["escalation"] * (context.get("allowPrivilegeEscalation") is not False) + ["privileged"] * bool(context.get("privileged"))
        capabilities = context.get("capabilities", {})
        found += ["capabilities"] * (capabilities.get("drop") != ["ALL"] or bool(set(capabilities.get("add", [])) - {"NET_BIND_SERVICE"}))
        found += ["hostPort"] * any("hostPort" in port for port in container.get("ports", []))
        found += ["procMount"] * (context.get("procMount", "Default") != "Default")
    return found


@pytest.mark.long
@pytest.mark.parametrize("options", [ManifestOptions(), RICH, ManifestOptions(host_path="/mnt/data")], ids=["plain", "rich", "host path"])
@pytest.mark.parametrize(("profile", "nodes", "trial"), KINDS)
def test_strict_schemas_and_the_restricted_profile(profile: str, nodes: int, trial: bool, options: ManifestOptions) -> None:
    validate = pytest.importorskip("kubernetes_validate").validate
    made = list(yaml.safe_load_all("".join(to_yaml(manifests(job(profile, nodes, trial), options)))))
    for version in VERSIONS:
        for one in made:
            if one["kind"] != "JobSet":
                validate(one, version, strict=True)
        for pod in pods(made):  # the pods of a JobSet too
            meta = {"name": "p", "namespace": "n"} | pod["metadata"]
            validate({"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": pod["spec"]}, version, strict=True)
    found = [fault for pod in pods(made) for fault in violations(pod)]
    assert found == (["volume data"] * len(pods(made)) if options.host_path else [])
    marked = [one["kind"] for one in made if "not restricted" in str(one["metadata"].get("annotations"))]
    assert bool(marked) == bool(options.host_path)


def strict(schema: Any) -> Any:
    """A CRD's schema that refuses unknown fields, as the API server prunes them."""
    if isinstance(schema, list):
        return [strict(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    made = {key: strict(part) for key, part in schema.items()}
    if isinstance(schema.get("properties"), dict) and not schema.get("x-kubernetes-preserve-unknown-fields"):
        made.setdefault("additionalProperties", False)
    return made


@pytest.mark.skipif("NANOCHAT_SCHEMAS" not in os.environ, reason="NANOCHAT_SCHEMAS names no folder of published schemas")
@pytest.mark.parametrize("options", [ManifestOptions(), RICH, ManifestOptions(host_path="/mnt")], ids=["plain", "rich", "host path"])
@pytest.mark.parametrize("profile", PROFILE_NAMES)
def test_jobsets_meet_their_own_schema(profile: str, options: ManifestOptions) -> None:
    import jsonschema_rs

    text = Path(os.environ["NANOCHAT_SCHEMAS"], "jobset-crd.yaml").read_text(encoding="utf-8")
    (version,) = [one for one in yaml.safe_load(text)["spec"]["versions"] if one["name"] == "v1alpha2"]
    schema = strict(version["schema"]["openAPIV3Schema"])
    schema["properties"]["metadata"] = {"type": "object"}
    validator = jsonschema_rs.Draft202012Validator(schema)
    (body,) = [one for one in manifests(job(profile, 2), options) if one["kind"] == "JobSet"]
    assert [error.message for error in validator.iter_errors(body)] == []
    body["spec"]["replicatedJobs"][0]["unknown"] = 1
    assert not validator.is_valid(body)


def test_exit_codes_decide() -> None:
    """Final codes end a Job whatever its retries; a pod that the cluster took is not counted; in a set a final code ends the set."""
    plain = manifests(job("h100x8"), ManifestOptions())[-1]["spec"]
    rules = plain["podFailurePolicy"]["rules"]
    assert [rule["action"] for rule in rules] == ["Ignore", "FailJob"]
    assert rules[1]["onExitCodes"]["values"] == list(FINAL_CODES) == [2, 3, 4, 5, 6]
    assert plain["backoffLimit"] > 0 and plain["activeDeadlineSeconds"] > 0
    whole = manifests(job("h100x8", 2), ManifestOptions())[-1]["spec"]
    inner = whole["replicatedJobs"][0]["template"]["spec"]
    assert inner["backoffLimit"] == 0 and whole["failurePolicy"]["maxRestarts"] > 0
    assert inner["podFailurePolicy"]["rules"] == [rules[1]]
    assert whole["failurePolicy"]["rules"][0]["action"] == "FailJobSet"


def test_what_a_training_pod_gets() -> None:
    work = job("h100x8")
    made = manifests(work, RICH)
    assert [(one["kind"], one["metadata"]["name"]) for one in made] == [
        ("PersistentVolumeClaim", "nanochat-h100x8-data"),
        ("Job", "nanochat-h100x8-download"),
        ("NetworkPolicy", "nanochat-h100x8"),
        ("Job", "nanochat-h100x8"),
        ("NetworkPolicy", "nanochat-h100x8-chat"),
        ("Deployment", "nanochat-h100x8-chat"),
        ("Service", "nanochat-h100x8-chat"),
    ]
    download, train = (one["spec"]["template"]["spec"] for one in (made[1], made[3]))
    assert "nvidia.com/gpu" not in str(download) and tuple(download["containers"][0]["args"]) == work.download
    container = train["containers"][0]
    assert tuple(container["args"]) == work.command and "command" not in container  # the image's own entrypoint
    assert container["resources"]["limits"] == {"cpu": "24", "memory": "200Gi", "nvidia.com/gpu": "8"}
    assert container["resources"]["requests"] == {"cpu": "24", "memory": "200Gi"}
    assert train["nodeSelector"] == {"pool": "gpus", "nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3"}
    assert train["terminationGracePeriodSeconds"] == GRACE_SECONDS and "/dev/shm" in str(container["volumeMounts"])
    assert made[3]["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "training"
    assert train["imagePullSecrets"] == [{"name": "registry"}] and container["envFrom"] == [{"secretRef": {"name": "hf"}}]
    assert len(manifests(job("cpu"), ManifestOptions(network_policy=False))) == 2  # nothing to download


def test_environment_is_the_workloads() -> None:
    """What the containers get is what workload.environment says, node for node."""
    work = job("h100x8", 2)
    (pod,) = pods(manifests(work, ManifestOptions(claim="c"))[1:])  # without the download's
    made = {one["name"]: one.get("value") for one in pod["spec"]["containers"][0]["env"]}
    end = made.pop(END)
    assert made == work.environment(f"{work.name}-train-0-0.{work.name}") | {"PET_NODE_RANK": None}
    assert str(end).isdigit()
    assert "job-completion-index" in str(pod["spec"]["containers"][0]["env"])


@pytest.mark.parametrize("options", [ManifestOptions(chat=True), RICH], ids=["plain", "rich"])
@pytest.mark.parametrize(("profile", "nodes"), [("cpu", 1), ("cpu", 2), ("rtx4090", 1), ("h100x8", 1), ("h100x8", 2)])
def test_every_container_has_what_a_quota_may_demand(profile: str, nodes: int, options: ManifestOptions) -> None:
    """CPU and memory, request and limit, on every container; and no container without a GPU sees those of its node."""
    for pod in pods(manifests(job(profile, nodes), options)):
        for container in pod["spec"].get("initContainers", []) + pod["spec"]["containers"]:
            requests, limits = container["resources"]["requests"], container["resources"]["limits"]
            for key in ("cpu", "memory"):
                assert 0 < amount(requests[key]) <= amount(limits[key]), container["name"]
            hidden = [one.get("value") for one in container["env"] if one["name"] == "NVIDIA_VISIBLE_DEVICES"]
            assert hidden == ([] if "nvidia.com/gpu" in limits else ["void"])
            assert len({one["name"] for one in container["env"]}) == len(container["env"])
        shared = [volume["emptyDir"] for volume in pod["spec"]["volumes"] if volume.get("emptyDir", {}).get("medium") == "Memory"]
        assert all(amount(one["sizeLimit"]) < amount(limits["memory"]) for one in shared)


def amount(text: str) -> float:
    return float(text.removesuffix("Gi"))


def test_what_the_user_sets_in_the_environment_comes_last() -> None:
    made = manifests(job("cpu"), ManifestOptions(environment={"NVIDIA_VISIBLE_DEVICES": "0"}))
    assert [one for one in pods(made)[0]["spec"]["containers"][0]["env"] if "NVIDIA" in one["name"]] == [
        {"name": "NVIDIA_VISIBLE_DEVICES", "value": "0"}
    ]


@pytest.mark.parametrize(("nodes", "max_hours", "queue"), [(1, 0, ""), (2, 0, ""), (1, 10, ""), (2, 10, "q"), (2, 0, "q")])
def test_deadline_is_absolute(nodes: int, max_hours: float, queue: str) -> None:
    """Fixed at submission, whatever is started anew later; Kubernetes' own limit leaves time to save. A queue is waited for by default."""
    work, now = job("h100x8", nodes), 1.79e9
    made = manifests(work, ManifestOptions(max_hours=max_hours, queue=queue), now)
    hours = max_hours or 2 * work.hours + 1
    (end,) = [one["value"] for pod in pods(made) for one in pod["spec"]["containers"][0]["env"] if one["name"] == END]
    waiting = 3600 * kubernetes.QUEUE_HOURS if queue and not max_hours else 0
    assert abs(int(end) - (now + 3600 * hours + waiting)) <= 1
    spec = made[-1]["spec"] if nodes == 1 else made[-1]["spec"]["replicatedJobs"][0]["template"]["spec"]
    assert abs(spec["activeDeadlineSeconds"] - 3600 * hours - GRACE_SECONDS) <= 1
    assert 3 in spec["podFailurePolicy"]["rules"][-1]["onExitCodes"]["values"]  # the code of a deadline that is reached


def reaches(policies: list[dict[str, Any]], sender: dict[str, str], target: dict[str, str], port: int) -> bool:
    """Whether NetworkPolicies let a pod with the labels `sender`, of the same namespace, connect to a port of a pod with `target`'s."""
    about = [one["spec"] for one in policies if one["spec"]["podSelector"]["matchLabels"].items() <= target.items()]
    rules = [rule for spec in about if "Ingress" in spec["policyTypes"] for rule in spec["ingress"]]
    return not about or any(
        ("ports" not in rule or port in [one["port"] for one in rule["ports"]])
        and (
            "from" not in rule
            or any("namespaceSelector" in peer or peer["podSelector"]["matchLabels"].items() <= sender.items() for peer in rule["from"])
        )
        for rule in rules
    )


@pytest.mark.parametrize("nodes", [1, 2])
def test_who_connects_to_what(nodes: int) -> None:
    """A training's pods are reached by one another alone, on whatever port; the chat by every pod, at its port alone."""
    made, other = manifests(job("cpu", nodes), ManifestOptions(chat=True)), manifests(job("h100x8", nodes), ManifestOptions(chat=True))
    policies = [one for one in made if one["kind"] == "NetworkPolicy"]
    (train, chat), strangers = (pod["metadata"]["labels"] for pod in pods(made)), [pod["metadata"]["labels"] for pod in pods(other)]
    for port in (29500, 40000):
        assert reaches(policies, train, train, port) == (nodes > 1)
        assert not any(reaches(policies, sender, train, port) for sender in [chat, {}, {"app": "x"}, *strangers])
    for sender in [train, chat, {}, *strangers]:
        assert reaches(policies, sender, chat, 8000) and not reaches(policies, sender, chat, 22)
    assert made.index(policies[0]) < [one["kind"] in ("Job", "JobSet") for one in made].index(True)  # before there is a pod
    assert not [one for one in manifests(job("cpu", nodes), ManifestOptions(network_policy=False)) if one["kind"] == "NetworkPolicy"]


def test_an_ingress_comes_from_anywhere() -> None:
    """A controller on the host network has the node's address, which no selector matches."""
    policies = [one["spec"] for one in manifests(job("cpu"), ManifestOptions(chat=True, chat_hosts=("c.example.org",)))][1:]
    (rule,) = next(spec["ingress"] for spec in policies if spec.get("ingress"))
    assert rule == {"ports": [{"protocol": "TCP", "port": 8000}]}


@pytest.mark.parametrize("namespace", ["", "team"])
def test_all_names_of_the_service_are_served(namespace: str) -> None:
    """With the very check of the server, as Kubernetes puts the pod's namespace into the arguments."""
    from nanochat.chat.middleware import Limits, SecurityMiddleware

    hosts = ("chat.example.org", "*.team.example.org")
    made = manifests(job("cpu"), ManifestOptions(namespace=namespace, chat=True, chat_hosts=hosts))
    (container,) = pods(made)[-1]["spec"]["containers"]
    variables = {one["name"]: one for one in container["env"]}
    if not namespace:
        assert variables["NANOCHAT_NAMESPACE"]["valueFrom"]["fieldRef"]["fieldPath"] == "metadata.namespace"
    arguments = [word.replace("$(NANOCHAT_NAMESPACE)", "team") for word in container["args"]]
    allowed = tuple(value for option, value in itertools.pairwise(arguments) if option == "--allow-host")
    server = SecurityMiddleware(None, Limits(allowed_hosts=allowed))
    name = made[-1]["metadata"]["name"]
    for host in (
        name,
        f"{name}:80",
        f"{name}.team",
        f"{name}.team.svc",
        f"{name}.team.svc.cluster.local",
        f"{name}.team.svc.cluster.local.",
    ):
        assert server._known(host), host
    assert server._known("chat.example.org") and server._known("a.team.example.org")
    for host in (f"{name}.other", f"{name}.team.example.com", "team.svc", "evil.example.org", f"{name}.team.svc.cluster.local.evil.org"):
        assert not server._known(host), host


@pytest.mark.parametrize("host", ["https://chat.example.org", "chat.example.org:443", "a b", "", "-x", "*", "x" * 300, "chat_1", "*.*.org"])
def test_no_host_name(host: str) -> None:
    with pytest.raises(UsageError, match="--chat-host") as caught:
        checked_host(host)
    assert len(caught.value.message) < 200 and checked_host(" Chat.Example.ORG. ") == "chat.example.org"


BASE = {
    "kind": "Job",
    "metadata": {"labels": {"a": "1", "b": "2"}},
    "spec": {"containers": [{"name": "x", "env": [{"name": "A", "value": "1"}]}]},
}


@pytest.mark.parametrize(
    ("patch", "path", "value"),
    [
        ({"metadata": {"labels": {"a": None, "c": "3"}}}, "metadata", {"labels": {"b": "2", "c": "3"}}),
        ({"metadata": {"labels": {"$patch": "replace", "z": "9"}}}, "metadata", {"labels": {"z": "9"}}),
        (
            {"spec": {"containers": [{"name": "x", "env": [{"name": "B", "value": "2"}]}]}},
            "spec",
            {"containers": [{"name": "x", "env": [{"name": "A", "value": "1"}, {"name": "B", "value": "2"}]}]},
        ),
        ({"spec": {"containers": [{"name": "x", "$patch": "delete"}, {"name": "y"}]}}, "spec", {"containers": [{"name": "y"}]}),
        (
            {"spec": {"tolerations": [{"key": "k"}]}},
            "spec",
            {"containers": BASE["spec"]["containers"], "tolerations": [{"key": "k"}]},
        ),
    ],
)
def test_strategic_merge(patch: dict[str, Any], path: str, value: Any) -> None:
    assert merge(BASE, patch)[path] == value


def test_patch_file(tmp_path: Path) -> None:
    file = tmp_path / "patch.yaml"
    file.write_text(
        "kind: Job\nmetadata: {name: nanochat-h100x8}\nspec: {backoffLimit: 3}\n---\n"
        "kind: PersistentVolumeClaim\nspec: {storageClassName: x}\n"
    )
    claim, download, _, train = patched(manifests(job("h100x8"), ManifestOptions()), file)
    assert (claim["spec"]["storageClassName"], train["spec"]["backoffLimit"]) == ("x", 3) and download["spec"]["backoffLimit"] > 3
    for text in ("kind: Pod", "spec: 1", "a: [", "- 1"):
        file.write_text(text)
        with pytest.raises(UsageError):
            patched(manifests(job("cpu"), ManifestOptions()), file)


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed")
def test_strategic_merge_is_kubectls(tmp_path: Path) -> None:
    """The same patch through kubectl's own strategic merge, offline."""
    before = manifests(job("h100x8"), RICH)[3]
    patch = {
        "metadata": {"labels": {"team": "a"}},
        "spec": {
            "backoffLimit": 4,
            "template": {
                "spec": {
                    "nodeSelector": {"zone": "z"},
                    "tolerations": [{"key": "t", "operator": "Exists"}],
                    "volumes": [{"name": "extra", "emptyDir": {}}, {"name": "tmp", "$patch": "delete"}],
                    "containers": [
                        {"name": "train", "env": [{"name": "A", "value": "1"}], "volumeMounts": [{"mountPath": "/x", "name": "extra"}]}
                    ],
                }
            },
        },
    }
    (tmp_path / "job.yaml").write_text("".join(to_yaml([before])))
    (tmp_path / "patch.yaml").write_text(yaml.safe_dump(patch))
    command = ["kubectl", "patch", "--local", "-f", "job.yaml", "--type=strategic", "--patch-file=patch.yaml", "-o", "yaml"]
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=True, env=os.environ | {"KUBECONFIG": "/dev/null"}
    )

    def ordered(value: Any) -> Any:
        if isinstance(value, dict):
            return {
                key: ordered(part)
                for key, part in sorted(value.items())
                if (key != "creationTimestamp" and part not in ({}, None)) or key == "emptyDir"
            }
        if isinstance(value, list):
            return sorted((ordered(part) for part in value), key=str)
        return value

    assert ordered(merge(before, patch)) == ordered(yaml.safe_load(done.stdout))


@pytest.mark.long
def test_dry_run_prints_yaml_and_asks_no_cluster() -> None:
    command = [
        sys.executable,
        "entrypoint.py",
        "submit",
        "k8s",
        "--image",
        "i@sha256:" + "0" * 64,
        "--dry-run",
        "--nodes",
        "2",
        "--depth=20",
    ]
    environment = os.environ | {"PATH": "/nonexistent", "KUBECONFIG": "/dev/null"}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True, env=environment)
    made = list(yaml.safe_load_all(done.stdout))
    assert [one["kind"] for one in made] == ["PersistentVolumeClaim", "Job", "NetworkPolicy", "JobSet"]
    assert "--depth=20" in pods(made)[1]["spec"]["containers"][0]["args"]
    assert kubernetes.name_of(workload("i", "", "h100x8", False, []), "download") in done.stderr
