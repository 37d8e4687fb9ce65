"""The services as a user starts them: the chat, a training, questions from outside and from beside; and what compose makes of the files."""

import itertools
import json
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.containers.engine import COMPOSE, HANG, ROOT, Completed, call, docker, project_of

pytestmark = pytest.mark.container
FILES = ("docker-compose.yml", "docker-compose.cpu.yml", "docker-compose.webui.yml")
SETTINGS: tuple[dict[str, str], ...] = (
    {},
    {"NANOCHAT_BIND": "0.0.0.0", "NANOCHAT_API_KEY": "key", "NANOCHAT_DATA": "./here", "NANOCHAT_USER": "1000:1000"},
    {"NANOCHAT_TRAIN_ARGS": "--profile cpu --run night", "HF_ENDPOINT": "http://mirror", "TORCH_BACKEND": "cpu", "NANOCHAT_PORT": "9"},
    {"NANOCHAT_ALLOW_TRAINING": "1", "NANOCHAT_API_KEY": "key"},
)


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("files", [FILES[:1], FILES[:2], (FILES[0], FILES[2]), FILES])
def test_every_combination_is_valid(engine: None, files: tuple[str, ...], settings: dict[str, str], tmp_path: Path) -> None:
    named = itertools.chain.from_iterable(("-f", name) for name in files)
    done = call("docker", "compose", *named, "--profile=commands", "config", "--format=json", **settings)
    assert done.returncode == 0, done.stderr
    (tmp_path / "config.json").write_text(done.stdout, encoding="utf-8")
    checked = call(str(ROOT / ".venv/bin/check-jsonschema"), "--builtin-schema=vendor.compose-spec", str(tmp_path / "config.json"))
    assert checked.returncode == 0, checked.stdout
    services = json.loads(done.stdout)["services"]
    ours = [services[name] for name in ("download", "train", "chat", "nanochat")]
    assert all(("deploy" in service) == (FILES[1] not in files) for service in ours)
    assert all(service["cap_drop"] == ["ALL"] and service["security_opt"] == ["no-new-privileges:true"] for service in ours)
    assert all(limited(service) for service in services.values()), services
    hidden = [service["environment"].get("NVIDIA_VISIBLE_DEVICES") for service in ours]
    assert hidden == ["void" if FILES[1] in files else None] * 4
    published = [port for service in services.values() for port in service.get("ports", [])]
    assert {port["host_ip"] for port in published} == {settings.get("NANOCHAT_BIND", "127.0.0.1")}
    assert ("--insecure-no-key" in services["chat"]["command"]) == ("NANOCHAT_BIND" not in settings)
    assert ("--allow-training" in services["chat"]["command"]) == ("NANOCHAT_ALLOW_TRAINING" in settings)


def limited(service: dict[str, Any]) -> bool:
    """Whether a service's memory, processes and log are bounded."""
    options = service.get("logging", {}).get("options", {})
    return int(service.get("mem_limit", 0)) > 0 and int(service.get("pids_limit", 0)) > 0 and {"max-size", "max-file"} <= set(options)


def test_the_example_settings_are_the_defaults(engine: None) -> None:
    """.env.example names every variable that the files read, with its default."""
    read = "".join((ROOT / name).read_text(encoding="utf-8") for name in (*FILES[:2], "docker-compose.webui.yml"))
    example = dict(
        line[1:].split("=", 1)
        for line in (ROOT / ".env.example").read_text(encoding="utf-8").splitlines()
        if line[:1] == "#" and line[1:2].isupper() and "=" in line
    )
    plain = call("docker", "compose", "config", "--format=json").stdout
    for name, value in example.items():
        if not name.startswith("COMPOSE_"):
            assert name in read, name
            if name not in ("NANOCHAT_TRAIN_ARGS", "NANOCHAT_BIND"):
                assert call("docker", "compose", "config", "--format=json", **({name: value} if value else {})).stdout == plain, name


class Project:
    """A compose project on a volume of its own, without a GPU."""

    def __init__(self, volume: str):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.volume = volume
        self.environment = project_of(volume) | {"NANOCHAT_PORT": str(self.port)}

    def __call__(self, *arguments: str, timeout: float = HANG) -> Completed:
        return call(*COMPOSE, *arguments, timeout=timeout, **self.environment)

    def ask(self, path: str, body: Any = None, timeout: float = 30) -> tuple[int, Any]:
        """The status and the JSON of a request from outside."""
        data = json.dumps(body).encode() if body is not None else None
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", data, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=timeout) as response:
                return response.status, json.load(response)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)
        except OSError as error:
            return 0, str(error)

    def wait(self, path: str, status: int, timeout: float = 90) -> None:
        """Until `path` answers with `status`."""
        end = time.monotonic() + timeout
        while (found := self.ask(path))[0] != status:
            assert time.monotonic() < end, (found, self("logs", "chat").stdout)
            time.sleep(0.5)


@pytest.fixture
def project(volume: str) -> Iterator[Project]:
    project = Project(volume)
    yield project
    project("down", "--timeout=30")


def health(container: str, wanted: str, timeout: float) -> float:
    """Seconds until the engine calls a container `wanted`."""
    began = time.monotonic()
    while (found := docker("inspect", "-f", "{{.State.Health.Status}}", container)) != wanted:
        assert time.monotonic() - began < timeout, found
        time.sleep(1)
    return time.monotonic() - began


def test_train_then_chat(project: Project) -> None:
    assert project("up", "-d", "chat").returncode == 0
    project.wait("/healthz", 200)
    assert project.ask("/readyz")[0] == 503  # it lives before there is a model

    trained = project("run", "--rm", "train", "--profile", "cpu", "--num-iterations", "30", "--sft-iterations", "10")
    assert trained.returncode == 0, trained.stderr
    project.wait("/readyz", 200)
    body = {"model": "nanochat", "messages": [{"role": "user", "content": "Who are you?"}], "max_tokens": 16}
    status, answer = project.ask("/v1/chat/completions", body)
    assert status == 200 and answer["choices"][0]["message"]["role"] == "assistant", answer

    # From another container of the same network, as Open WebUI asks.
    code = "import urllib.request as u; print(u.urlopen('http://chat:8000/v1/models').read().decode())"
    beside = project("run", "--rm", "--entrypoint=python", "nanochat", "-c", code)
    assert beside.returncode == 0 and json.loads(beside.stdout)["data"][0]["id"] == "cpu", beside.stderr

    # Exit codes and stdout pass through.
    assert project("run", "--rm", "train", "--profile", "cpu", "--depth", "5").returncode == 2
    plan = project("run", "--rm", "nanochat", "plan", "--profile", "rtx4050", "--json")
    assert plan.returncode == 0 and json.loads(plan.stdout)["profile"] == "rtx4050"

    assert project("down").returncode == 0
    assert project.ask("/healthz")[0] == 0
    assert docker("volume", "inspect", project.volume)
    again = project("run", "--rm", "nanochat", "chat", "--run", "cpu", "--prompt", "Who are you?", "--max-tokens", "8")
    assert again.returncode == 0 and "model: run cpu, sft step 10" in again.stderr, (
        again.stderr
    )  # an answer of so short a training may be empty


def test_health_follows_the_server(image: str, volume: str) -> None:
    """Healthy while it answers, unhealthy once the process is stopped (the container itself still runs)."""
    name = f"{volume}-health"
    quick = ("--health-interval=2s", "--health-timeout=3s", "--health-start-period=1s", "--health-retries=2")
    docker("run", "-d", "--name", name, *quick, "-v", f"{volume}:/data", image, "serve", "--port=9000")
    try:
        print(f"healthy after {health(name, 'healthy', 90):.0f} s")
        stop = "for p in /proc/[0-9]*; do ! grep -qa ^/opt/venv/bin/python $p/cmdline || kill -STOP ${p#/proc/}; done"
        docker("exec", name, "sh", "-c", stop)
        print(f"unhealthy after {health(name, 'unhealthy', 90):.0f} s")
        docker("exec", name, "sh", "-c", stop.replace("-STOP", "-CONT"))
        health(name, "healthy", 90)
    finally:
        subprocess.run(["docker", "rm", "-f", name], capture_output=True, check=True)
