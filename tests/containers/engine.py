"""What the container tests share: the command lines of docker and of compose, volumes, and runs in the image."""

import contextlib
import json
import os
import subprocess
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
IMAGE = "nanochat-test"
REQUIRED = "NANOCHAT_CONTAINER_TESTS"  # "required": what is missing is a failure, not a reason to skip
COMPOSE = ("docker", "compose", "-f", "docker-compose.yml", "-f", "docker-compose.cpu.yml")
# What Kubernetes' restricted profile demands, and no network at all.
RESTRICTED = ("--network=none", "--user=54321", "--read-only", "--tmpfs=/tmp", "--cap-drop=ALL", "--security-opt=no-new-privileges")
HANG = 600.0  # seconds; what takes longer has hung

Completed = subprocess.CompletedProcess[str]


def call(*command: str, timeout: float = HANG, **environment: str) -> Completed:
    """Run a command in the checkout, to its end."""
    return subprocess.run(
        command, cwd=ROOT, env=os.environ | environment, text=True, capture_output=True, timeout=timeout, stdin=subprocess.DEVNULL
    )


def prepare(suite: str) -> None:
    """Make the Debian image of `suite`; skip where that is not possible, or fail where container tests are required."""
    try:
        prepared = call(str(ROOT / "tests/containers/prepare.sh"), suite)
        missing = prepared.stderr if prepared.returncode else ""
    except OSError as error:
        missing = str(error)
    if missing and os.environ.get(REQUIRED) == "required":
        pytest.fail(missing)
    if missing:
        pytest.skip(missing)


def docker(*arguments: str) -> str:
    """`docker ARGUMENTS`, which must succeed; its stdout."""
    done = call("docker", *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def run(*arguments: str, options: tuple[str, ...] = (), volume: str = "", timeout: float = HANG) -> Completed:
    """`docker run --rm OPTIONS IMAGE ARGUMENTS`, with `volume` as the data volume where it is named."""
    mount = ("-v", f"{volume}:/data") if volume else ()
    return call("docker", "run", "--rm", *mount, *options, IMAGE, *arguments, timeout=timeout)


def python(code: str, volume: str = "", options: tuple[str, ...] = ()) -> Completed:
    """Run Python code in the image."""
    return run("-c", code, options=(*options, "--entrypoint=python"), volume=volume)


def project_of(volume: str) -> dict[str, str]:
    """The environment of compose for the project whose data volume is `volume`."""
    return {"NANOCHAT_IMAGE": IMAGE, "COMPOSE_PROJECT_NAME": volume.removesuffix("_data")}


def losses(volume: str, run_name: str) -> list[tuple[str, int, float]]:
    """(stage, step, loss) of each line of a run's metrics on a volume."""
    done = run(f"/data/runs/{run_name}/metrics.jsonl", options=("--entrypoint=cat",), volume=volume)
    assert done.returncode == 0, done.stderr
    return [(line["stage"], line["step"], line["loss"]) for line in map(json.loads, done.stdout.splitlines())]


@contextlib.contextmanager
def container(*arguments: str, options: tuple[str, ...] = (), volume: str = "") -> Iterator[str]:
    """A detached container of the image, removed at the end; yields its name."""
    name = f"nanochat-test-{uuid.uuid4().hex[:8]}"
    mount = ("-v", f"{volume}:/data") if volume else ()
    docker("run", "-d", "--name", name, *mount, *options, IMAGE, *arguments)
    try:
        yield name
    finally:
        call("docker", "rm", "-f", name)


def wait_for_log(name: str, text: str, timeout: float = 120) -> str:
    """The container's log, once `text` is in it. Fails where the container ends before."""
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        done = call("docker", "logs", name)
        log = done.stdout + done.stderr
        if text in log:
            return log
        assert docker("inspect", "-f", "{{.State.Running}}", name) == "true", log
        time.sleep(0.2)
    raise AssertionError(f"{text!r} did not come:\n{log}")


def exit_code(name: str) -> int:
    """The exit code of a container that has ended."""
    return int(docker("wait", name))
