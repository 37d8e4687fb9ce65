"""One rank or many: the same weights; and the launcher, which turns what workers end with into one exit code.

Run as a script under torchrun, this file is the worker of its own test.
"""

import ast
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nanochat.distributed import ranks, workers
from nanochat.distributed.ranks import Ranks, join, launch, record_exit, single
from nanochat.errors import HungError
from nanochat.evaluation.bits_per_byte import bits_per_byte
from nanochat.model.build import build_model
from nanochat.model.loss import IGNORE
from nanochat.model.optim import LearningRates, MuonAdamW
from nanochat.model.scaling import GPTConfig
from nanochat.model.transformer import Transformer
from nanochat.runs.checkpoint import Checkpoints
from nanochat.runs.metrics import Metrics
from nanochat.train.batch import StepBatch
from nanochat.train.schedule import Schedule
from nanochat.train.signals import StopSignal
from nanochat.train.stage import Stage
from nanochat.train.trainer import Trainer
from tests import tiny

pytestmark = pytest.mark.long
ROOT = Path(__file__).resolve().parents[2]
HALF, STEPS = 3, 5
VOCAB = 40


class Rows:
    """Four rows of 16 tokens a step, with fewer targets in the first of them, and none in the second."""

    def batch(self, step: int, here: Ranks) -> StepBatch:
        ids = np.random.default_rng(step).integers(0, VOCAB, (4, 17))
        targets = ids[:, 1:].copy()
        targets[0, :11], targets[1] = IGNORE, IGNORE
        own = slice(4 // here.world_size * here.rank, 4 // here.world_size * (here.rank + 1))
        return StepBatch(ids[own, :-1], targets[own], counted=int((targets != IGNORE).sum()), tokens=64)


def train(folder: Path, steps: int, here: Ranks, device_batch_size: int, source: Path | None = None) -> Transformer:
    """Train to `steps` from the newest checkpoint of `source`, else from random weights; the checkpoint goes to `folder`."""
    torch.set_num_threads(1)
    # 3 layers do not deal evenly to 2 ranks, nor do the smear's single row and the scalars
    shape = {"depth": 3, "dim": 32, "n_head": 2, "n_kv_head": 1, "head_dim": 16, "vocab_size": VOCAB, "max_seq_len": 16}
    model = build_model(GPTConfig(**shape))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(torch.randn(weight.shape, generator=generator) * 0.3)
    rates = LearningRates(embedding=0.01, value_embedding=0.01, scalar=0.01)  # small: Adam makes noise of the same size as its steps
    optimizer = MuonAdamW(model, rates, 2**17, here)
    newest = Checkpoints(source).newest() if source else None
    if newest:
        newest.load_model(model)
        newest.load_optimizer(optimizer)
    start = newest.step if newest else 0
    schedule = Schedule(steps, warmup_steps=0, warmdown_ratio=0.0, final_lr_frac=1.0, weight_decay=0.0, momentum=(0.9, 0.9, 0.9))
    inputs = np.random.default_rng(99).integers(0, VOCAB, (3, 17))

    def evaluate() -> dict[str, float]:
        bits = bits_per_byte(model, model, inputs[:, :-1], inputs[:, 1:], np.ones(VOCAB, dtype=np.int64), 2, here)
        assert bits is not None
        return {"bpb": bits}

    stage = Stage("base", Rows(), schedule, device_batch_size, evaluate=evaluate, meta={"model": model.config.to_dict()})
    metrics = Metrics(folder / "metrics.jsonl", "base", 0) if here.main else None
    Trainer(stage, model, model, optimizer, here, Checkpoints(folder), metrics, StopSignal(), start).run()
    return model


def worker(folder: Path) -> None:
    """Two ranks: from the start to the middle; from one rank's middle to the end."""
    with join("cpu") as here:
        train(folder / "two-half", HALF, here, device_batch_size=1)
        train(folder / "two-end", STEPS, here, device_batch_size=2, source=folder / "one-half")
        told = here.main_first("told", lambda: f"rank {here.rank}")
        assert told == f"rank {here.rank}"
        assert here.gather_objects(here.rank) == [0, 1]
        if here.main:
            (folder / "done").touch()


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_two_ranks_give_the_weights_of_one_and_resume_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    straight = train(tmp_path / "one-end", STEPS, single(), device_batch_size=4)
    train(tmp_path / "one-half", HALF, single(), device_batch_size=4)
    assert launch([__file__, str(tmp_path)], processes=2, restarts=0) == 0
    assert (tmp_path / "done").exists()

    halves = [Checkpoints(tmp_path / name).newest() for name in ("one-half", "two-half")]
    assert [len(half.files) for half in halves if half] == [3, 4]  # one optimizer file a rank
    resumed = train(tmp_path / "resumed", STEPS, single(), device_batch_size=1, source=tmp_path / "two-half")
    ended = Checkpoints(tmp_path / "two-end").newest()
    assert ended is not None
    for other in (resumed, ended.read_model()):
        for (name, one), weight in zip(straight.named_parameters(), other.parameters(), strict=True):
            torch.testing.assert_close(weight, one, rtol=1e-4, atol=1e-5, msg=lambda text, n=name: f"{n}: {text}")
    for key in ("loss", "bpb"):
        expected = [line[key] for line in lines(tmp_path / "one-end") if key in line]
        found = [line[key] for name in ("two-half", "two-end") for line in lines(tmp_path / name) if key in line]
        assert found[-len(expected) :] == pytest.approx(expected, rel=1e-5)


# ---- lost before the first collective ---------------------------------------------------------------------------

JOINS = """
import os, signal, sys
from datetime import timedelta
import torch.distributed as dist
import entrypoint
from nanochat.distributed import liveness, ranks
from nanochat.cli.app import run_and_exit
from nanochat.distributed import liveness as peers, ranks

ranks.START = {start}
ranks.Liveness = lambda *arguments: liveness.Liveness(*arguments, lost=1.5, start={start})

def training():
    with ranks.join("cpu") as here:
        print(here.gather_objects(here.rank))

if {dies!r} and os.environ["RANK"] == "1":
    dist.init_process_group = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)
run_and_exit(training)
"""


def begin(rank: int, port: int, dies: bool = False, start: float = 20.0) -> "subprocess.Popen[str]":
    """A process of two that join on this machine."""
    place = {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    command = [sys.executable, "-c", JOINS.format(dies=dies, start=start)]
    environment = os.environ | place | {"PYTHONPATH": str(ROOT), "NO_COLOR": "1"}
    return subprocess.Popen(command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def test_two_processes_join() -> None:
    port = free_port()
    both = [begin(rank, port) for rank in (0, 1)]
    told = [process.communicate(timeout=60) for process in both]
    assert [process.returncode for process in both] == [0, 0] and {out for out, _ in told} == {"[0, 1]\n"}, told


def test_a_process_killed_while_the_group_is_made() -> None:
    """gloo itself would wait half an hour for its address."""
    port = free_port()
    both = [begin(rank, port, dies=True) for rank in (0, 1)]
    began = time.monotonic()
    _, told = both[0].communicate(timeout=60)
    assert both[0].returncode == 7 and "no heartbeat from rank 1" in told and "hint: run the same command again" in told, told
    assert both[1].wait(10) == -signal.SIGKILL and time.monotonic() - began < 20


@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_that_never_comes(rank: int) -> None:
    alone = begin(rank, free_port(), start=2.0)
    _, told = alone.communicate(timeout=60)
    assert alone.returncode == 7 and f"error: rank {rank}: rendezvous of 2 processes failed" in told, told


@pytest.mark.slow
def test_at_full_rates_only_rounding_differs(base: Path, tmp_path: Path) -> None:
    """In float32 the same 40 steps differ by up to 2e-2 (early steps of Adam and Muon amplify a difference a hundredfold each); in float64,
    whose rounding is 5e8 times as fine, by as much less: one process and two, and two device batches, do the same arithmetic."""
    text = tiny.sentences(tmp_path / "text.txt")
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "--"]
    found = {}
    for run, rows, launcher in (("whole", 8, []), ("rows", 1, []), ("ranks", 4, torchrun)):
        flags = tiny.flags(text, run, num_iterations=40, depth=2, weight_decay=0.0, device_batch_size=rows)
        command = [sys.executable, *launcher, str(Path(__file__).with_name("double.py")), *flags]
        environment = tiny.environment(base) | {"PYTHONPATH": str(ROOT)}
        done = subprocess.run(command, cwd=ROOT, env=environment, text=True, capture_output=True, timeout=120, check=False)
        assert done.returncode == 0, done.stderr
        found[run] = [loss for _, _, loss in tiny.losses(base, run)]
    one = found.pop("whole")
    worst = {run: max(abs(a - b) / b for a, b in zip(losses, one, strict=True)) for run, losses in found.items()}
    print(worst)
    assert len(one) == 40 and one[-1] < 0.5 * one[0] and max(worst.values()) < 1e-8, worst


def test_one_process_is_one_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    with join("cpu") as here:
        assert here == single("cpu") and here.main
        assert here.gather_objects("x") == ["x"]
        assert here.main_first("work", lambda: 7) == 7
        tensor = torch.tensor([1.0, 2.0])
        assert torch.equal(here.all_reduce_mean(tensor.clone()), tensor) and torch.equal(here.all_reduce_sum(tensor.clone()), tensor)


# ---- the launcher ---------------------------------------------------------------------------------------------

CRASHES_THEN_REFUSES = """
import sys
from pathlib import Path
from nanochat.distributed.ranks import has_launcher, launched, record_exit
assert launched() and has_launcher()
attempts = Path(sys.argv[1])
with attempts.open("a") as file:
    file.write("x")
code = len(attempts.read_text())
record_exit(code)
sys.exit(code)
"""


def test_the_workers_code_comes_back_through_torchrun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The first time it crashes (1): restarted. Then it is refused (2): not restarted, and 2 it is."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    script = tmp_path / "worker.py"
    script.write_text(CRASHES_THEN_REFUSES)
    assert launch([str(script), str(tmp_path / "attempts")], processes=1, restarts=5) == 2
    assert (tmp_path / "attempts").read_text() == "xx"
    assert capfd.readouterr().err.count("a worker was lost; restart 1 of 5") == 1


@pytest.mark.parametrize(
    ("attempts", "code", "runs"),
    [
        ([(0, [0, 0], False)], 0, 1),
        ([(1, [2, 2], False)], 2, 1),
        ([(1, [4, 7], False)], 4, 1),  # the others wait for the main rank's download, and it fails
        ([(1, [5, 1], False)], 5, 1),
        ([(1, [6], False)], 6, 1),  # the other was killed in the middle of a collective
        ([(1, [75, 75], False)], 75, 1),
        ([(1, [75], False)], 75, 1),
        ([(1, [1, 1], False)], 1, 3),
        ([(1, [], False)], 1, 3),
        ([(1, [7, 1], False)], 7, 3),
        ([(1, [1, 75], False), (0, [0, 0], False)], 0, 2),  # the fellow of a worker that crashed was stopped
        ([(1, [1], False), (1, [3, 3], False)], 3, 2),
        ([(1, [75, 75], True)], 75, 1),
        ([(1, [], True)], 75, 1),  # a signal before the workers had begun: nothing is started again
        ([(1, [75, 1], True)], 75, 1),
        ([(1, [3, 75], True)], 3, 1),
        ([(0, [0, 0], True)], 0, 1),  # the signal came after the last step
    ],
)
def test_one_code_from_many(attempts: list[tuple[int, list[int], bool]], code: int, runs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The processes' own code, the codes that workers left, and whether a signal came; the last attempt repeats itself."""
    count = [0]

    def fake_wait(command: list[str], environment: dict[str, str], processes: int) -> tuple[int, bool]:
        outcome, codes, stopped = attempts[min(count[0], len(attempts) - 1)]
        count[0] += 1
        with monkeypatch.context() as patch:
            patch.setenv(ranks.EXIT_CODES, environment[ranks.EXIT_CODES])
            patch.setenv("WORLD_SIZE", "2")
            for rank, left in enumerate(codes):
                patch.setenv("RANK", str(rank))
                record_exit(left)
        return outcome, stopped

    monkeypatch.setattr(ranks, "_wait", fake_wait)
    assert launch(["-c", "pass"], processes=2, restarts=2) == code
    assert count[0] == runs


@pytest.mark.parametrize(
    ("code", "codes", "before", "after", "said"),
    [
        (-9, set(), 3, 4, "the system killed a worker, because memory ran out"),
        (-9, {75}, 3, 3, "a worker was killed, probably because memory ran out"),
        (-9, set(), None, None, "a worker was killed, probably because memory ran out"),
        (-11, {1}, 3, 4, "a worker was ended by SIGSEGV"),
        (75, {75}, 3, 3, "another program stopped a worker"),
        (7, {7, 75}, 3, 3, ""),
        (1, {1}, 3, 4, ""),
        (0, {0}, 3, 4, ""),
    ],
)
def test_the_likely_killer_is_named(
    code: int, codes: set[int], before: int | None, after: int | None, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ranks, "oom_kills", lambda: after)
    line = ranks._ended_by(code, codes, before)
    assert line.startswith(said) and bool(line) == bool(said)


def killed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> int:
    """The launcher's code for two workers that run `text`, once with the argument 1 and after a restart with 2."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    script, attempts = tmp_path / "worker.py", tmp_path / "attempts"
    script.write_text("import os, signal, sys, time\nfrom pathlib import Path\n" + text)
    return launch([str(script), str(attempts)], processes=2, restarts=1)


DIES_IN_ITS_GROUP = """
mine = Path(sys.argv[1] + os.environ["RANK"])
again = mine.exists()
mine.touch()
if os.environ["RANK"] == "1" and not again:
    Path("{group}", "cgroup.procs").write_text(str(os.getpid()))
    held = []
    while True:
        held.append(bytearray(os.urandom(1 << 20)))
time.sleep(0 if again else 60)
"""


def test_a_worker_that_the_system_kills_for_its_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], memory_group: Path
) -> None:
    """By the kernel, in a control group of 256 MB: the others are stopped, all are started again, and the reason is said once."""
    assert killed_once(tmp_path, monkeypatch, DIES_IN_ITS_GROUP.format(group=memory_group)) == 0
    said = capfd.readouterr().err
    assert said.count("the system killed a worker, because memory ran out") == 1 and "a worker was lost; restart 1 of 1" in said


def test_machines_that_do_not_meet(monkeypatch: pytest.MonkeyPatch) -> None:
    """The launchers give up, and no worker has begun; it is started again by whoever started the machines, not here."""
    tried: list[list[str]] = []
    monkeypatch.setattr(ranks, "_wait", lambda command, *_: tried.append(command) or (1, False))
    monkeypatch.setenv("PET_NNODES", "2")
    with pytest.raises(HungError, match="2 machines") as caught:
        launch(["-c", "pass"], processes=1)
    assert "PET_MASTER_ADDR" in caught.value.hint and len(tried) == 1 and "--standalone" not in tried[0]


def test_two_machines_of_ones_own(base: Path, tmp_path: Path) -> None:
    """`torchrun --nnodes 2 ... -m scripts.base_train` on each: the losses are those of one process."""
    flags = tiny.flags(tiny.sentences(tmp_path / "text.txt"), **tiny.GENTLE)
    options = [flag for flag in flags[1:] if not flag.startswith("--run=")]
    alone = tiny.call(base, "-m", "scripts.base_train", *options, "--run=one")
    assert alone.returncode == 0, alone.stderr
    place = ["--nnodes=2", "--nproc_per_node=1", "--master_addr=127.0.0.1", f"--master_port={free_port()}"]
    machines = [
        tiny.start(
            base, "-m", "torch.distributed.run", f"--node_rank={rank}", *place, "-m", "--", "scripts.base_train", *options, "--run=two"
        )
        for rank in (0, 1)
    ]
    told = [machine.communicate(timeout=120) for machine in machines]
    assert [machine.returncode for machine in machines] == [0, 0], told
    one, two = tiny.losses(base, "one"), tiny.losses(base, "two")
    assert len(one) == 6 and two == [(stage, step, pytest.approx(loss, rel=1e-5)) for stage, step, loss in one]


def test_a_code_is_left_only_for_our_launcher(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(ranks.EXIT_CODES, raising=False)
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    record_exit(3)  # a user's own torchrun: nowhere to leave it
    monkeypatch.setenv(ranks.EXIT_CODES, str(tmp_path))
    record_exit(3)
    assert (tmp_path / "rank_0").read_text() == "3"


COUNTS_SIGNALS = """
import os, signal, sys, time
from pathlib import Path

seen = []
signal.signal(signal.SIGINT, lambda *_: seen.append(1))
Path(sys.argv[1]).write_text(str(os.getsid(0)))
end = time.monotonic() + 30
while not seen and time.monotonic() < end:
    time.sleep(0.01)
time.sleep(0.2)
sys.exit(40 + len(seen))
"""


@pytest.fixture
def impatient(tmp_path: Path) -> Iterator[Path]:
    """A thread that sends this process SIGINT once the file exists, as Ctrl-C would."""
    ready = tmp_path / "ready"

    def interrupt() -> None:
        end = time.monotonic() + 30
        while not (ready.exists() and ready.read_text()) and time.monotonic() < end:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    yield ready
    thread.join()


def test_a_signal_is_passed_on_once(impatient: Path, tmp_path: Path) -> None:
    """The workers are in a session of their own: the terminal's Ctrl-C does not also reach them directly."""
    before = signal.getsignal(signal.SIGINT)
    (tmp_path / "codes").mkdir()
    environment = os.environ | {ranks.EXIT_CODES: str(tmp_path / "codes")}
    code, stopped = ranks._wait([sys.executable, "-c", COUNTS_SIGNALS, str(impatient)], environment, 1)
    assert (code, stopped) == (41, True)
    assert int(impatient.read_text()) != os.getsid(0)
    assert signal.getsignal(signal.SIGINT) is before


def test_a_signal_as_the_launcher_starts_is_not_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It comes before there is anybody to pass it on to, and the process that follows does not outlive it."""
    start = subprocess.Popen

    def interrupted(*arguments: Any, **options: Any) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        return start(*arguments, **options)

    monkeypatch.setattr(workers.subprocess, "Popen", interrupted)
    command = [sys.executable, "-c", "import time; time.sleep(60)"]
    assert ranks._wait(command, os.environ | {ranks.EXIT_CODES: str(tmp_path)}, 1) == (-signal.SIGTERM, True)


@pytest.mark.parametrize(("codes", "ends"), [(["7", "7"], True), (["7"], False), (["0", "0"], False)])
def test_a_launcher_that_does_not_follow_its_workers(codes: list[str], ends: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A library may wait for a network that is gone; with a worker left, or none failed, it may take its time."""
    monkeypatch.setattr(ranks, "LINGER", 0.5)
    for rank, code in enumerate(codes):
        (tmp_path / f"rank_{rank}").write_text(code)
    command = [sys.executable, "-c", "import time; time.sleep(4)"]
    assert ranks._wait(command, os.environ | {ranks.EXIT_CODES: str(tmp_path)}, 2) == (-signal.SIGKILL if ends else 0, False)


# ---- what others can reach, and what is unpickled ------------------------------------------------------------------

HOOK = """
import os, pickle, sys
def told(what):
    with open(os.environ["UNPICKLED"], "a") as file:
        file.write(f"{os.getpid()} {sys.argv} {what} in {sys._getframe(2).f_code}\\n")
def hook(event, arguments):
    if event == "pickle.find_class" and sys._getframe(1).f_globals.get("__name__") != "sysconfig":
        told(arguments)
sys.addaudithook(hook)
class Unpickler(pickle.Unpickler):  # also of what needs no class
    def __init__(self, *arguments, **options):
        told("Unpickler")
        super().__init__(*arguments, **options)
def watched(function):
    def call(*arguments, **options):
        told(function.__name__)
        return function(*arguments, **options)
    return call
pickle.Unpickler, pickle.load, pickle.loads = Unpickler, watched(pickle.load), watched(pickle.loads)
"""


def tree(process: int) -> set[int]:
    """`process` and all that it has started."""
    found = {process}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            found_parent = int(path.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
        if found_parent in found or found_parent == process:
            found |= tree(int(path.parent.name))
    return found


def listening(processes: set[int]) -> dict[str, set[int]]:
    """The addresses on which `processes` listen, by `ss`."""
    lines = subprocess.run(["ss", "-Hltnp"], capture_output=True, text=True, check=True).stdout.splitlines()
    found: dict[str, set[int]] = {}
    for line in lines:
        for number in re.findall(r"pid=(\d+)", line):
            if int(number) in processes:
                found.setdefault(line.split()[3].rpartition(":")[0], set()).add(int(number))
    return found


def named_outward(folder: Path) -> list[str]:
    """What to put before a command for which this machine's name is to lead to an address that others reach, as a server's does.

    By that name gloo chooses where to listen. Nothing where this user may not have names of its own, or there is no such address.
    """
    addresses = subprocess.run(["hostname", "-I"], capture_output=True, text=True, check=False).stdout.split()
    outward = next((address for address in addresses if ":" not in address), "")
    (folder / "hosts").write_text(f"127.0.0.1 localhost\n{outward} outward\n")
    script = 'hostname outward && mount --bind "$0" /etc/hosts && exec "$@"'
    command = ["unshare", "--uts", "--mount", "sh", "-c", script, str(folder / "hosts")]
    may = outward and not os.geteuid() and shutil.which("unshare")
    return command if may and not subprocess.run([*command, "true"], capture_output=True, check=False).returncode else []


@pytest.mark.skipif(not shutil.which("ss"), reason="ss is not here")
@pytest.mark.parametrize("own", [False, True], ids=["train", "torchrun --standalone"])
def test_one_machines_processes_listen_on_loopback_alone_and_unpickle_nothing(base: Path, tmp_path: Path, own: bool) -> None:
    """The launcher and its workers, all through a training run: neither another machine nor a neighbour's bytes get code to run."""
    (tmp_path / "hook").mkdir()
    (tmp_path / "hook" / "sitecustomize.py").write_text(HOOK)
    text = tiny.sentences(tmp_path / "text.txt")
    command = ["entrypoint.py", *tiny.flags(text, num_iterations=40, nproc_per_node=2)]
    if own:
        options = tiny.flags(text, num_iterations=40)[2:]
        shim = "from nanochat.cli.upstream import torchrun; torchrun()"
        command = ["-c", shim, "--standalone", "--nproc_per_node=2", "-m", "scripts.base_train", *options]
    environment = tiny.environment(base) | {"UNPICKLED": str(tmp_path / "unpickled"), "PYTHONPATH": f"{tmp_path / 'hook'}:{ROOT}"}
    command = [*named_outward(tmp_path), sys.executable, *command]
    process = subprocess.Popen(command, cwd=ROOT, env=environment, text=True, stderr=subprocess.PIPE)
    found: dict[str, set[int]] = {}
    told: list[str] = []
    assert process.stderr is not None
    reading = threading.Thread(target=lambda: told.extend(process.stderr or []))
    reading.start()
    while process.poll() is None:
        for address, numbers in listening(tree(process.pid)).items():
            found.setdefault(address, set()).update(numbers)
        time.sleep(0.1)
    reading.join()
    assert process.returncode == 0, "".join(told)
    assert set(found) <= {"127.0.0.1", "[::1]"} and len(set().union(*found.values())) == 3, found  # a launcher and two workers
    assert not (tmp_path / "unpickled").exists(), (tmp_path / "unpickled").read_text()


def test_an_error_and_any_json_value_reach_every_rank(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    script = tmp_path / "worker.py"
    script.write_text(
        "from nanochat.distributed.ranks import join\n"
        "with join('cpu') as here:\n"
        "    own = {'rank': here.rank, 'text': 'ü' * 1000 * here.rank, 'none': None, 'exact': 0.1 + here.rank}\n"
        "    found = here.gather_objects(own)\n"
        "    assert found == [{'rank': r, 'text': 'ü' * 1000 * r, 'none': None, 'exact': 0.1 + r} for r in range(3)], found\n"
        "    assert here.gather_objects(None) == [None] * 3\n"
    )
    assert launch([str(script)], processes=3, restarts=0) == 0


def test_no_module_unpickles() -> None:
    """Nor calls what does, as torch's collectives of objects do."""
    modules = {"pickle", "dill", "cloudpickle", "marshal", "shelve"}
    names = re.compile(r"torch\.load|(all_gather|gather|broadcast|scatter|send|recv)_object(_list)?\b|allow_pickle=True")
    for path in sorted((ROOT / "nanochat").rglob("*.py")):
        for each in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(each, ast.Import | ast.ImportFrom):
                assert not modules & {alias.name for alias in each.names} | {getattr(each, "module", "")} & modules, path
            if isinstance(each, ast.Call):
                assert not names.search(ast.unparse(each)), path


# ---- launchers that end or do not meet ------------------------------------------------------------------------------

HANGS = """
import os, sys, time
from pathlib import Path
from nanochat.distributed.ranks import join
with join("cpu"):
    Path(sys.argv[1], f"rank_{os.environ['RANK']}").write_text(str(os.getpid()))
    time.sleep(600)
"""


def test_workers_do_not_outlive_their_launcher(tmp_path: Path) -> None:
    script = tmp_path / "worker.py"
    script.write_text(HANGS)
    start = f"from nanochat.distributed.ranks import launch; launch([{str(script)!r}, {str(tmp_path)!r}], 2)"
    process = subprocess.Popen([sys.executable, "-c", start], env=os.environ | {"PYTHONPATH": str(ROOT)})
    end = time.monotonic() + 60
    while len(list(tmp_path.glob("rank_*"))) < 2 or not all(path.read_text() for path in tmp_path.glob("rank_*")):
        assert process.poll() is None and time.monotonic() < end
        time.sleep(0.05)
    workers_of = [int(path.read_text()) for path in tmp_path.glob("rank_*")]
    process.kill()
    process.wait()
    end = time.monotonic() + 20
    while any(Path(f"/proc/{number}/cmdline").exists() and Path(f"/proc/{number}/cmdline").read_bytes() for number in workers_of):
        assert time.monotonic() < end
        time.sleep(0.1)


MEMBER = "from nanochat.distributed.ranks import join\nwith join('cpu') as here: print(here.gather_objects(here.rank))"
NODE = f"""
import sys
from nanochat.distributed.ranks import launch
sys.exit(launch(["-c", {MEMBER!r}], int(sys.argv[1])))
"""


def node(index: int, port: int, processes: int) -> "subprocess.Popen[str]":
    place = {"PET_NNODES": "2", "PET_NODE_RANK": str(index), "PET_MASTER_ADDR": "127.0.0.1", "PET_MASTER_PORT": str(port)}
    environment = os.environ | place | {"PYTHONPATH": str(ROOT)}
    return subprocess.Popen([sys.executable, "-c", NODE, str(processes)], env=environment, text=True, stdout=subprocess.PIPE)


def test_launchers_of_two_machines_meet_without_torchrun(tmp_path: Path) -> None:
    """Also where they have different numbers of processes, and node 0's comes last."""
    port = free_port()
    second = node(1, port, 2)
    time.sleep(1)
    first = node(0, port, 1)
    told = [one.communicate(timeout=120)[0] for one in (first, second)]
    assert [first.returncode, second.returncode] == [0, 0] and "".join(told).count("[0, 1, 2]") == 3, told


def test_a_launcher_that_waits_for_another_machine_can_be_stopped() -> None:
    for index in (0, 1):
        alone = node(index, free_port(), 1)
        time.sleep(8)
        assert alone.poll() is None
        alone.terminate()
        assert alone.wait(20) == 75


class Store:
    """torch.distributed's store, in this process."""

    def __init__(self) -> None:
        self.values: dict[str, bytes] = {}

    def set(self, name: str, value: str) -> None:
        self.values[name] = value.encode()

    def get(self, name: str) -> bytes:
        return self.values[name]

    def wait(self, names: list[str], _limit: Any) -> None:
        assert all(name in self.values for name in names)


def test_the_others_learn_that_the_main_rank_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    store, done = Store(), []
    monkeypatch.setattr(torch.distributed.distributed_c10d, "_get_default_store", lambda: store)
    main, other = (Ranks(rank, rank, 2, torch.device("cpu")) for rank in (0, 1))

    def fail() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        main.main_first("shards", fail)
    with pytest.raises(HungError, match="shards"):
        other.main_first("shards", lambda: done.append(1))
    assert not done


if __name__ == "__main__":
    worker(Path(sys.argv[1]))
