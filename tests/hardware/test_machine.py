"""What this machine has."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

import nanochat
from nanochat.hardware.cpu import physical_cores
from nanochat.hardware.machine import this_machine


def test_this_machine_has_a_cpu() -> None:
    here = this_machine("cpu")
    assert not here.cuda and here.here and here.count == 1
    assert 0 < here.usable < here.memory
    assert here.name.endswith(f"{physical_cores()} cores")


def test_an_amd_gpu_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """A torch for ROCm calls it a CUDA device."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.version, "hip", "7.0")
    assert not this_machine().cuda


def test_hardware_is_looked_at_without_torch() -> None:
    modules = sorted(Path(nanochat.__file__).with_name("hardware").glob("[!_]*.py"))
    names = ", ".join(f"nanochat.hardware.{path.stem}" for path in modules)
    code = f"import sys, {names}; nanochat.hardware.machine.this_machine('cpu'); assert 'torch' not in sys.modules"
    root = Path(nanochat.__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root, check=False)
    assert done.returncode == 0, done.stderr
