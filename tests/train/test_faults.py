"""The fault table of docs/reliability.md, a test for each row: a whole run as a user starts it, a fault in its middle, and what is left.

Each run is compared with one that nothing happened to: whatever the fault, the finished run has its losses.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import tiny

pytestmark = pytest.mark.slow
STEPS = 12

# The same `train`, with a fault in it: `once()` is true the first time only, over restarts too; `loop`, `checkpoint`, ... are modules.
SCRIPT = """
import os, shutil, signal, sys, time
from pathlib import Path
import torch
from nanochat import paths
from nanochat.pipeline import train as run
from nanochat.evaluation import bits_per_byte as evaluate
from nanochat.runs import checkpoint
from nanochat.train import trainer as loop, pretrain
from tests import tiny

marker = Path({marker!r})

def once():
    if marker.exists():
        return False
    marker.touch()
    return True

{fault}
from nanochat.cli.app import run_and_exit
run_and_exit(run.train, tiny.config(Path({text!r}), **{options!r}), ("base",), sys.argv)
"""

AT_STEP = """
batch = pretrain.TextBatches.batch

def faulty(self, step, ranks):
    if step == {step} and ranks.rank == {rank} and once():
        {what}
    return batch(self, step, ranks)

pretrain.TextBatches.batch = faulty
"""


class Faulty:
    """A run of 12 steps in `base`, and the one beside it that nothing happens to."""

    def __init__(self, base: Path, folder: Path):
        self.base, self.folder, self.text = base, folder, tiny.sentences(folder / "text.txt")
        straight = self.call("", run="straight")
        assert straight.returncode == 0, straight.stderr

    def call(self, fault: str, timeout: float = 240, environment: dict[str, str] | None = None, **options: Any) -> Any:
        """Run it to its end."""
        defaults = tiny.GENTLE | {"num_iterations": STEPS, "device": "cpu", "save_every": 1, "eval_every": 4}
        script = self.folder / "run.py"
        marker = self.folder / "marker"
        script.write_text(SCRIPT.format(marker=str(marker), fault=fault, text=str(self.text), options=defaults | options))
        variables = tiny.environment(self.base) | {"PYTHONPATH": str(tiny.ROOT)} | (environment or {})
        command = [sys.executable, str(script)]
        return subprocess.run(command, cwd=tiny.ROOT, env=variables, capture_output=True, text=True, timeout=timeout, check=False)

    def same(self, rel: float = 0.0) -> None:
        """Every step is there once, with the loss that it has in the undisturbed run."""
        one, other = tiny.losses(self.base, "straight"), tiny.losses(self.base)
        assert [line[:2] for line in other] == [line[:2] for line in one]
        assert [line[2] for line in other] == pytest.approx([line[2] for line in one], rel=rel, abs=0)

    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.base / "runs" / "tiny" / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture
def faulty(base: Path, tmp_path: Path) -> Faulty:
    return Faulty(base, tmp_path)


def test_out_of_memory_in_a_step_on_one_rank(faulty: Faulty) -> None:
    """Both go on with half the batch, from the same step: no rank is left waiting."""
    fault = """
real = loop.accumulate_gradients
def full(batch, rows, model, forward, ranks, scale):
    if ranks.rank == 1 and rows > 2:
        raise torch.OutOfMemoryError("CUDA out of memory")
    return real(batch, rows, model, forward, ranks, scale)
loop.accumulate_gradients = full
"""
    done = faulty.call(fault, nproc_per_node=2)
    assert done.returncode == 0, done.stderr
    assert (
        done.stderr.count("out of memory in base step 1 with micro-batches of 4 sequences of 32 tokens") == 1
        and "continuing with 2" in done.stderr
    )
    faulty.same(rel=1e-5)


def test_out_of_memory_with_one_row(faulty: Faulty) -> None:
    fault = """
def full(*arguments):
    raise torch.OutOfMemoryError("CUDA out of memory")
loop.accumulate_gradients = full
"""
    done = faulty.call(fault, nproc_per_node=2)
    assert done.returncode == 6 and "--depth" in done.stderr and "a worker was lost" not in done.stderr, done.stderr


def test_out_of_memory_in_the_evaluation(faulty: Faulty) -> None:
    fault = """
real = evaluate.token_losses
def full(model, hidden, targets):
    if len(hidden) > 1:
        raise torch.OutOfMemoryError("CUDA out of memory")
    return real(model, hidden, targets)
evaluate.token_losses = full
"""
    done = faulty.call(fault)
    assert done.returncode == 0 and "out of memory in the evaluation" in done.stderr, done.stderr
    assert [line["step"] for line in faulty.lines() if "bpb" in line] == [4, 8, 12]
    faulty.same()


def test_a_bad_batch(faulty: Faulty) -> None:
    """Exit 5 before the update, nothing trained after it; the same command stops there again; with the option it goes past it."""
    fault = """
real = loop.accumulate_gradients
def spoilt(*arguments):
    sums = real(*arguments)
    return sums * float("nan") if now == [6] else sums
now = []
batch = pretrain.TextBatches.batch
def watched(self, step, ranks):
    now[:] = [step]
    return batch(self, step, ranks)
pretrain.TextBatches.batch = watched
loop.accumulate_gradients = spoilt
"""
    for _ in range(2):
        done = faulty.call(fault)
        assert done.returncode == 5 and "base step 7" in done.stderr and "--skip-bad-batches=1" in done.stderr, done.stderr
        assert tiny.losses(faulty.base) == tiny.losses(faulty.base, "straight")[:6]
    assert (faulty.base / "runs" / "tiny" / "nonfinite" / "base_step_000007" / "rank_00000.npz").exists()
    done = faulty.call(fault, skip_bad_batches=1)
    assert done.returncode == 0, done.stderr
    assert [line["step"] for line in faulty.lines() if line.get("skipped")] == [7] and len(faulty.lines()) == STEPS


def test_an_overflow_on_one_rank(faulty: Faulty) -> None:
    """Whichever rank's float16 gradient overflows, no rank updates its weights and all halve their scale: the losses are the same."""
    fault = """
real = loop.accumulate_gradients
calls = []
def overflowing(batch, rows, model, forward, ranks, scale):
    sums = real(batch, rows, model, forward, ranks, scale)
    calls.append(scale)
    return sums * torch.tensor([1, float("inf")]) if ranks.rank == RANK and len(calls) == 5 else sums
loop.accumulate_gradients = overflowing
"""
    found = []
    for rank in (0, 1):
        done = faulty.call(fault.replace("RANK", str(rank)), run=f"rank{rank}", nproc_per_node=2, dtype="float16", deterministic=False)
        assert done.returncode == 0 and "base step 5/12: a gradient overflowed float16; step skipped" in done.stderr, done.stderr
        lines = [json.loads(line) for line in (faulty.base / "runs" / f"rank{rank}" / "metrics.jsonl").read_text().splitlines()]
        assert [line["step"] for line in lines if line.get("skipped")] == [5]
        assert [line["loss_scale"] for line in lines] == [4096] * 4 + [2048] * 8
        found.append([line["loss"] for line in lines])
    assert found[0] == found[1]


def test_a_killed_worker(faulty: Faulty) -> None:
    done = faulty.call(AT_STEP.format(step=5, rank=1, what="os.kill(os.getpid(), signal.SIGKILL)"), nproc_per_node=2)
    assert done.returncode == 0, done.stderr
    assert "a worker was lost; restart 1 of 2" in done.stderr and "resuming at step 5 of 12" in done.stderr
    faulty.same(rel=1e-5)


def test_a_stopped_worker(faulty: Faulty) -> None:
    """SIGSTOP: it cannot even be asked to end; the other rank says where it waits, and the launcher kills both."""
    fault = AT_STEP.format(step=5, rank=1, what="os.kill(os.getpid(), signal.SIGSTOP)")
    began = time.monotonic()
    quick = {"TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "5"}
    done = faulty.call(fault, nproc_per_node=2, hang_timeout=5.0, environment=quick)
    assert done.returncode == 0, done.stderr
    assert "rank 0 has made no progress for" in done.stderr and "waiting for the other ranks in base step 6" in done.stderr
    assert "a worker was lost; restart 1 of 2" in done.stderr and "resuming at step 5 of 12" in done.stderr
    print(f"{time.monotonic() - began:.0f} s from start to end, the hang and the restart in it")
    faulty.same(rel=1e-5)


def test_a_signal_in_a_save(faulty: Faulty) -> None:
    """The save is finished, the next step too, and saved; the same command goes on."""
    fault = """
real = checkpoint._write_tensors
def interrupted(folder, name, tensors):
    if folder.name == "step_000005" and once():
        os.kill(os.getpid(), signal.SIGTERM)
    return real(folder, name, tensors)
checkpoint._write_tensors = interrupted
"""
    done = faulty.call(fault)
    assert done.returncode == 75 and "stopped after base step 6 of 12, which is saved" in done.stderr, done.stderr
    done = faulty.call(fault)
    assert done.returncode == 0 and "resuming at step 6 of 12" in done.stderr, done.stderr
    faulty.same()


def test_a_kill_in_a_save(faulty: Faulty) -> None:
    fault = """
real = checkpoint._write_tensors
def killed(folder, name, tensors):
    if folder.name == "step_000005" and name == checkpoint.MODEL and once():
        os.kill(os.getpid(), signal.SIGKILL)
    return real(folder, name, tensors)
checkpoint._write_tensors = killed
"""
    assert faulty.call(fault).returncode == -signal.SIGKILL
    done = faulty.call(fault)
    assert done.returncode == 0 and "resuming at step 4 of 12" in done.stderr, done.stderr
    faulty.same()


def test_the_data_is_gone_in_the_middle(faulty: Faulty) -> None:
    """What was opened is mapped and stays readable; a run that begins again makes it anew from the text."""
    gone = "[shutil.rmtree(paths.base_dir() / name) for name in ('data', 'tokens')]"
    done = faulty.call(AT_STEP.format(step=5, rank=0, what=gone))
    assert done.returncode == 0, done.stderr
    faulty.same()


def test_the_data_is_gone_and_so_is_the_text(faulty: Faulty) -> None:
    """A run that stopped cannot begin again without its text, and says so; with it, it goes on."""
    gone = "[shutil.rmtree(paths.base_dir() / name) for name in ('data', 'tokens')]; os.kill(os.getpid(), signal.SIGTERM)"
    fault = AT_STEP.format(step=5, rank=0, what=gone)
    assert faulty.call(fault).returncode == 75
    hidden = faulty.text.rename(faulty.folder / "hidden")
    done = faulty.call(fault)
    assert done.returncode in (2, 4) and "text.txt" in done.stderr and "hint:" in done.stderr, done.stderr
    hidden.rename(faulty.text)
    done = faulty.call(fault)
    assert done.returncode == 0 and "resuming at step 6 of 12" in done.stderr, done.stderr
    faulty.same()


def test_the_mirror_is_gone(faulty: Faulty, tmp_path: Path) -> None:
    there = tmp_path / "there"
    gone = f"time.sleep(1); shutil.rmtree({str(there)!r}); Path({str(there)!r}).write_text('no folder')"
    done = faulty.call(AT_STEP.format(step=5, rank=0, what=gone), mirror=f"file://{there}")
    assert done.returncode == 0 and done.stderr.count("cannot be reached") == 1 and "not yet uploaded" in done.stderr, done.stderr
    faulty.same()
    there.unlink()
    again = faulty.call("", mirror=f"file://{there}", num_iterations=STEPS)
    assert again.returncode == 0, again.stderr


def test_world_sizes_and_device_batches_agree(base: Path, tmp_path: Path) -> None:
    """50 steps in 1, 2 and 4 processes, with device batches of 1 to 8 rows: the losses agree to 1e-5."""
    text = tiny.sentences(tmp_path / "text.txt")
    found = {}
    for processes, rows in ((1, 8), (1, 1), (2, 4), (2, 1), (4, 2), (4, 1)):
        run = f"p{processes}-b{rows}"
        options = tiny.GENTLE | {"num_iterations": 50, "nproc_per_node": processes, "device_batch_size": rows}
        done = tiny.call(base, "entrypoint.py", *tiny.flags(text, run=run, **options), timeout=300)
        assert done.returncode == 0, done.stderr
        found[run] = [loss for _, _, loss in tiny.losses(base, run)]
    one = found.pop("p1-b8")
    assert len(one) == 50
    worst = {run: max(abs(a - b) / b for a, b in zip(losses, one, strict=True)) for run, losses in found.items()}
    print(worst)
    assert max(worst.values()) < 1e-5, worst


# ---- S3 ---------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def s3_packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """s3fs, and moto as a server that speaks S3, in a folder of their own: the project's constraints do not hold there."""
    folder = tmp_path_factory.mktemp("s3-packages")
    uv = shutil.which("uv") or str(Path(sys.executable).with_name("uv"))
    command = [uv, "pip", "install", "--quiet", "--python", sys.executable, "--target", str(folder), "s3fs", "moto[s3,server]"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300, check=False)
    if done.returncode:
        pytest.skip(f"s3fs and moto could not be installed: {done.stderr.strip()[-200:]}")
    return folder


class S3Server:
    """moto's server on a free port; what it holds is gone when it stops."""

    def __init__(self, packages: Path):
        self.packages = packages
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        keys = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_DEFAULT_REGION": "us-east-1"}
        self.environment = keys | {"AWS_ENDPOINT_URL": self.url, "PYTHONPATH": f"{tiny.ROOT}{os.pathsep}{packages}"}
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, with the bucket `runs`."""
        environment = dict(os.environ) | self.environment
        command = [sys.executable, "-c", "from moto.server import main; main()", "-H", "127.0.0.1", "-p", str(self.port)]
        self.process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        bucket = "import s3fs; s3fs.S3FileSystem().mkdir('runs')"
        end = time.monotonic() + 60
        while subprocess.run([sys.executable, "-c", bucket], env=environment, capture_output=True, check=False).returncode:
            assert time.monotonic() < end and self.process.poll() is None, "moto did not start"

    def stop(self) -> None:
        """End it at once."""
        if self.process:
            self.process.kill()
            self.process.wait()


@pytest.fixture
def s3(s3_packages: Path) -> Iterator[S3Server]:
    server = S3Server(s3_packages)
    server.start()
    yield server
    server.stop()


def test_an_s3_server_is_stopped_in_the_middle(faulty: Faulty, s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run ends well; when the server is back, empty, the same command brings the newest step; a new machine goes on from there."""
    assert s3.process is not None
    gone = f"time.sleep(5); os.kill({s3.process.pid}, signal.SIGKILL)"
    url, variables = "s3://runs/mine", s3.environment
    done = faulty.call(AT_STEP.format(step=5, rank=0, what=gone), environment=variables, mirror=url)
    assert done.returncode == 0 and done.stderr.count("cannot be reached") == 1 and "not yet uploaded" in done.stderr, done.stderr
    faulty.same()
    s3.stop()
    s3.start()
    more = faulty.call("", environment=variables, mirror=url)
    assert more.returncode == 0, more.stderr
    (faulty.base / "runs" / "tiny").rename(tmp_path / "lost")
    fetched = faulty.call("", environment=variables, mirror=url)
    assert fetched.returncode == 0 and "from the mirror" in fetched.stderr, fetched.stderr
    faulty.same()
