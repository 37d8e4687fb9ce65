"""What a cluster's containers run: the one source of their command, environment, volume and exit-code policy.

The command is the laptop's; whatever differs from node to node comes through the environment, by the names that
torchrun reads (PET_*). kubernetes.py and runpod.py put this into the words of their APIs.
"""

import json
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from nanochat import config as configuration
from nanochat.config import Config
from nanochat.console import log
from nanochat.data.source import own_files, text_source
from nanochat.errors import LAUNCHER_FINAL_CODES, ORCHESTRATOR_RETRIED_CODES, UsageError
from nanochat.hardware.machine import this_machine
from nanochat.planning import plan as planning
from nanochat.planning.hardware import profile_hardware
from nanochat.redaction import redact

DATA = "/data"  # where the volume is mounted: the image's NANOCHAT_BASE_DIR
USER = 10001  # the image's
PORT = 29500  # of the main rank's store
GRACE_SECONDS = 300  # between SIGTERM and SIGKILL: the step that runs and a large checkpoint to a slow volume take less

FINAL_CODES = tuple(code for code in LAUNCHER_FINAL_CODES if code not in ORCHESTRATOR_RETRIED_CODES)
RETRIES = 20  # of a training that ended with another code

_NAME = re.compile(r"[a-z]([a-z0-9-]{0,38}[a-z0-9])?")
_SECRET = re.compile(r"(?i)(token|secret|passw|api_?key|credential)")
VARIABLE_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
OWN_VARIABLES = ("NANOCHAT_BASE_DIR", "NANOCHAT_END", "NANOCHAT_GUARD")  # set by `submit` itself


@dataclass(frozen=True)
class Workload:
    """One training on a cluster: `config` is of one node, `plan` of all."""

    name: str
    image: str
    config: Config
    options: tuple[str, ...]  # of `train`, and of the download before it
    nodes: int
    plan: planning.Plan

    @property
    def command(self) -> tuple[str, ...]:
        """The training's, after the image's entrypoint."""
        return ("train", "--profile", *self.options)

    @property
    def cards(self) -> int:
        """GPUs of one node."""
        return self.config.nproc_per_node if self.plan.config["device"] == "cuda" else 0

    @property
    def hours(self) -> float:
        """Of training, estimated."""
        return self.plan.seconds / 3600

    @property
    def download(self) -> tuple[str, ...]:
        """The command that fetches all that the training run needs, before a GPU is taken; empty if there is nothing to fetch."""
        if not text_source(self.config).downloads:
            return ()
        processes = self.config.nproc_per_node * self.nodes  # the batch, and so the number of shards, may follow from it
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
    """The training that `train --profile PROFILE ARGUMENTS` is. Raises UsageError."""
    if not image or image.startswith("-") or any(c.isspace() for c in image):
        raise UsageError(f"{image!r} is no image", "as in --image registry.example.org/me/nanochat:1")
    if profile == "auto":
        raise UsageError("this machine's profile says nothing about a cluster", f"--profile {', '.join(configuration.PROFILE_NAMES)}")
    if nodes < 1:
        raise UsageError(f"{nodes} nodes are none", "--nodes 1 or more")
    overrides = configuration.parse_flags(list(arguments))
    config = configuration.build_config(profile, trial, overrides)
    if redact(config.mirror) != config.mirror:
        raise UsageError(
            "--mirror holds credentials, and an argument is visible to all", "give them as the cluster's secret: --secret NAME"
        )
    for key, path in own_files(config).items():
        instead = "without it the published identity is taught" if key == "identity" else "a published set instead: hf:OWNER/NAME"
        raise UsageError(f"{key} = {path} is a path of this machine, which no cluster can see", instead)
    if config.hours:
        raise UsageError(
            "--hours chooses a plan by what this machine measures, which is not the cluster's",
            f"`nanochat plan --hours={config.hours:g} --card H100` shows its --depth: pass that to submit, and --max-hours to end it",
        )
    name = name or f"nanochat-{config.run}".lower().replace("_", "-")
    if not _NAME.fullmatch(name):
        raise UsageError(f"{name!r} cannot name a job", "--name with small letters, digits and dashes, 40 at most, a letter first")
    options = (config.profile, *(["--trial"] if trial else []), *(f"--{key}={_text(value)}" for key, value in overrides.items()))
    # The table's card of the profile, whatever this machine has; several nodes are planned as one with as many cards.
    whole = config.replace(nproc_per_node=config.nproc_per_node * nodes)
    plan = planning.make_plan(whole, profile_hardware(whole) or this_machine("cpu"))
    return Workload(name, image, config, options, nodes, plan)


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def by_digest(image: str) -> str:
    """`image` with the digest that this machine's Docker knows it by in a registry; unchanged, and said, where none is known."""
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
    log(f"image: {image}, by its tag: no digest is known here, so a later push changes what runs")
    return image


def plain_environment(pairs: Sequence[str], instead: str = "name a secret of the cluster: --secret NAME") -> dict[str, str]:
    """KEY=VALUE pairs. Raises UsageError for a value that belongs into a secret; `instead` is how the platform takes one."""
    values = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not VARIABLE_NAME.fullmatch(key):
            raise UsageError(f"--env {key} is not KEY=VALUE", "as in --env HF_ENDPOINT=https://mirror.example.org")
        if key.startswith("PET_") or key in OWN_VARIABLES:
            raise UsageError(f"--env {key} is set by this command", "leave it out")
        if _SECRET.search(key):
            raise UsageError(f"{key} looks like a secret, and an argument is visible to all", instead)
        if redact(value) != value:
            raise UsageError(f"the address in --env {key} holds a password, and an argument is visible to all", instead)
        values[key] = value
    return values
