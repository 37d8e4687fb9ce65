"""Workload of a cluster's containers: command, environment, volume and exit-code policy, for all platforms.

The command is the same as on a laptop; settings that differ between nodes are environment variables with torchrun's names (PET_*).
kubernetes.py and runpod.py translate a workload to their APIs.
"""

import json
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from nanochat import config as configuration
from nanochat.config import Config, flag_name, profile_name
from nanochat.console import log
from nanochat.data.source import own_files, text_source
from nanochat.errors import LAUNCHER_FINAL_CODES, ORCHESTRATOR_RETRIED_CODES, UsageError
from nanochat.hardware.machine import this_machine
from nanochat.planning import plan as planning
from nanochat.planning.hardware import profile_hardware
from nanochat.redaction import redact

DATA = "/data"  # mount path of the volume, the image's NANOCHAT_BASE_DIR
USER = 10001  # the image's user id
PORT = 29500  # of the main rank's store
GRACE_SECONDS = 300  # between SIGTERM and SIGKILL; a step and a large checkpoint on a slow volume take less

FINAL_CODES = tuple(code for code in LAUNCHER_FINAL_CODES if code not in ORCHESTRATOR_RETRIED_CODES)
RETRIES = 20  # restarts of a run that ended with another code

AUTOMATIC = ("device", "dtype", "compile", "threads")

_NAME = re.compile(r"[a-z]([a-z0-9-]{0,38}[a-z0-9])?")
_SECRET = re.compile(r"(?i)(token|secret|passw|api_?key|credential)")
VARIABLE_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
MACHINE = ("profile", "device_batch_size", "nproc_per_node", *AUTOMATIC)  # settings that are the cluster's, not the source's, with `--from`
OWN_VARIABLES = ("NANOCHAT_BASE_DIR", "NANOCHAT_END", "NANOCHAT_GUARD")  # set by `submit` itself


@dataclass(frozen=True)
class Workload:
    """One training run on a cluster; `config` is that of one node, `plan` that of all nodes."""

    name: str
    image: str
    config: Config
    options: tuple[str, ...]  # options of `train`, and of the download before it
    nodes: int
    plan: planning.Plan

    @property
    def command(self) -> tuple[str, ...]:
        """The training command, after the image's entrypoint."""
        return ("train", "--profile", *self.options)

    @property
    def cards(self) -> int:
        """GPUs per node."""
        return self.config.nproc_per_node if self.plan.config["device"] == "cuda" else 0

    @property
    def hours(self) -> float:
        """Estimated hours of training."""
        return self.plan.seconds / 3600

    @property
    def download(self) -> tuple[str, ...]:
        """The command that downloads the run's data before a GPU is used; empty if nothing is missing."""
        if not text_source(self.config).downloads:
            return ()
        processes = self.config.nproc_per_node * self.nodes  # the batch size and the number of shards may depend on it
        return ("download", "--for", *self.options, *([f"--nproc_per_node={processes}"] if self.nodes > 1 else []))

    def environment(self, main: str = "", rank: str = "0") -> dict[str, str]:
        """A training container's environment; `main` is the address of node 0 if there are several nodes."""
        values = {"NANOCHAT_BASE_DIR": DATA, "PYTHONUNBUFFERED": "1"}
        if self.nodes > 1:
            values |= {
                "PET_NNODES": str(self.nodes),
                "PET_NODE_RANK": rank,
                "PET_NPROC_PER_NODE": str(self.config.nproc_per_node),
                "PET_MASTER_ADDR": main,
                "PET_MASTER_PORT": str(PORT),
            }
        return values


def workload(image: str, name: str, profile: str, trial: bool, arguments: Sequence[str], nodes: int = 1) -> Workload:
    """The workload of `train --profile PROFILE ARGUMENTS`. Raises UsageError."""
    if not image or image.startswith("-") or any(c.isspace() for c in image):
        raise UsageError(f"{image!r} is not an image", "use a name such as --image registry.example.org/me/nanochat:1")
    if profile == "auto":
        raise UsageError("--profile auto is this machine's, not the cluster's", f"choose one of: {', '.join(configuration.PROFILE_NAMES)}")
    if nodes < 1:
        raise UsageError(f"--nodes {nodes} is not a positive number", "set --nodes to 1 or more")
    overrides = configuration.parse_flags(list(arguments))
    config = _config(profile, trial, overrides)
    if redact(config.mirror) != config.mirror:
        raise UsageError(
            "--mirror contains credentials, and arguments are visible to others",
            "put them into a secret of the cluster, with --secret NAME",
        )
    for key, path in own_files(config).items():
        instead = "leave it out to use the published identity" if key == "identity" else "use a published dataset, hf:OWNER/NAME"
        raise UsageError(f"{key} = {path} is a path of this machine, which a cluster cannot read", instead)
    if config.hours:
        raise UsageError(
            "--hours measures this machine, not the cluster",
            f"run `nanochat plan --hours={config.hours:g} --card H100`, then submit with its --depth; --max-hours ends the run",
        )
    name = name or f"nanochat-{config.run}".lower().replace("_", "-")
    if not _NAME.fullmatch(name):
        raise UsageError(f"{name!r} is not a job name", "use lower-case letters, digits and dashes, at most 40, and begin with a letter")
    chosen = {name: "auto" for name in AUTOMATIC if config.from_run} | overrides
    options = (
        profile_name(profile),
        *(["--trial"] if trial else []),
        *(f"--{flag_name(key)}={_text(value)}" for key, value in chosen.items()),
    )
    # The profile's GPU from the table, not this machine's; several nodes are planned as one with as many GPUs.
    whole = config.replace(nproc_per_node=config.nproc_per_node * nodes)
    plan = planning.make_plan(whole, profile_hardware(whole) or this_machine("cpu"))
    return Workload(name, image, config, options, nodes, plan)


def _config(profile: str, trial: bool, overrides: dict[str, Any]) -> Config:
    """The config of the run. With `--from`, which the cluster resolves, it follows from the source as this machine or the mirror knows it.

    Raises UsageError.
    """
    config = configuration.build_config(profile, trial, overrides)
    if not config.from_run:
        return config
    from nanochat.runs.origin import config_elsewhere, parse_source, record_of

    if trial:
        raise UsageError("--trial is a run of its own, and --from continues another", "leave out --trial")
    source = parse_source(config.from_run).run
    if config.run == source:
        raise UsageError(f"the run {source!r} cannot begin from itself", "give the new run another name with --run NEW")
    if not config.mirror:
        log(f"--from {source}: the job's volume must have that run already; --mirror URL would fetch it from a mirror")
    if known := record_of(source, config.mirror):
        return config_elsewhere(config.from_run, overrides, known.config, {name: getattr(config, name) for name in MACHINE})
    log(f"warning: this machine does not know the run {source!r}, so the plan is for the profile's model, pretrained from scratch")
    return config if "run" in overrides else config.replace(run=f"{source}-2")


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def by_digest(image: str) -> str:
    """`image` with its registry digest from this machine's Docker; unchanged, with a message, if it is unknown."""
    if "@sha256:" in image:
        return image
    if shutil.which("docker"):
        command = ["docker", "image", "inspect", "--format", "{{json .RepoDigests}}", image]
        try:
            found = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
            digests = json.loads(found.stdout) if found.returncode == 0 else []
        except (OSError, ValueError, subprocess.TimeoutExpired):
            digests = []
        repository = image.rpartition(":")[0] if ":" in image.rpartition("/")[2] else image
        for digest in digests or []:
            if digest.startswith(f"{repository}@"):
                return str(digest)
    log(f"image: {image}, by its tag, because this machine has no digest of it; a later push changes the image that runs")
    return image


def plain_environment(pairs: Sequence[str], instead: str = "use a secret of the cluster, with --secret NAME") -> dict[str, str]:
    """KEY=VALUE pairs. Raises UsageError for a value that must be a secret, with the platform's hint `instead`."""
    values = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not VARIABLE_NAME.fullmatch(key):
            raise UsageError(f"--env {key} is not KEY=VALUE", "write it as in --env HF_ENDPOINT=https://mirror.example.org")
        if key.startswith("PET_") or key in OWN_VARIABLES:
            raise UsageError(f"--env {key} is set by this command", "leave it out")
        if _SECRET.search(key):
            raise UsageError(f"{key} looks like a secret, and arguments are visible to others", instead)
        if redact(value) != value:
            raise UsageError(f"the address in --env {key} contains a password, and arguments are visible to others", instead)
        values[key] = value
    return values
