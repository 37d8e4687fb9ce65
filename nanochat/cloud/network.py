"""A training's place on a cluster's network: the names of a Service, and which pods may connect to which."""

import re
from typing import Any

from nanochat.errors import UsageError

NAMESPACE = "NANOCHAT_NAMESPACE"  # in a pod whose manifest does not know its namespace
_HOST = re.compile(r"(\*\.)?([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\.)*[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")


def service_names(name: str, namespace: str) -> tuple[str, ...]:
    """All names by which pods of a cluster reach a Service. Without a namespace it is the one that the pod's environment names.

    The last one has the usual domain; a cluster with another one needs it as a host of its own.
    """
    own = f"{name}.{namespace or f'$({NAMESPACE})'}"  # Kubernetes puts the value into a container's arguments
    return (name, own, f"{own}.svc", f"{own}.svc.cluster.local")


def namespace_variable() -> dict[str, Any]:
    """The environment variable that holds a pod's namespace."""
    return {"name": NAMESPACE, "valueFrom": {"fieldRef": {"fieldPath": "metadata.namespace"}}}


def checked_host(host: str) -> str:
    """A host name for `serve --allow-host`, in small letters. Raises UsageError for what is none, such as an address with a scheme."""
    name = host.strip().lower().rstrip(".")
    if len(name) > 253 or not _HOST.fullmatch(name):
        raise UsageError(f"--chat-host {host[:80]!r} is not a host name", "the name alone, as in chat.example.org or *.example.org")
    return name


def ingress_policy(meta: dict[str, Any], pods: dict[str, str], rules: list[dict[str, Any]]) -> dict[str, Any]:
    """A NetworkPolicy: pods with the labels `pods` accept what `rules` allow and nothing else. What they send is not restricted."""
    spec = {"podSelector": {"matchLabels": pods}, "policyTypes": ["Ingress"], "ingress": rules}
    return {"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": meta, "spec": spec}


def among_themselves(pods: dict[str, str]) -> list[dict[str, Any]]:
    """Rules that let pods with these labels connect to one another, at every port: NCCL and Gloo choose theirs when they start."""
    return [{"from": [{"podSelector": {"matchLabels": pods}}]}]


def at_port(port: int, from_outside: bool) -> list[dict[str, Any]]:
    """Rules that let every pod of the cluster connect to one TCP port, or everybody: an Ingress may come from a node's own address."""
    ports = [{"protocol": "TCP", "port": port}]
    return [{"ports": ports} if from_outside else {"from": [{"namespaceSelector": {}}], "ports": ports}]
