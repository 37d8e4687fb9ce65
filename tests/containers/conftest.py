"""Fixtures of the container tests: the engine, the image (built once), a data volume of each test's own, and a small text."""

import os
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import tiny
from tests.containers.engine import IMAGE, call, docker, prepare

BASE = "debian:trixie-slim"  # by its tag: prepare.sh makes one where none can be pulled, which has another digest
PUBLISHED = "NANOCHAT_TEST_IMAGE"


@pytest.fixture(scope="session")
def engine() -> None:
    """A Docker engine, with compose, buildx and the base image."""
    prepare("trixie")


@pytest.fixture(scope="session")
def image(engine: None) -> str:
    """The image of this checkout, or the one that NANOCHAT_TEST_IMAGE names: a release publishes what was tested."""
    if published := os.environ.get(PUBLISHED):
        docker("pull", "--quiet", published)
        docker("tag", published, IMAGE)
        return IMAGE
    began = time.monotonic()
    base = f"--build-arg=BASE_IMAGE={BASE}"
    built = call("docker", "buildx", "build", "-f", "Dockerfile.cuda", base, "-t", IMAGE, ".", timeout=1500)
    assert built.returncode == 0, built.stderr[-5000:]
    print(f"docker build: {time.monotonic() - began:.0f} s")
    return IMAGE


@pytest.fixture
def volume(image: str) -> Iterator[str]:
    """A new, empty data volume, under the name that compose gives it in a project of its own (`project_of`)."""
    name = f"nanochat-test-{uuid.uuid4().hex[:8]}_data"
    docker("volume", "create", name)
    yield name
    call("docker", "volume", "rm", "-f", name)


@pytest.fixture
def text(tmp_path: Path) -> str:
    """The option that mounts a small text, as /text.txt."""
    path = tiny.sentences(tmp_path / "text.txt")
    path.chmod(0o644)
    return f"-v={path}:/text.txt:ro"
