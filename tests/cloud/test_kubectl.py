"""The real kubectl, through our door, against an API server of our own: apply, wait, follow, show, delete, and every fault."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from nanochat.cloud import kubectl
from nanochat.cloud.absolute_end import end_of
from nanochat.cloud.kubectl import Kubectl
from nanochat.cloud.kubernetes import ManifestOptions, manifests
from nanochat.cloud.workload import workload
from nanochat.errors import NanochatError, PreflightError, UsageError
from tests.cloud.fake_kubernetes import FakeKubernetes, serving

ROOT = Path(__file__).resolve().parents[2]
pytestmark = [
    pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed"),
    pytest.mark.long,
]
NAME = "nanochat-h100x8"


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeKubernetes]:
    with serving() as (fake, config):
        (tmp_path / "config").write_text(yaml.safe_dump(config))
        monkeypatch.setenv("KUBECONFIG", str(tmp_path / "config"))
        monkeypatch.setenv("HOME", str(tmp_path))  # kubectl keeps what it discovered there
        fake.complete = {f"{NAME}-download"}
        yield fake


def made(nodes: int = 1, **options: Any) -> list[dict[str, Any]]:
    return manifests(workload("i:1", "", "h100x8", False, [], nodes), ManifestOptions(**options))


def tool() -> Kubectl:
    return Kubectl(pause=0.01)


def submit(nodes: int = 1, **options: Any) -> None:
    kubectl.submit(tool(), NAME, made(nodes, **options), poll=0.05)


@pytest.mark.parametrize("nodes", [1, 2])
def test_submit_follow_show_cancel(cluster: FakeKubernetes, nodes: int, capfd: pytest.CaptureFixture[str]) -> None:
    submit(nodes, chat=True)
    posted = [path.rpartition("/")[2] for method, path in cluster.requests if method == "POST"]
    training, chat = ["networkpolicies", "jobs" if nodes == 1 else "jobsets"], ["networkpolicies", "deployments", "services"]
    assert posted == ["persistentvolumeclaims", "jobs", *training, *chat]
    assert tool().outcome(NAME, "chat") == ("running", "")
    cluster.fault("GET .*/log", *[(400, "BadRequest", "container train is waiting to start: ImagePullBackOff")] * 2)
    cluster.logs = ["step \x1b[2J1\u202e\nstep 2\n", "step 3\n", "step 4\nstep 5\n", ""]
    assert tool().logs(NAME, "train", follow=True, poll=0.05) == 0
    out, err = capfd.readouterr()
    assert err.count("waiting to start: ImagePullBackOff") == 1
    assert out.splitlines() == [f"[pod/{NAME}-0/train] step {step}" for step in ("[2J1", 2, 3, 4, 5)]  # cut three times: each line once
    rows = {(row["kind"], row["name"]): row["state"] for row in tool().status(NAME)}
    assert rows["JobSet" if nodes == 2 else "Job", NAME] == "Complete"
    tool().cancel(NAME)
    assert [kind for kind, _ in cluster.objects] == ["persistentvolumeclaims"]
    assert "kept, with the checkpoints" in capfd.readouterr().err
    with pytest.raises(UsageError, match="there is no run"):
        tool().status("another")


@pytest.mark.parametrize("watches", [["cut", "cut", 0.1], [2.5, 0.1]], ids=["cut", "longer than a request may take"])
def test_cancel_waits_until_the_pods_have_saved(cluster: FakeKubernetes, watches: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """kubectl watches what is being deleted; a watch that breaks, or is over before, is begun again."""
    monkeypatch.setattr(kubectl, "REQUEST_TIMEOUT", "1s")
    submit()
    cluster.watches = list(watches)
    tool().cancel(NAME)
    assert [kind for kind, _ in cluster.objects] == ["persistentvolumeclaims"] and cluster.watches == []
    assert len([1 for method, _ in cluster.requests if method == "WATCH"]) >= len(watches)


def test_download_comes_first(cluster: FakeKubernetes) -> None:
    cluster.complete = set()
    cluster.fault("GET /apis/batch/v1/namespaces/default/jobs", *[(500, "InternalError")] * 2)

    def fail(_: float) -> None:
        assert ("jobs", NAME) not in cluster.objects  # no GPU is asked for yet
        cluster.finish(f"{NAME}-download", "Failed", 4, "PodFailurePolicy")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kubectl.time, "sleep", fail)
        with pytest.raises(NanochatError, match=r"download job .* failed: PodFailurePolicy"):
            submit()
    assert ("jobs", NAME) not in cluster.objects


def test_submitted_twice_is_one_training(cluster: FakeKubernetes) -> None:
    submit()
    submit()
    assert len([1 for method, path in cluster.requests if method == "POST" and path.endswith("/jobs")]) == 2  # download and training
    cluster.finish(NAME, "Failed", 5, "PodFailurePolicy")
    with pytest.raises(UsageError, match="has ended already"):
        submit()


@pytest.mark.parametrize("nodes", [1, 2])
def test_submitted_again_later_keeps_its_end(cluster: FakeKubernetes, nodes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A Job cannot be changed, and a running training's end is not moved; the download's time is not taken off the training's."""
    cluster.complete = set()
    began, real = kubectl.time.time(), kubectl.time.time

    def fetched(_: float) -> None:
        monkeypatch.setattr(kubectl.time, "time", lambda: real() + 5000)
        cluster.complete = {f"{NAME}-download"}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kubectl.time, "sleep", fetched)
        submit(nodes, max_hours=1)
    plural = "jobs" if nodes == 1 else "jobsets"
    end = int(end_of([cluster.objects[plural, NAME]]))
    assert abs(end - began - 3600 - 5000) < 60
    monkeypatch.setattr(kubectl.time, "time", lambda: real() + 6000)
    submit(nodes, max_hours=1)
    assert int(end_of([cluster.objects[plural, NAME]])) == end


QUOTA = 'pods "x" is forbidden: exceeded quota: team, requested: limits.memory=256Gi, used: limits.memory=0, limited: limits.memory=64Gi'


@pytest.mark.parametrize("nodes", [1, 2])
def test_status_shows_a_quotas_refusal(cluster: FakeKubernetes, nodes: int, capfd: pytest.CaptureFixture[str]) -> None:
    """There is no pod then, and the Job itself says nothing: the event alone does. Control characters of a message are not printed."""
    cluster.quota, cluster.complete = True, set()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kubectl.time, "sleep", lambda _: cluster.complete.add(f"{NAME}-download"))
        submit(nodes, chat=True)
    kind = "Job" if nodes == 1 else "JobSet"
    cluster.warn(kind, NAME, "FailedCreate", "an older one", at="2026-11-23T00:00:00Z")
    cluster.warn(kind, NAME, "FailedCreate", f"Error creating: {QUOTA}\n\x1b[31m\u202e👩‍💻")
    cluster.warn(kind, NAME, "FailedCreate", "of another object of this name", at="2026-11-25T00:00:00Z", uid="gone")
    cluster.warn("Job", "another", "FailedCreate", "somebody else's")
    cluster.warn("PersistentVolumeClaim", f"{NAME}-data", "ProvisioningFailed", "no such storage class")
    labels = cluster.objects["deployments", f"{NAME}-chat"]["metadata"]["labels"]
    meta = {"name": f"{NAME}-chat-5d", "namespace": "default", "labels": labels}
    cluster.objects["replicasets", meta["name"]] = {
        "apiVersion": "apps/v1",
        "kind": "ReplicaSet",
        "metadata": meta,
        "spec": {"replicas": 1},
    }
    cluster.warn("ReplicaSet", meta["name"], "FailedCreate", QUOTA)
    rows = {(row["kind"], row["name"]): row for row in tool().status(NAME)}
    refused = rows[kind, NAME]
    assert refused["state"] == "FailedCreate" and refused["why"] == f"Error creating: {QUOTA} [31m👩‍💻" and "--memory" in refused["hint"]
    assert rows["ReplicaSet", meta["name"]]["why"] == QUOTA
    assert rows["PersistentVolumeClaim", f"{NAME}-data"]["why"] == "no such storage class"
    told = tool()
    for _ in range(2):
        told.tell(NAME, "train")
    assert capfd.readouterr().err.count("exceeded quota") == 1


def test_old_warnings_and_forbidden_events(cluster: FakeKubernetes) -> None:
    """What runs is not accused of what was; whoever may not read events sees the rest."""
    submit()
    cluster.complete = set()
    cluster.warn("Pod", f"{NAME}-0", "FailedScheduling", "0/3 nodes are available")
    assert all(row["why"] == "" for row in tool().status(NAME))
    cluster.objects["pods", f"{NAME}-0"]["status"] = {"phase": "Pending"}
    assert {row["name"]: row["why"] for row in tool().status(NAME)}[f"{NAME}-0"] == "0/3 nodes are available"
    cluster.fault("GET .*/events", (403, "Forbidden", "events is forbidden"))
    assert {row["name"]: row["why"] for row in tool().status(NAME)}[f"{NAME}-0"] == ""


@pytest.mark.parametrize(
    ("status", "state"),
    [
        ({"phase": "Pending", "containerStatuses": [{"state": {"waiting": {"reason": "ImagePullBackOff"}}}]}, "ImagePullBackOff"),
        ({"phase": "Pending", "conditions": [{"type": "PodScheduled", "status": "False", "reason": "Unschedulable"}]}, "Unschedulable"),
        ({"phase": "Running", "conditions": [{"type": "PodScheduled", "status": "True"}]}, "Running"),
    ],
)
def test_status_says_what_a_pod_waits_for(cluster: FakeKubernetes, status: dict[str, Any], state: str) -> None:
    submit()
    cluster.complete = set()
    cluster.objects["pods", f"{NAME}-0"]["status"] = status
    assert {row["name"]: row["state"] for row in tool().status(NAME)}[f"{NAME}-0"] == state


def test_exit_code_is_the_containers(cluster: FakeKubernetes, capfd: pytest.CaptureFixture[str]) -> None:
    submit()
    cluster.logs, cluster.log_outcome = ["loss nan\n"], ("Failed", 5)
    assert tool().logs(NAME, "train", follow=True, poll=0.05) == 5
    assert "failed: PodFailurePolicy" in capfd.readouterr().err


@pytest.mark.parametrize("fault", [(409, "Conflict"), (500, "InternalError"), (503, "ServiceUnavailable"), "cut"])
def test_passing_faults_are_outlived(cluster: FakeKubernetes, fault: Any) -> None:
    cluster.fault("POST /apis/batch/v1/namespaces/default/jobs", fault)
    submit()
    assert ("jobs", NAME) in cluster.objects


@pytest.mark.parametrize(
    ("fault", "hint"),
    [
        ((401, "Unauthorized", "Unauthorized"), "log in"),
        ((403, "Forbidden", "jobs is forbidden"), "administrator"),
        ((422, "Invalid", "Job is invalid: field is immutable"), "another --name"),
        ((409, "Conflict"), ""),
        ((500, "InternalError"), ""),
        ("cut", ""),
    ],
)
def test_lasting_faults_end_in_a_hint(cluster: FakeKubernetes, fault: Any, hint: str) -> None:
    cluster.fault("POST /apis/batch/v1/namespaces/default/jobs", *[fault] * 50)
    with pytest.raises(NanochatError) as caught:
        submit()
    assert caught.value.message.startswith("kubectl apply: ") and hint in caught.value.hint


def test_cluster_without_jobset(cluster: FakeKubernetes) -> None:
    del cluster.groups["jobset.x-k8s.io/v1alpha2"]
    submit()
    assert tool().outcome(NAME, "train") == ("running", "")
    tool().cancel(NAME)
    with pytest.raises(NanochatError) as caught:
        submit(2)
    assert "JobSet" in caught.value.hint


def test_no_cluster_and_no_kubectl(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(PreflightError, match="kubectl is not installed"):
        Kubectl()


def test_commands(cluster: FakeKubernetes) -> None:
    """As a user types them."""

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "entrypoint.py", "submit", *arguments]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False, env=dict(os.environ))

    cluster.logs = ["step 1\n"]
    done = run("k8s", "--image", "i:1")
    assert done.returncode == 0 and "step 1" in done.stdout, done.stderr
    assert f"Job                    {NAME} " in run("status", NAME).stdout
    assert run("cancel", NAME).returncode == 0
    assert [kind for kind, _ in cluster.objects] == ["persistentvolumeclaims"]
    missing = run("status", NAME + "x")
    assert missing.returncode == 2 and missing.stderr.splitlines()[-1].startswith("hint: ")
