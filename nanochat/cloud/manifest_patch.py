"""Merging of the user's YAML into the manifests, like `kubectl patch --type=strategic`."""

from pathlib import Path
from typing import Any

import yaml

from nanochat.cloud.kubernetes import Manifest
from nanochat.errors import UsageError

# Lists that a strategic merge joins by a key, as in Kubernetes' types; any other list is replaced.
_KEYS = {
    "containers": "name",
    "initContainers": "name",
    "env": "name",
    "volumes": "name",
    "imagePullSecrets": "name",
    "replicatedJobs": "name",
    "volumeMounts": "mountPath",
    "volumeDevices": "devicePath",
    "ports": "containerPort",
    "topologySpreadConstraints": "topologyKey",
    "hostAliases": "ip",
}


def patched(made: list[Manifest], file: Path) -> list[Manifest]:
    """`made` with the YAML documents of `file` merged into the objects of their kind (and name, if given)."""
    try:
        patches = [patch for patch in yaml.safe_load_all(file.read_text(encoding="utf-8")) if patch is not None]
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UsageError(f"the patch {file} cannot be read: {error}", "set --patch to a YAML file") from error
    for patch in patches:
        if not isinstance(patch, dict) or not isinstance(patch.get("kind"), str):
            raise UsageError(f"a patch in {file} has no kind", "add a kind, such as `kind: Job`")
        name = (patch.get("metadata") or {}).get("name")
        hits = [i for i, one in enumerate(made) if one["kind"] == patch["kind"] and name in (None, one["metadata"]["name"])]
        if not hits:
            there = ", ".join(f"{one['kind']} {one['metadata']['name']}" for one in made)
            raise UsageError(f"a patch in {file} is for {patch['kind']} {name or ''}, which does not exist", f"choose one of: {there}")
        for i in hits:
            made[i] = merge(made[i], patch)
    return made


def merge(value: Any, patch: Any, key: str = "") -> Any:
    """A strategic merge: mappings are joined (null removes), the lists in `_KEYS` by their key, with `$patch: delete|replace`."""
    if isinstance(value, dict) and isinstance(patch, dict):
        if patch.get("$patch") == "replace":
            return {name: part for name, part in patch.items() if name != "$patch"}
        joined = {name: part for name, part in value.items() if patch.get(name, part) is not None}
        for name, part in patch.items():
            if part is not None and name != "$patch":
                joined[name] = merge(joined.get(name, {} if isinstance(part, dict) else None), part, name)
        return joined
    if isinstance(value, list) and isinstance(patch, list) and key in _KEYS:
        by = next((by for by in (_KEYS[key], "port") if all(isinstance(p, dict) and by in p for p in [*value, *patch])), "")
        return _merge_lists(value, patch, by) if by else patch
    return patch


def _merge_lists(value: list[Manifest], patch: list[Manifest], by: str) -> list[Manifest]:
    ours = {one[by]: one for one in value}
    for part in patch:
        if part.get("$patch") == "delete":
            ours.pop(part[by], None)
        else:
            ours[part[by]] = merge(ours.get(part[by], {}), part)
    return list(ours.values())
