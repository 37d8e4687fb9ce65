"""What is measured on this machine: the memory model's truth, and the time of a step, remembered."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from nanochat.config import Config
from nanochat.hardware.machine import Hardware
from nanochat.kernels import build as kernels
from nanochat.model import scaling
from nanochat.planning import calibrate
from nanochat.planning.calibrate import Measured, calibrated, measure, product_gain
from nanochat.planning.memory import memory_bytes
from nanochat.planning.plan import make_plan
from nanochat.planning.rules import resolve

CPU = Hardware(name="a CPU", cuda=False, memory=16 << 30, usable=12 << 30, flops=30e9)
# Depth, width, context, rows, vocabulary. Much smaller ones find their room in what the process had freed before.
SHAPES = [
    *((2, 64, 256, 16, 512), (3, 96, 256, 4, 512), (4, 128, 256, 8, 1024), (4, 128, 512, 4, 4096)),
    *((6, 192, 256, 8, 4096), (4, 256, 256, 16, 2048), (8, 256, 512, 4, 4096), (4, 256, 256, 1, 32768)),
    *((6, 384, 512, 4, 8192), (8, 512, 256, 2, 16384), (3, 96, 1024, 16, 512), (10, 320, 256, 4, 4096)),
]


def config(depth: int, width: int, context: int, rows: int, vocabulary: int) -> Config:
    return resolve(
        Config(
            device="cpu",
            depth=depth,
            aspect_ratio=width // depth if width % depth == 0 else 1,
            head_dim=32 if width % depth == 0 else width,
            max_seq_len=context,
            device_batch_size=rows,
            vocab_size=vocabulary,
            num_iterations=10,
            total_batch_size=rows * context,
            window_pattern="SSSL",
            threads=1,
        ),
        hardware=CPU,
    )


def compared(shape: tuple[int, int, int, int, int], monkeypatch: pytest.MonkeyPatch) -> float:
    """The planned peak memory as a part of the measured one."""
    monkeypatch.setattr(calibrate, "SECONDS", 0.0)
    values = config(*shape)
    found = measure(values)
    assert found is not None
    planned = memory_bytes(scaling.gpt_config(values), values.device_batch_size, dtype="float32", compiled=False, device="cpu")["total"]
    print(f"{shape}: measured {found.memory_bytes / 1e6:.0f} MB, planned {planned / 1e6:.0f} MB, {planned / found.memory_bytes:.3f}")
    return planned / found.memory_bytes


@pytest.mark.long
def test_the_memory_of_one_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    assert 0.85 < compared(SHAPES[3], monkeypatch) < 1.15


@pytest.mark.slow
@pytest.mark.parametrize("shape", SHAPES)
def test_the_memory_of_twelve_shapes(shape: tuple[int, int, int, int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    assert 0.85 < compared(shape, monkeypatch) < 1.15


def test_it_is_measured_once(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Config] = []

    def measure_(values: Config) -> Measured:
        asked.append(values)
        return Measured(0.5, 0.1, 1000)

    monkeypatch.setattr(calibrate, "measure", measure_)
    monkeypatch.setattr(calibrate, "others_now", lambda: 0.1)
    values = config(*SHAPES[0])
    assert calibrated(values, "this machine") == calibrated(values.replace(num_iterations=99), "this machine") == Measured(0.5, 0.1, 1000)
    assert len(asked) == 1
    calibrated(values.replace(depth=3), "this machine")
    calibrated(values, "another machine")
    calibrated(values, "this machine", fresh=True)
    assert len(asked) == 4
    path = base / "cache" / calibrate.FILE
    assert len(json.loads(path.read_text())) == 3
    path.write_text("nonsense")
    assert calibrated(values, "this machine") == Measured(0.5, 0.1, 1000)


def test_it_is_measured_again_beside_other_programs(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The plan is of the machine as it is now, and names what it assumes."""
    shares, others = [0.0, 0.6, 0.1], 0.0
    monkeypatch.setattr(calibrate, "measure", lambda values: Measured(0.5, 0.1, 1000, shares.pop(0)))
    monkeypatch.setattr(calibrate, "others_now", lambda: others)
    values = config(*SHAPES[0])
    assert [calibrated(values, "here") for _ in range(2)] == [Measured(0.5, 0.1, 1000, 0.0)] * 2
    others = 0.62
    assert [calibrated(values, "here") for _ in range(2)] == [Measured(0.5, 0.1, 1000, 0.6)] * 2
    plan = make_plan(values, CPU, measured=calibrated(values, "here"))
    assert plan.basis == "steps measured here while other programs used 60% of the CPU" and plan.cpu_others == 0.6
    others = 0.0
    assert calibrated(values, "here") == Measured(0.5, 0.1, 1000, 0.1) and not shares


def test_a_plan_from_measured_steps(base: Path) -> None:
    values = config(*SHAPES[3]).replace(total_batch_size=4 * 512 * 4, num_iterations=1000, eval_every=-1, eval_tokens=512)
    values = values.replace(dataset="embedded", sft_iterations=0)
    plan = make_plan(values, CPU, measured=Measured(micro_seconds=0.5, optimizer_seconds=0.1, memory_bytes=0))
    assert plan.seconds == pytest.approx(1000 * (4 * 0.5 + 0.1), rel=0.01)
    assert plan.basis == "steps measured here" and make_plan(values, CPU).basis != plan.basis
    two = make_plan(values.replace(nproc_per_node=2), CPU, measured=Measured(0.5, 0.1, 0))
    assert two.seconds == pytest.approx(1000 * (2 * 0.5 + 0.1), rel=0.02)


@pytest.mark.long
@pytest.mark.parametrize("kind", ["bfloat16", "int16"])
def test_what_a_kind_of_products_gains(base: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    if kind == "int16" and not kernels.can_have_products():
        pytest.skip("no AVX2 and FMA here")
    gain = product_gain("this machine", kind)
    assert 0.001 < gain < 100 and gain != 1.0
    monkeypatch.setattr(calibrate, "TIMEOUT", 0.01)
    product_gain.cache_clear()  # as in another process
    assert product_gain("this machine", kind) == gain and product_gain("another", kind) == 1.0
    product_gain.cache_clear()


def test_what_cannot_be_measured(base: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A failure is remembered for a day, so that the next command does not wait for it again."""
    monkeypatch.setattr(calibrate, "TIMEOUT", 0.01)
    values = config(*SHAPES[0])
    assert calibrated(values, "this machine") is None
    assert "measuring a few steps" in capsys.readouterr().err
    asked: list[Config] = []

    def measure_(values: Config) -> Measured:
        asked.append(values)
        return Measured(0.5, 0.1, 1000)

    monkeypatch.setattr(calibrate, "measure", measure_)
    assert calibrated(values, "this machine") is None and not asked
    assert "skipped: measuring a few steps, which failed here within the last day" in capsys.readouterr().err
    now = calibrate.time.time()
    monkeypatch.setattr(calibrate.time, "time", lambda: now + 2 * 86400)
    assert calibrated(values, "this machine") == Measured(0.5, 0.1, 1000)


@pytest.mark.long
@pytest.mark.parametrize(("free", "last"), [(0.7, 1), (1.2, 1), (1.9, 2), (None, 2)])
def test_fewer_threads_are_measured_beside_other_programs(free: float | None, last: int) -> None:
    """With as many threads as processors are free, after all threads: the run will find out which are faster."""
    code = (
        "import json, sys, torch\n"
        "from nanochat.config import Config\n"
        "from nanochat.planning import calibrate\n"
        "free, values = json.load(sys.stdin)\n"
        "calibrate.SECONDS, calibrate.FreeProcessors = 0.0, lambda: lambda: free\n"
        "found = calibrate.time_training(Config(**values))\n"
        "print(torch.get_num_threads(), found.micro_seconds > 0 < found.memory_bytes)\n"
    )
    request = json.dumps([free, config(*SHAPES[0]).replace(threads=2).to_dict()])
    done = subprocess.run([sys.executable, "-c", code], input=request, capture_output=True, text=True, timeout=120)
    assert done.stdout.split() == [str(last), "True"], done.stderr


def test_a_first_compilation_has_more_time(monkeypatch: pytest.MonkeyPatch) -> None:
    given = []
    monkeypatch.setattr(calibrate, "_run_process", lambda request, timeout: given.append(timeout) or {})
    for compiled in ("off", "on"):
        assert measure(config(*SHAPES[0]).replace(compile=compiled)) is None
    assert given == [calibrate.TIMEOUT, calibrate.COMPILE_TIMEOUT] and given[1] > 4 * 194
