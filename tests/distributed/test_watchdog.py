"""What does not move is noticed, said by every rank, and ended so that the launcher goes on from the last checkpoint."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

from nanochat.distributed import watchdog
from nanochat.distributed.watchdog import Watchdog, slow
from tests import tiny


@pytest.fixture
def ended(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    monkeypatch.setattr(watchdog, "GRACE", 0.05)
    return []


def test_it_ends_what_does_not_move_and_says_where(ended: list[int], capfd: pytest.CaptureFixture[str]) -> None:
    over = threading.Event()

    def end(code: int) -> None:
        ended.append(code)
        over.set()

    with Watchdog(0.2, rank=3, end=end) as dog:
        dog.heartbeat("reading the rows of base step 7")
        assert over.wait(10)
    said = capfd.readouterr().err
    assert ended == [7]
    assert "rank 3 has made no progress for" in said and "reading the rows of base step 7" in said and "test_watchdog.py" in said
    assert "error: no progress for" in said and "hint:" in said


@pytest.mark.parametrize("timeout", [0.0, 0.3])
def test_it_lets_go_on_what_moves(ended: list[int], capfd: pytest.CaptureFixture[str], timeout: float) -> None:
    with Watchdog(timeout, end=ended.append) as dog:
        for _ in range(20):
            time.sleep(0.03)
            dog.heartbeat("computing")
    time.sleep(0.4)  # and nothing once it is over
    assert ended == [] and capfd.readouterr().err == ""


@pytest.mark.long
def test_a_process_that_was_stopped_for_a_while_has_not_hung() -> None:
    """As by Ctrl-Z and fg, or a paused container."""
    code = """
import time
from nanochat.distributed.watchdog import Watchdog
with Watchdog(1.5) as dog:
    for step in range(60):
        dog.heartbeat("computing")
        print(step, flush=True)
        time.sleep(0.1)
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout and process.stdout.readline()
    process.send_signal(signal.SIGSTOP)
    time.sleep(4)
    process.send_signal(signal.SIGCONT)
    said, complained = process.communicate(timeout=60)
    assert process.returncode == 0 and said.split()[-1] == "59" and complained == ""


@pytest.mark.parametrize("beats_first", [True, False])
def test_a_pause_right_after_a_beat_has_not_hung(
    beats_first: bool, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The watchdog may be the first thread to go on, and may have looked before or after the last beat."""
    paused, clock = 0.0, time.monotonic
    monkeypatch.setattr(watchdog.time, "monotonic", lambda: clock() + paused)
    ended: list[int] = []
    with Watchdog(2.0, end=ended.append) as dog:
        if not beats_first:
            time.sleep(0.3)
        dog.heartbeat("computing")
        if beats_first:
            time.sleep(0.3)
        paused = 100.0
        time.sleep(0.5)
    assert ended == [] and capfd.readouterr().err == ""


def test_what_moves_again_while_the_others_are_told_goes_on(
    ended: list[int], capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watchdog, "GRACE", 2.0)
    with Watchdog(0.2, end=ended.append) as dog:
        said = ""
        while "has made no progress" not in said:
            time.sleep(0.05)
            said += capfd.readouterr().err
        while "makes progress again" not in said:
            dog.heartbeat("computing")
            time.sleep(0.01)
            said += capfd.readouterr().err
    assert ended == []


HANGS = """
import sys, time
from pathlib import Path
from nanochat.train.pretrain import TextBatches
from nanochat.pipeline import train as run
from tests import tiny

text, marker = map(Path, sys.argv[1:])
batch = TextBatches.batch

def hanging(self, step, ranks):
    if step == 3 and ranks.rank == 1 and not marker.exists():
        marker.touch()
        time.sleep(600)
    return batch(self, step, ranks)

TextBatches.batch = hanging
config = tiny.config(text, device="cpu", nproc_per_node=2, hang_timeout=5.0, save_every=1)
sys.exit(run.train(config, relaunch=sys.argv))
"""


@pytest.mark.long
def test_a_rank_that_hangs_is_restarted_from_the_last_checkpoint(tmp_path: Path) -> None:
    text, script, base = tiny.sentences(tmp_path / "text.txt"), tmp_path / "hangs.py", tmp_path / "base"
    script.write_text(HANGS)
    command = [sys.executable, str(script), str(text), str(tmp_path / "marker")]
    environment = tiny.environment(base) | {"PYTHONPATH": str(tiny.ROOT)}
    done = subprocess.run(command, cwd=tiny.ROOT, env=environment, capture_output=True, text=True, timeout=180, check=False)
    assert done.returncode == 0, done.stderr
    assert "rank 1 has made no progress for" in done.stderr and "reading the rows of base step 4" in done.stderr
    assert "rank 0 has made no progress for" in done.stderr and "waiting for the other ranks in base step 4" in done.stderr
    assert "a worker was lost; restart 1 of 2" in done.stderr and "resuming at step 3 of 6" in done.stderr
    assert [line[1] for line in tiny.losses(base)] == [1, 2, 3, 4, 5, 6]


def card(monkeypatch: pytest.MonkeyPatch, free: int, retries: int) -> torch.device:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, 6_000_000_000))
    monkeypatch.setattr(torch.cuda, "memory_stats", lambda device: {"num_alloc_retries": retries})
    return torch.device("cuda", 0)


@pytest.mark.parametrize(("free", "retries"), [(50_000_000, 0), (1_000_000_000, 9)])
def test_the_alarm_names_what_to_lower(free: int, retries: int, monkeypatch: pytest.MonkeyPatch) -> None:
    full = card(monkeypatch, free, retries)
    said = str(slow(full, 200.0, 10_000.0, tokens=4096, waited=0.0, rows=8))
    assert "2% of the planned" in said and "memory is full" in said and "--device_batch_size (now 8)" in said
    assert "--max_seq_len" in str(slow(full, 200.0, 10_000.0, tokens=4096, waited=0.0, rows=1))


def test_the_alarm_knows_other_causes(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    assert "faster disk" in str(slow(cpu, 200.0, 10_000.0, tokens=4096, waited=0.8, rows=8))
    monkeypatch.setattr(os, "getloadavg", lambda: (99.0, 99.0, 99.0))
    assert "--threads" in str(slow(cpu, 200.0, 10_000.0, tokens=4096, waited=0.0, rows=8))
    monkeypatch.setattr(os, "getloadavg", lambda: (0.1, 0.1, 0.1))
    assert "`nanochat doctor`" in str(slow(cpu, 200.0, 10_000.0, tokens=4096, waited=0.0, rows=8))
    assert "doctor --gpus" in str(slow(card(monkeypatch, 3_000_000_000, 0), 200.0, 10_000.0, tokens=4096, waited=0.0, rows=8))


def test_no_alarm_without_need() -> None:
    cpu = torch.device("cpu")
    assert slow(cpu, 6_000.0, 10_000.0, tokens=4096, waited=0.0, rows=8) is None
    assert slow(cpu, 200.0, 0.0, tokens=4096, waited=0.0, rows=8) is None  # no plan
    assert slow(cpu, 20_000.0, 1e6, tokens=256, waited=0.0, rows=8) is None  # a step of 13 ms is all overhead
