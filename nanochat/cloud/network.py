"""The cluster network of a run: names of a Service, and network policies."""

import re
from typing import Any

from nanochat.errors import UsageError

NAMESPACE = "NANOCHAT_NAMESPACE"  # variable in a pod whose manifest has no namespace
_HOST = re.compile(r"(\*\.)?([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\.)*[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")


def service_names(name: str, namespace: str) -> tuple[str, ...]:
    """All names of a Service within a cluster; without a namespace, the one in the pod's environment is used.

    The last one has the default domain; on a cluster with another domain, add that name as a host.
    """
    own = f"{name}.{namespace or f'$({NAMESPACE})'}"  # Kubernetes substitutes the value in a container's arguments
    return (name, own, f"{own}.svc", f"{own}.svc.cluster.local")


def namespace_variable() -> dict[str, Any]:
    """The environment variable with a pod's namespace."""
    return {"name": NAMESPACE, "valueFrom": {"fieldRef": {"fieldPath": "metadata.namespace"}}}


def checked_host(host: str) -> str:
    """A host name for `serve --allow-host`, in lower case. Raises UsageError for other values, such as an address with a scheme."""
    name = host.strip().lower().rstrip(".")
    if len(name) > 253 or not _HOST.fullmatch(name):
        raise UsageError(f"--chat-host {host[:80]!r} is not a host name", "set it to a name such as chat.example.org or *.example.org")
    return name


def ingress_policy(meta: dict[str, Any], pods: dict[str, str], rules: list[dict[str, Any]]) -> dict[str, Any]:
    """A NetworkPolicy: pods with the labels `pods` accept only what `rules` allow. Outgoing connections are not restricted."""
    spec = {"podSelector": {"matchLabels": pods}, "policyTypes": ["Ingress"], "ingress": rules}
    return {"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": meta, "spec": spec}


def among_themselves(pods: dict[str, str]) -> list[dict[str, Any]]:
    """Rules that let pods with these labels connect to each other on all ports, because NCCL and Gloo choose ports at start-up."""
    return [{"from": [{"podSelector": {"matchLabels": pods}}]}]


def at_port(port: int, from_outside: bool) -> list[dict[str, Any]]:
    """Rules that let all pods of the cluster, or any address, connect to one TCP port; an Ingress may use a node's address."""
    ports = [{"protocol": "TCP", "port": port}]
    return [{"ports": ports} if from_outside else {"from": [{"namespaceSelector": {}}], "ports": ports}]
