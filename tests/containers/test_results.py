"""What leaves a container: a GGUF file, curves, checkpoints on an S3 store, and commands to paste. Each as the Docker page says."""

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import tiny
from tests.containers.engine import COMPOSE, Completed, call, container, docker, losses, project_of, python, wait_for_log

pytestmark = [pytest.mark.container, pytest.mark.usefixtures("image")]
CHANGES = {"num_iterations": 60, "save_every": 20, "sft_iterations": 4}
STORE = {"AWS_ACCESS_KEY_ID": "me", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1"}


@pytest.fixture
def texts(tmp_path: Path) -> tuple[str, ...]:
    """The options that mount a small text and conversations, as /text.txt and /chats.jsonl."""
    paths = [tiny.sentences(tmp_path / "text.txt"), tiny.chats(tmp_path / "chats.jsonl")]
    for path in paths:
        path.chmod(0o644)
    return tuple(part for path in paths for part in ("-v", f"{path}:/{path.name}:ro"))


def composed(volume: str, *arguments: str, **environment: str) -> Completed:
    """`docker compose ARGUMENTS`, with the data volume `volume`."""
    return call(*COMPOSE, *arguments, **project_of(volume), **environment)


def train(volume: str, texts: tuple[str, ...], run: str, *flags: str, **environment: str) -> Completed:
    """`docker compose run train`, for a small run."""
    arguments = tiny.flags(Path("/text.txt"), run, chat_data="/chats.jsonl", **CHANGES)[1:]
    done = composed(volume, "run", "--rm", "-T", *texts, "train", *arguments, *flags, **environment)
    assert done.returncode == 0, done.stderr
    return done


def test_a_gguf_file_and_curves(volume: str, texts: tuple[str, ...]) -> None:
    train(volume, texts, "p", "--architecture=portable", "--log_to=tensorboard", "--max_seq_len=64")
    exported = composed(volume, *shlex.split("run --rm -T nanochat export --run p --to gguf --out /data/p-gguf --check"))
    assert exported.returncode == 0 and "equal the run's, bit for bit" in exported.stderr, exported.stderr
    code = """
import glob, json
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
(folder,) = {path.rpartition("/")[0] for path in glob.glob("/data/runs/p/**/events.*", recursive=True)}
curves = EventAccumulator(folder)
curves.Reload()
print(json.dumps([event.value for stage in ("base", "sft") for event in curves.Scalars(f"{stage}/loss")]))
print(open("/data/p-gguf/model.gguf", "rb").read(4))
"""
    done = python(code, volume)
    assert done.returncode == 0, done.stderr
    curve, magic = done.stdout.splitlines()
    wanted = [loss for _, _, loss in losses(volume, "p")]
    assert json.loads(curve) == pytest.approx(wanted) and magic == "b'GGUF'"


@pytest.fixture
def store(volume: str, tmp_path: Path) -> Iterator[dict[str, str]]:
    """An S3 server with a bucket, on the network of the compose project; yields the settings of a client."""
    target = tmp_path / "moto"
    install = (".venv/bin/uv", "pip", "install", "--quiet", "--target", str(target), "--python-version=3.13", "--only-binary=:all:")
    made = call(*install, "moto[s3]==5.2.5", "flask==3.1.3", "flask-cors==6.0.5", UV_SYSTEM_CERTS="1", UV_NATIVE_TLS="1")
    assert made.returncode == 0, made.stderr
    tmp_path.chmod(0o755)
    network = f"{volume.removesuffix('_data')}_default"
    assert composed(volume, "run", "--rm", "-T", "nanochat", "--version").returncode == 0  # makes the network
    options = (f"--network={network}", "--network-alias=store", "-v", f"{target}:/moto:ro", "-e", "PYTHONPATH=/moto", "--entrypoint=python")
    try:
        with container("-m", "moto.server", "-H", "0.0.0.0", "-p", "5000", options=options) as name:
            wait_for_log(name, "Running on")
            docker(
                "exec", name, "python", "-c", "import urllib.request as u; u.urlopen(u.Request('http://store:5000/bucket', method='PUT'))"
            )
            yield STORE | {"AWS_ENDPOINT_URL": "http://store:5000"}
    finally:
        composed(volume, "down")


def test_a_mirror_on_s3_and_another_machine(volume: str, texts: tuple[str, ...], store: dict[str, str]) -> None:
    """What a run copied there is a run again on an empty volume, and it is resumed, not done again."""
    flags = ("--mirror=s3://bucket/runs", "--deterministic=true")
    first = train(volume, texts, "far", *flags, **store)
    assert "mirror" not in first.stderr and store["AWS_SECRET_ACCESS_KEY"] not in first.stderr, first.stderr  # no warning
    kept = losses(volume, "far")
    composed(volume, "run", "--rm", "-T", "--entrypoint=sh", "nanochat", "-c", "rm -r /data/*")
    second = train(volume, texts, "far", *flags, **store)
    assert "s3://bucket/runs" in second.stderr and "base step 60" in second.stderr, second.stderr
    assert losses(volume, "far") == kept


def test_every_command_that_is_printed_runs(volume: str) -> None:
    """As a reader pastes it into a terminal of the host, in the directory of the compose files."""
    environment = project_of(volume) | {"COMPOSE_FILE": ":".join(COMPOSE[3::2]), "NANOCHAT_PORT": "0"}
    found: set[str] = set()
    for session in ("quickstart --num-iterations=20 --sft-iterations=5 --threads=1", "disk", "train --profile cpu --log_to wandb --run w"):
        done = composed(volume, *shlex.split(f"run --rm -T nanochat {session}"))
        for line in (done.stdout + done.stderr).splitlines():
            for command in re.findall(r"`([^`]*docker compose [^`]+)`|((?:[A-Z_]+=\S+ )?docker compose [^,]+)", line):
                found.add(next(filter(None, command)).strip())
    print(found)
    build = "NANOCHAT_EXTRAS=wandb docker compose build"  # run by test_extras.py
    assert {build, "docker compose up -d chat", "docker compose run --rm nanochat chat --run quickstart"} < found
    try:
        for command in sorted(found - {build}):
            done = call("script", "-qec", command, "/dev/null", **environment)
            assert done.returncode == 0, (command, done.stdout)
    finally:
        composed(volume, "down")
