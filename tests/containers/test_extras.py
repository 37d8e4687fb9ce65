"""NANOCHAT_EXTRAS: the image built with more packages, as the hint of a missing one says, and nothing of it replaced by another version."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import tiny
from tests.containers.engine import IMAGE, Completed, call, run
from tests.data.text.test_kinds import write_pdf

pytestmark = [pytest.mark.container, pytest.mark.slow, pytest.mark.usefixtures("image")]
EXTRAS, NAME = "wandb pypdf", f"{IMAGE}-extras"
VERSIONS = "import importlib.metadata as m, json; print(json.dumps({found.name: found.version for found in m.distributions()}))"


@pytest.fixture(scope="module")
def extended(image: str) -> Iterator[str]:
    """The image with EXTRAS."""
    built = call("docker", "compose", "build", "nanochat", timeout=1500, NANOCHAT_EXTRAS=EXTRAS, NANOCHAT_IMAGE=NAME)
    assert built.returncode == 0, built.stderr[-5000:]
    yield NAME
    call("docker", "rmi", NAME)


def packages(image: str) -> dict[str, str]:
    """Name -> version of each Python package of an image."""
    done = call("docker", "run", "--rm", "--entrypoint=python", image, "-c", VERSIONS)
    return dict(json.loads(done.stdout))


def test_a_pdf_and_a_tracker(extended: str, volume: str, tmp_path: Path) -> None:
    write_pdf(tmp_path / "text.pdf", [f"The cat sees {number} old houses under the tree. " * 20 for number in range(200)])
    (tmp_path / "text.pdf").chmod(0o644)
    tmp_path.chmod(0o755)
    arguments = [*tiny.flags(Path("/texts"), "x"), "--log_to=wandb"]
    mount = ("-v", f"{tmp_path}:/texts:ro")

    def train(image: str) -> Completed:
        return call("docker", "run", "--rm", "-v", f"{volume}:/data", *mount, image, *arguments)

    refused = train(IMAGE)
    assert refused.returncode == 2 and "NANOCHAT_EXTRAS=wandb docker compose build" in refused.stderr, refused.stderr
    done = train(extended)
    assert done.returncode == 0 and "text.pdf" not in [line for line in done.stderr.splitlines() if "skipped" in line], done.stderr
    found = run("-c", "find /data/runs/x -name '*.wandb' | wc -l", options=("--entrypoint=sh",), volume=volume)
    assert int(found.stdout) > 0, done.stderr
    before, after = packages(IMAGE), packages(extended)
    assert {"wandb", "pypdf"} <= set(after) - set(before) and before.items() <= after.items()
