"""A run comes home from a cluster: the real kubectl against a server of our own; what `kubectl exec` would run in the pod runs here."""

import os
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from nanochat.cloud.fetch import _run_of, fetch
from nanochat.cloud.kubectl import Kubectl
from nanochat.cloud.kubernetes import ManifestOptions, manifests
from nanochat.cloud.volumes import require_shared
from nanochat.cloud.workload import workload
from nanochat.errors import DataError, NanochatError, PreflightError, UsageError
from tests.cloud.fake_kubernetes import FakeKubernetes
from tests.cloud.test_kubectl import NAME, ROOT, cluster, made, submit, tool
from tests.runs.test_archive import content, trained

__all__ = ["cluster", "trained"]  # fixtures
pytestmark = [
    pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed"),
    pytest.mark.long,
]

# `kubectl exec POD -- COMMAND`: the command with the data directory of the cluster; everything else is kubectl's.
SHIM = """#!/bin/sh
case " $* " in
*" exec "*)
    while [ "$1" != -- ]; do shift; done
    shift 2
    cd {root} && NANOCHAT_BASE_DIR={data} exec {python} -m nanochat "$@" {cut} ;;
*) exec {kubectl} "$@" ;;
esac
"""


@pytest.fixture
def there(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The data directory of the pod, with a run; a new one here."""
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tmp_path / "here"))
    install(tmp_path, trained / "part", monkeypatch)
    return trained / "part"


def install(tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch, cut: str = "") -> None:
    kubectl = shutil.which("kubectl", path=os.environ["PATH"].replace(f"{tmp_path}/bin:", ""))
    (tmp_path / "bin").mkdir(exist_ok=True)
    path = tmp_path / "bin" / "kubectl"
    path.write_text(SHIM.format(root=ROOT, data=data, python=sys.executable, kubectl=kubectl, cut=cut))
    path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")


def pods(cluster: FakeKubernetes) -> list[str]:
    return [name for plural, name in cluster.objects if plural == "pods" and "-fetch-" in name]


def test_a_run_comes_home(cluster: FakeKubernetes, there: Path, tmp_path: Path) -> None:
    submit()
    posted: list[dict[str, Any]] = []
    remove = cluster.remove
    cluster.remove = lambda plural, name: (posted.append(cluster.objects[plural, name]), remove(plural, name))[1]  # type: ignore[method-assign]
    packed = fetch(tool(), NAME, run="tiny", poll=0.05)
    assert packed.steps == {"base": 4}
    assert content(tmp_path / "here" / "runs") == content(there / "runs")
    assert pods(cluster) == [] and not list((tmp_path / "here").glob(".tmp-*"))
    (pod,) = posted
    job = cluster.objects["jobs", NAME]["spec"]["template"]["spec"]
    assert pod["spec"]["containers"][0]["image"] == job["containers"][0]["image"]
    assert pod["spec"]["volumes"][0] == job["volumes"][0] and pod["spec"]["securityContext"] == job["securityContext"]
    assert "nvidia.com/gpu" not in str(pod["spec"]["containers"][0]["resources"]) and pod["spec"]["activeDeadlineSeconds"]
    with pytest.raises(UsageError, match="exists here already"):
        fetch(tool(), NAME, run="tiny", poll=0.05)


def test_a_connection_that_breaks_leaves_nothing(
    cluster: FakeKubernetes, there: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    submit()
    install(tmp_path, there, monkeypatch, cut="| head -c 30000")
    with pytest.raises((DataError, NanochatError)):
        fetch(tool(), NAME, run="tiny", poll=0.05)
    assert not (tmp_path / "here" / "runs" / "tiny").exists() and pods(cluster) == []
    assert not list((tmp_path / "here").glob(".tmp-*"))


def test_what_is_not_there_is_told(cluster: FakeKubernetes, there: Path) -> None:
    with pytest.raises(UsageError, match="no job 'nanochat-h100x8'") as caught:
        fetch(tool(), NAME, poll=0.05)
    assert "--image" in caught.value.hint
    submit()
    with pytest.raises(NanochatError, match="no run 'h100x8'"):  # the pod's own words
        fetch(tool(), NAME, poll=0.05)
    cluster.pod_status = {"phase": "Failed"}
    with pytest.raises(PreflightError, match=r"did not start \(Failed") as caught2:
        fetch(tool(), NAME, run="tiny", poll=0.05)
    assert "ReadWriteOnce" in caught2.value.hint and pods(cluster) == []


@pytest.mark.parametrize(
    ("arguments", "run"),
    [
        (["--profile", "cpu"], "cpu"),
        (["--profile=cpu", "--trial"], "cpu-trial"),
        (["--profile", "cpu", "--run=mine"], "mine"),
        (["--run", "mine", "--profile", "cpu"], "mine"),
        ([], "x"),
    ],
)
def test_the_name_of_the_run(arguments: list[str], run: str) -> None:
    assert _run_of({"containers": [{"args": ["train", *arguments]}]}, "nanochat-x") == run


# ---- volumes of several nodes


@pytest.mark.parametrize("nodes", [1, 2])
def test_a_class_for_one_node_is_refused_before_the_first_pod(cluster: FakeKubernetes, nodes: int) -> None:
    cluster.storage_class("fast", "ebs.csi.aws.com", default=True)
    cluster.storage_class("shared", "nfs.csi.k8s.io")
    asked = manifests(workload("i:1", "", "h100x8", False, [], nodes), ManifestOptions())
    if nodes == 1:
        require_shared(tool(), asked)
    else:
        with pytest.raises(PreflightError, match=r"fast \(ebs\.csi\.aws\.com\) has no volumes for several nodes") as caught:
            require_shared(tool(), asked)
        assert "--storage-class (shared)" in caught.value.hint
    require_shared(tool(), made(nodes, storage_class="shared"))
    with pytest.raises(PreflightError, match="no storage class none"):
        require_shared(tool(), made(2, storage_class="none"))
    assert not [path for method, path in cluster.requests if method == "POST"]


def test_where_classes_cannot_be_read_the_run_begins(cluster: FakeKubernetes, capsys: pytest.CaptureFixture[str]) -> None:
    cluster.fault("GET .*/storageclasses", (403, "Forbidden"))
    require_shared(tool(), made(2))
    assert "cannot be read" in capsys.readouterr().err


def test_a_claim_for_one_node(cluster: FakeKubernetes) -> None:
    spec = {"accessModes": ["ReadWriteOnce"]}
    cluster.objects["persistentvolumeclaims", "mine"] = {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": "mine", "namespace": "default"},
        "spec": spec,
    }
    require_shared(Kubectl(pause=0.01), made(claim="mine"), "mine")
    with pytest.raises(PreflightError, match="access mode ReadWriteOnce, and several pods need ReadWriteMany"):
        require_shared(tool(), made(2, claim="mine"), "mine")
    spec["accessModes"].append("ReadWriteMany")
    require_shared(tool(), made(2, claim="mine"), "mine")
