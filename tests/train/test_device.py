"""What is set for the device before the first tensor."""

import subprocess
import sys

import pytest

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
