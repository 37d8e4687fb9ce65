"""Several containers train as one job, by the environment that the manifests of `submit k8s --nodes N` give them.

With `tiny.GENTLE` rates: in 80 steps two nodes came to within 1.5e-7 of one process so, to 1e-5 at a tenth of the profile's rates, and
three to 1.2e-4 there.
"""

import copy
import functools
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from nanochat.cloud.absolute_end import set_end
from nanochat.cloud.workload import FINAL_CODES, USER, workload
from tests import tiny
from tests.containers.cluster import Network, Training, dry_run, log_of, of_kind, options
from tests.containers.engine import IMAGE, call, docker, losses

KILLED = 137  # the exit code of a container that `docker kill` ended

pytestmark = [pytest.mark.container, pytest.mark.usefixtures("image")]
STEPS, SAVE = 160, 10
SMALL = {"depth": 2, "aspect_ratio": 16, "head_dim": 16, "max_seq_len": 64, "device_batch_size": 1, "total_batch_size": 6 * 64}
REST = {"num_iterations": STEPS, "save_every": SAVE, "sft_iterations": 0, "eval_every": -1, "eval_tokens": 512}
FLAGS = {**SMALL, **tiny.GENTLE, **REST, "deterministic": True, "threads": 1, "run": "job"}


def arguments(nodes: int, **changes: object) -> list[str]:
    """Of `submit k8s`, for a small training on CPUs."""
    return ["--profile=cpu", f"--nodes={nodes}", *(f"--{name}={value}" for name, value in (FLAGS | changes).items())]


@functools.cache
def manifest(nodes: int, **changes: object) -> dict[str, Any]:
    """The training's Job or JobSet, as `submit k8s --dry-run` prints it."""
    return of_kind(dry_run(*arguments(nodes, **changes)), "JobSet" if nodes > 1 else "Job")


@dataclass
class Straight:
    """A training that nothing happened to: its volume, and what the engine says of its containers while they ran."""

    training: Training
    volume: str
    containers: list[dict[str, Any]]


@pytest.fixture(scope="module")
def straight(image: str) -> Iterator[Callable[[int], Straight]]:
    """Number of nodes -> such a training, run when it is first asked for."""

    @functools.cache
    def of(nodes: int) -> Straight:
        volumes.append(docker("volume", "create"))
        with Network() as network:
            training, began = Training(manifest(nodes), network, volumes[-1]), time.monotonic()
            made = Straight(training, volumes[-1], json.loads(docker("inspect", *training.start())))
            assert training.end(asked=False) and training.attempts == [[0] * nodes], training.logs
            print(f"{nodes} node(s): {time.monotonic() - began:.0f} s")
        return made

    volumes: list[str] = []
    yield of
    call("docker", "volume", "rm", "-f", *volumes)


@pytest.fixture
def network() -> Iterator[Network]:
    with Network() as made:
        yield made


def wait_for_step(name: str, step: int) -> None:
    """Until the training of a container has done so many steps; asked inside it, for the steps are short."""
    lines = "$(wc -l 2>/dev/null </data/runs/job/metrics.jsonl || echo 0)"
    docker("exec", name, "timeout", "120", "sh", "-c", f"until [ {lines} -ge {step} ]; do sleep 0.05; done")


@pytest.mark.parametrize("nodes", [2, 3])
def test_losses_are_those_of_one_process(straight: Callable[[int], Straight], nodes: int) -> None:
    one, several = losses(straight(1).volume, "job"), losses(straight(nodes).volume, "job")
    assert len(one) == STEPS and [line[:2] for line in several] == [line[:2] for line in one]
    worst = max(abs(a - b) / b for (_, _, a), (_, _, b) in zip(several, one, strict=True))
    print(f"{nodes} nodes: {worst:.1e}")
    assert one[-1][2] < one[0][2] - 0.02 and worst < 1e-5


@pytest.mark.parametrize("nodes", [1, 2, 3])
def test_containers_ran_what_the_manifest_says(straight: Callable[[int], Straight], nodes: int) -> None:
    """Command, environment, user and rights, by the engine's own account; and the code has one source for them."""
    training, containers = straight(nodes).training, straight(nodes).containers
    work = workload(IMAGE, "", "cpu", False, arguments(nodes)[2:], nodes)
    assert len(containers) == nodes
    for index, state in enumerate(containers):
        config, host = state["Config"], state["HostConfig"]
        assert config["Cmd"] == list(work.command) and config["Entrypoint"] == ["tini", "--", "nanochat"]
        wanted = work.environment(training.hosts[0], str(index))
        found = dict(pair.split("=", 1) for pair in config["Env"])
        assert {key: found.get(key) for key in wanted} == wanted
        assert {key for key in found if key.startswith("PET_")} == {key for key in wanted if key.startswith("PET_")}
        assert config["User"] == f"{USER}:{USER}" and host["ReadonlyRootfs"] and host["CapDrop"] == ["ALL"] and not host["Privileged"]
        assert host["SecurityOpt"] == ["no-new-privileges"]
        writable = {mount["Destination"] for mount in state["Mounts"]} | set(host["Tmpfs"])
        assert writable == {mount["mountPath"] for mount in training.pod["spec"]["containers"][0]["volumeMounts"]}
    assert training.final_codes() == list(FINAL_CODES)


def test_exit_2_is_final(network: Network, volume: str) -> None:
    """The same name with another seed would be refused however often it came: the set fails, and nothing is started again."""
    short = {"num_iterations": 2, "save_every": 1}
    assert Training(manifest(2, **short), network, volume).run() == [[0, 0]]
    refused = Training(manifest(2, **short, seed=7), network, volume)
    (codes,) = refused.run()
    assert codes[0] == 2 and "seed was 42, now 7" in refused.logs[0][0], refused.logs
    assert codes[1] in (2, 7, 75), refused.logs  # by itself, or asked to end


@pytest.mark.parametrize("nodes", [1, 2])
def test_the_deadline_is_final(network: Network, volume: str, nodes: int) -> None:
    """All nodes save and end at the absolute end, with a code that nothing starts again."""
    body = copy.deepcopy(manifest(nodes, num_iterations=10**6, save_every=-1))
    set_end([body], str(int(time.time()) + 60))
    training = Training(body, network, volume)
    (codes,) = training.run()
    assert set(codes) == {3} and "is reached: stopped after base step" in training.logs[0][0], training.logs
    assert losses(volume, "job")


@pytest.mark.slow
@pytest.mark.parametrize(("index", "asked"), [(0, False), (1, False), (1, True)], ids=["main, unwatched", "other, unwatched", "other"])
def test_a_node_is_killed(straight: Callable[[int], Straight], network: Network, volume: str, index: int, asked: bool) -> None:
    """All end within a minute, all are started again, from the newest checkpoint, and the losses are as if nothing had happened."""
    training = Training(manifest(2), network, volume)
    names = training.start()
    wait_for_step(names[0], 2 * SAVE + 1)
    docker("kill", names[index])
    began = time.monotonic()
    assert not training.end(asked)
    seconds = time.monotonic() - began
    print(f"the other had ended {seconds:.0f} s after the kill, with {training.attempts[0][1 - index]}")
    assert training.attempts[0][index] == KILLED and training.attempts[0][1 - index] in (7, 75) and seconds < 60, training.logs
    assert training.run() == [training.attempts[0], [0, 0]] and "resuming at step" in training.logs[1][0], training.logs
    assert losses(volume, "job") == losses(straight(2).volume, "job")


@pytest.mark.slow
@pytest.mark.parametrize("index", [0, 1])
def test_a_network_is_cut_for_a_minute(straight: Callable[[int], Straight], network: Network, volume: str, index: int) -> None:
    """Nobody waits for the network: both have ended with 7 before it is back, and the set goes on from the newest checkpoint."""
    training = Training(manifest(2), network, volume)
    names = training.start()
    wait_for_step(names[0], 2 * SAVE + 1)
    network.cut(names[index])
    began = time.monotonic()
    assert not training.end(asked=False)
    seconds = time.monotonic() - began
    print(f"both had ended {seconds:.0f} s after the cut")
    assert training.attempts == [[7, 7]] and seconds < 60, training.logs
    time.sleep(60 - seconds)
    assert training.run() == [[7, 7], [0, 0]] and "resuming at step" in training.logs[1][0], training.logs
    assert losses(volume, "job") == losses(straight(2).volume, "job")


CHAT_KEY = "correct horse battery staple"
PROBE = """
import sys, urllib.request, urllib.error
request = urllib.request.Request(sys.argv[1], headers={"Authorization": "Bearer " + sys.argv[2]} if sys.argv[2:] else {})
try:
    print(urllib.request.urlopen(request, timeout=5).status)
except urllib.error.HTTPError as error:
    print(error.code)
"""


def test_the_chat_answers_its_probes_and_its_service(straight: Callable[[int], Straight], network: Network, volume: str) -> None:
    """As its Deployment runs it: alive and on the Service from the start, ready to answer as soon as there is a model."""
    made = dry_run(*arguments(1), "--chat")
    pod, service = of_kind(made, "Deployment")["spec"]["template"], of_kind(made, "Service")
    container = pod["spec"]["containers"][0]
    assert "--read-only" in options(pod, 0, volume, {"api-key": CHAT_KEY})
    (port,) = [one["containerPort"] for one in container["ports"]]
    assert service["spec"]["selector"].items() <= pod["metadata"]["labels"].items()
    assert service["spec"]["ports"][0]["targetPort"] == container["ports"][0]["name"]

    def ask(name: str, url: str, *key: str) -> int:
        return int(docker("exec", name, "python", "-c", PROBE, url, *key))

    for place, ready in ((volume, 503), (straight(1).volume, 200)):
        name = network.start(pod, place, service["metadata"]["name"], secrets={"api-key": CHAT_KEY})
        address = docker("inspect", "-f", f'{{{{(index .NetworkSettings.Networks "{network.name}").IPAddress}}}}', name)
        end = time.monotonic() + 90
        while call("docker", "exec", name, "python", "-c", PROBE, f"http://{address}:{port}/healthz").stdout != "200\n":
            assert time.monotonic() < end, log_of(name)
            time.sleep(0.5)
        for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
            assert ask(name, f"http://{address}:{port}{container[probe]['httpGet']['path']}") == 200
        while ask(name, f"http://{address}:{port}/readyz") != ready:
            assert time.monotonic() < end, log_of(name)
            time.sleep(0.5)
        own = f"http://{service['metadata']['name']}:{port}"
        assert [ask(name, f"{own}/v1/models", *key) for key in ([], [CHAT_KEY])] == [401, 200]
        for longer in ("", ".default", ".default.svc", ".default.svc.cluster.local"):
            headers = {"Host": service["metadata"]["name"] + longer}
            docker("exec", name, "python", "-c", f"import urllib.request as u; u.urlopen(u.Request('{own}/', headers={headers}))")
        began = time.monotonic()
        docker("stop", f"--time={pod['spec']['terminationGracePeriodSeconds']}", name)
        assert time.monotonic() - began < 30
        network.remove([name])
