"""Check of a cluster's volumes before the first pod: several pods on one volume need an access mode that the storage can serve."""

import json
from collections.abc import Sequence

from nanochat.cloud.kubectl import Kubectl
from nanochat.cloud.kubernetes import Manifest
from nanochat.console import log
from nanochat.errors import NanochatError, PreflightError

SHARED = "ReadWriteMany"
DEFAULT = "storageclass.kubernetes.io/is-default-class"
# Drivers of block devices, which one node at a time can mount. (Each driver's own documentation.)
ONE_NODE = (
    *("ebs.csi.aws.com", "kubernetes.io/aws-ebs", "pd.csi.storage.gke.io", "kubernetes.io/gce-pd", "disk.csi.azure.com"),
    *("kubernetes.io/azure-disk", "rancher.io/local-path", "kubernetes.io/no-provisioner", "dobs.csi.digitalocean.com"),
    *("csi.hetzner.cloud", "linodebs.csi.linode.com", "block.csi.vultr.com", "openebs.io/local", "topolvm.io", "k8s.io/minikube-hostpath"),
)


def require_shared(kubectl: Kubectl, made: Sequence[Manifest], claim: str = "") -> None:
    """Raise PreflightError if several pods share a volume that only one node can mount, as far as the cluster says.

    `made` are all manifests of the run, `claim` the name of an existing claim if one is used instead of a new one.
    """
    if claim:
        if sum(one["kind"] in ("JobSet", "Deployment") for one in made):
            modes = json.loads(kubectl.run("get", "persistentvolumeclaim", claim, "-o", "json"))["spec"].get("accessModes", [])
            if SHARED not in modes:
                raise PreflightError(
                    f"the claim {claim} has the access mode {', '.join(modes)}, and several pods need {SHARED}",
                    "use a claim with ReadWriteMany, or one node without --chat",
                )
        return
    for one in made:
        if one["kind"] == "PersistentVolumeClaim" and SHARED in one["spec"]["accessModes"]:
            _require_class(kubectl, str(one["spec"].get("storageClassName", "")))


def _require_class(kubectl: Kubectl, name: str) -> None:
    """Raise PreflightError unless the storage class `name` ("": the default one) may have volumes for several nodes."""
    try:
        classes = json.loads(kubectl.run("get", "storageclass", "-o", "json"))["items"]
    except NanochatError:
        log(f"storage classes cannot be read here: whether {name or 'the default one'} has {SHARED} volumes shows when the pods start")
        return
    chosen = [each for each in classes if (each["metadata"]["name"] == name if name else _is_default(each))]
    others = ", ".join(each["metadata"]["name"] for each in classes if each.get("provisioner") not in ONE_NODE)
    hint = f"choose another with --storage-class ({others})" if others else "ask for a class with ReadWriteMany, such as NFS or CephFS"
    if not chosen:
        raise PreflightError(f"the cluster has no storage class {name}" if name else "the cluster has no default storage class", hint)
    if chosen[0].get("provisioner") in ONE_NODE:
        used, driver = chosen[0]["metadata"]["name"], chosen[0]["provisioner"]
        raise PreflightError(f"the storage class {used} ({driver}) has no volumes for several nodes, and this run needs {SHARED}", hint)


def _is_default(storage_class: Manifest) -> bool:
    return str(storage_class["metadata"].get("annotations", {}).get(DEFAULT)) == "true"
