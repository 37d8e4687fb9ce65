"""A run that is killed again and again writes the same losses as one that was left alone."""

import os
import random
import signal
import time
from pathlib import Path

import pytest

from tests.tiny import call, chats, flags, losses, sentences, start, wait_for

pytestmark = pytest.mark.slow
KILLS = int(os.environ.get("NANOCHAT_KILLS", 50))


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("sources")
    return sentences(folder / "text.txt"), chats(folder / "chats.jsonl")


def saving(run: Path) -> bool:
    """Whether a step is being written: its folder is there, its manifest is not."""
    return any(not (step / "manifest.json").exists() for step in run.glob("*/step_*"))


def test_killed_at_random_moments(base: Path, sources: tuple[Path, Path]) -> None:
    text, conversations = sources
    options = {
        "num_iterations": 15 * KILLS,
        "sft_iterations": 6 * KILLS,
        "chat_data": str(conversations),
        "save_every": 3,
        "eval_every": 25,
    }
    straight = call(base, "entrypoint.py", *flags(text, run="straight", **options), timeout=900)
    assert straight.returncode == 0, straight.stderr

    rng = random.Random(20)
    command = ["entrypoint.py", *flags(text, **options)]
    inside = 0
    for kill in range(KILLS):
        process = start(base, *command)
        wait_for(process, " step ")
        time.sleep(rng.uniform(0, 0.7))
        if kill % 2:  # wait for a save, and end it
            deadline = time.monotonic() + 20
            while not saving(base / "runs" / "tiny") and process.poll() is None and time.monotonic() < deadline:
                pass
        process.kill()
        process.communicate(timeout=60)
        assert process.returncode == -signal.SIGKILL, "it ended before it could be killed"
        inside += saving(base / "runs" / "tiny")
    done = call(base, *command, timeout=900)
    assert done.returncode == 0 and "resuming at step" in done.stderr, done.stderr
    assert losses(base) == losses(base, "straight")
    assert inside >= KILLS // 5, f"{inside} of {KILLS} kills fell into a save"
    print(f"{KILLS} kills, {inside} of them inside a save")


def test_two_processes_stop_and_one_goes_on(base: Path, sources: tuple[Path, Path]) -> None:
    text, _ = sources
    straight = call(base, "entrypoint.py", *flags(text, run="straight", num_iterations=60), timeout=300)
    assert straight.returncode == 0, straight.stderr
    process = start(base, "entrypoint.py", *flags(text, num_iterations=60, nproc_per_node=2))
    wait_for(process, "base step 1/60")
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 75, err
    saved = losses(base)
    assert 1 <= len(saved) < 60 and "which is saved" in err
    done = call(base, "entrypoint.py", *flags(text, num_iterations=60), timeout=300)
    assert done.returncode == 0 and f"resuming at step {len(saved)} of 60" in done.stderr, done.stderr
    one, other = losses(base, "straight"), losses(base)
    assert [line[:2] for line in one] == [line[:2] for line in other]
    assert [line[2] for line in one] == pytest.approx([line[2] for line in other], rel=1e-5)
