"""How a CPU's fused operations come to be: compiled once, by whoever is first, or left out with a reason."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from nanochat.kernels import build as kernels
from nanochat.kernels import products, selection

LOAD = """
import sys, torch
from pathlib import Path
from nanochat.kernels import build as kernels, selection
print(kernels.load(torch.bfloat16, Path(sys.argv[1])) or "loaded", selection.loaded(torch.bfloat16))
"""


def load(folder: Path) -> str:
    return subprocess.run([sys.executable, "-c", LOAD, str(folder)], capture_output=True, text=True, check=True, timeout=120).stdout


@pytest.mark.long
def test_several_processes_compile_into_one_folder(tmp_path: Path) -> None:
    command = [sys.executable, "-c", LOAD, str(tmp_path / "cache")]
    runs = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    assert [run.communicate(timeout=120)[0] for run in runs] == ["loaded True\n"] * 3
    (library,) = (tmp_path / "cache").iterdir()
    made = library.stat().st_mtime_ns
    assert load(tmp_path / "cache") == "loaded True\n"
    assert library.stat().st_mtime_ns == made  # nothing is compiled twice


def test_why_they_cannot_be_had(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as here:
        here.setattr(shutil, "which", lambda name: None)
        assert kernels.load(torch.float32, tmp_path) == "no C compiler (cc)"
    with monkeypatch.context() as here:
        here.setattr(kernels, "FLAGS", ("-no-such-flag",))
        assert "no-such-flag" in kernels.load(torch.float32, tmp_path)
    (tmp_path / "file").write_text("")
    assert kernels.load(torch.float32, tmp_path / "file") != ""
    assert not selection.loaded(torch.float32)


@pytest.mark.parametrize("kind", ["float32", "int16"])
def test_why_products_cannot_be_had(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert kernels.load_products(kind, tmp_path) == "no C compiler (cc)"
    assert not products.loaded(kind)
