"""Stopped from outside, a training saves and ends with 75; the same command goes on, with the losses of a run that was never stopped."""

import os
import pty
import random
import select
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests import tiny
from tests.containers.engine import COMPOSE, ROOT, call, container, docker, exit_code, losses, project_of, run, wait_for_log

pytestmark = [pytest.mark.container, pytest.mark.usefixtures("image")]
STOPS = 5
STEPS = 1500


def arguments(name: str) -> list[str]:
    """A training of a few seconds, as `train` takes it."""
    return tiny.flags(Path("/text.txt"), name, num_iterations=STEPS, save_every=500)


def test_docker_stop_at_five_moments(volume: str, text: str) -> None:
    straight = run(*arguments("straight"), options=(text,), volume=volume)
    assert straight.returncode == 0, straight.stderr
    rng, reached = random.Random(5), []
    for _ in range(STOPS):
        with container(*arguments("stopped"), options=(text,), volume=volume) as name:
            wait_for_log(name, "| loss ")
            time.sleep(rng.uniform(0, 0.6))
            began = time.monotonic()
            docker("stop", "--time=60", name)
            log = call("docker", "logs", name).stderr
            assert exit_code(name) == 75, log
            assert "which is saved" in log and time.monotonic() - began < 60
        reached.append(len(losses(volume, "stopped")))
    print(f"stopped after {reached} of {STEPS} steps")
    assert reached == sorted(set(reached)) and reached[-1] < STEPS
    done = run(*arguments("stopped"), options=(text,), volume=volume)
    assert done.returncode == 0 and "resuming at step" in done.stderr, done.stderr
    assert losses(volume, "stopped") == losses(volume, "straight")


def composed(volume: str, *arguments: str) -> tuple[list[str], dict[str, str]]:
    """A command line of compose on `volume`, and its environment."""
    return [*COMPOSE, *arguments], os.environ | project_of(volume)


@pytest.mark.parametrize("terminal", [False, True])
def test_ctrl_c_on_compose_run(volume: str, text: str, terminal: bool) -> None:
    options = ["run", "--rm", *([] if terminal else ["-T"]), *text.split("=", 1), "train"]
    command, environment = composed(volume, *options, *arguments("stopped")[1:])
    leader, follower = pty.openpty()
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment, start_new_session=True,
        stdin=follower if terminal else subprocess.DEVNULL, stdout=follower, stderr=follower,
    )  # fmt: skip
    os.close(follower)
    try:
        log = read_until(leader, "2/3 base " if terminal else "| loss ")  # the live line of 80 columns has no word for the loss
        if terminal:
            os.write(leader, b"\x03")
        else:
            os.killpg(process.pid, signal.SIGINT)  # a terminal's Ctrl-C is for docker and for its plugin
        log += read_until(leader, "which is saved")
        assert process.wait(60) == 75, log
    finally:
        process.kill()
        os.close(leader)
        left = call("docker", "ps", "-aq", "--filter", f"volume={volume}").stdout.split()
        call("docker", "rm", "-f", *left)
    assert 0 < len(losses(volume, "stopped")) < STEPS


def read_until(terminal: int, text: str, timeout: float = 120) -> str:
    """What comes from a terminal up to `text`."""
    log, end = "", time.monotonic() + timeout
    while text not in log and time.monotonic() < end:
        if select.select([terminal], [], [], 1)[0]:
            try:
                log += os.read(terminal, 65536).decode(errors="replace")
            except OSError:
                break
    assert text in log, log
    return log


def test_compose_stop(volume: str) -> None:
    """The overnight form: `up -d train` with its arguments from the environment, and `stop`."""
    command, environment = composed(volume, "up", "-d", "train")
    environment["NANOCHAT_TRAIN_ARGS"] = "--profile cpu --threads 1 --sft-iterations 0"
    try:
        subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True, timeout=120)
        name = f"{volume.removesuffix('_data')}-train-1"
        wait_for_log(name, "| loss ")
        stop, _ = composed(volume, "stop", "train")
        subprocess.run(stop, cwd=ROOT, env=environment, check=True, capture_output=True, timeout=240)
        assert exit_code(name) == 75
        assert "which is saved" in call("docker", "logs", name).stderr
    finally:
        down, _ = composed(volume, "down")
        subprocess.run(down, cwd=ROOT, env=environment, check=True, capture_output=True, timeout=240)
    assert docker("volume", "ls", "-q", "--filter", f"name={volume}")
