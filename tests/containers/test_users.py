"""The image under other users: root, as hosters of GPUs start it with a command of their own, and any id, whose files are private."""

from pathlib import Path

import pytest

from tests import tiny
from tests.containers.engine import Completed, call, container, docker, exit_code, losses, run, wait_for_log

pytestmark = [pytest.mark.container, pytest.mark.usefixtures("image")]
ROOT = ("--user=0", "--entrypoint=bash")  # as RunPod and Vast start a template: as root, without the image's entrypoint
STEPS = 1500


def train(run_name: str, steps: int = STEPS) -> str:
    """`nanochat train` for a small run, as a line for a shell."""
    return " ".join(["nanochat", *tiny.flags(Path("/text.txt"), run_name, num_iterations=steps, save_every=500)])


def owners(volume: str) -> set[str]:
    """The user ids of all files of a data volume."""
    done = run("/mnt", "-printf", "%U\n", options=("--user=0", "--entrypoint=find", f"-v={volume}:/mnt"))
    return set(done.stdout.split())


def test_roots_start_command_and_the_images_own_user(volume: str, text: str) -> None:
    """Root stops a run, the image's user resumes it, and root goes on in a login shell, as over ssh, of a container that does nothing."""
    with container("-c", train("one"), options=(*ROOT, text), volume=volume) as name:
        wait_for_log(name, "| loss ")
        docker("stop", "--time=60", name)
        log = call("docker", "logs", name).stderr
        assert exit_code(name) == 75 and "running as user 10001, who owns /data" in log, log
    assert owners(volume) == {"10001"}
    done = run(*train("one").split()[1:], options=(text,), volume=volume)
    assert done.returncode == 0 and "resuming at step" in done.stderr, done.stderr
    assert len(losses(volume, "one")) == STEPS
    with container("-c", "sleep infinity", options=ROOT, volume=volume) as name:
        terminal = ("docker", "exec", "-w", "/root", name, "bash", "-lc")
        for line in ("nanochat runs show one", "nanochat chat --run one --prompt cat --max-tokens 4", "torchrun --help"):
            done = call(*terminal, line)
            assert done.returncode == 0, done.stderr
    assert owners(volume) == {"10001"}


def test_a_volume_of_roots(volume: str, text: str) -> None:
    """Mounted at /workspace: root trains there. The image's user reads it, is told that it cannot write, and can once it owns it."""
    options = (text, f"-v={volume}-workspace:/workspace", "-e=NANOCHAT_BASE_DIR=/workspace/nanochat")
    as_root = (*ROOT, *options)

    def chat(options: tuple[str, ...] = options) -> Completed:
        return run("chat", "--run", "one", "--prompt", "cat", "--max-tokens", "4", options=options)

    try:
        done = run("-lc", train("one", 6), options=as_root)
        assert done.returncode == 0 and "running as" not in done.stderr, done.stderr
        assert owners(f"{volume}-workspace") == {"0"} and chat().returncode == 0
        refused = run(*train("two", 6).split()[1:], options=options)
        assert refused.returncode == 3 and "make the directory writable" in refused.stderr, refused.stderr
        assert run("-c", "chown -R 10001:10001 /workspace/nanochat", options=as_root).returncode == 0
        done = run(*train("two", 6).split()[1:], options=options)
        assert done.returncode == 0, done.stderr
        done = run("-lc", train("three", 6), options=as_root)
        assert done.returncode == 0 and "running as user 10001, who owns /workspace/nanochat" in done.stderr, done.stderr
    finally:
        call("docker", "volume", "rm", "-f", f"{volume}-workspace")


def test_a_users_files_are_its_own(volume: str, text: str) -> None:
    """Any id is served on a new volume. No other one reads what it made there, and the image's own is told."""
    line = train("one", 6).split()[1:]
    done = run(*line, options=("--user=54321:54321", text), volume=volume)
    assert done.returncode == 0, done.stderr
    assert run("-c", "find /data -mindepth 1 -perm /077", options=("--user=0", "--entrypoint=sh"), volume=volume).stdout == ""
    for command in ("cat /data/runs/one/config.toml", "ls /data/runs"):
        refused = run("-c", command, options=("--user=54322:54322", "--entrypoint=sh"), volume=volume)
        assert refused.returncode != 0 and "Permission denied" in refused.stderr, refused.stdout
    other = run(*line, options=(text,), volume=volume)
    errors = [line for line in other.stderr.splitlines() if line.startswith(("error:", "hint:"))]
    assert other.returncode == 3 and len(errors) == 2 and "Permission denied" in errors[0], other.stderr
