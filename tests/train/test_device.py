"""What is set for the device before the first tensor."""

import platform
import subprocess
import sys
from pathlib import Path

import pytest

from nanochat.kernels import build as kernels
from nanochat.train import device

FLUSHED = """
import torch
from nanochat.config import Config
from nanochat.train import device

device.set_up(Config(device="cpu", threads=2))
small = torch.full((1 << 22,), 1e-30) * 1e-10  # enough for every thread to take its part
print(torch.get_num_threads(), int((small != 0).sum()))
"""


@pytest.mark.long
def test_no_thread_computes_with_denormal_numbers() -> None:
    """On many processors they take fifty times as long, and the optimizer's moments decay into them within a thousand steps."""
    done = subprocess.run([sys.executable, "-c", FLUSHED], capture_output=True, text=True, timeout=120)
    assert done.stdout.split() == ["2", "0"], done.stderr


KEPT = """
import resource

import torch
from nanochat.config import Config
from nanochat.train import device

device.set_up(Config(device="cpu", threads=1))
for _ in range(16):
    torch.ones(1 << 24)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    torch.ones(1 << 24)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.long
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has mallopt")
def test_a_steps_memory_is_not_mapped_anew_by_the_next() -> None:
    """Ten tensors of 64 MB, each freed before the next, have 16,384 pages each.

    The first few may lie one after the other: what is left over where a tensor is aligned stays with the thread, up to seven such
    pieces, and keeps the room before and behind it apart.
    """
    done = subprocess.run([sys.executable, "-c", KEPT], capture_output=True, text=True, timeout=120)
    assert int(done.stdout) < 2 * 16_384, done.stdout + done.stderr


def test_integers_that_cannot_be_had_are_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    asked = []
    monkeypatch.setattr(kernels, "load", lambda dtype, folder: "")
    monkeypatch.setattr(kernels, "better_products", lambda: False)
    monkeypatch.setattr(kernels, "load_products", lambda kind, folder: asked.append(kind) or "cc knows no AVX2")
    for dtype in ("bfloat16", "float32", "int16"):
        device.load_kernels(dtype, tmp_path)
    assert asked == ["int16"]
    shown = capsys.readouterr()
    assert (shown.out + shown.err).count("skipped: 16-bit integer products (cc knows no AVX2); training in float32 takes") == 1
