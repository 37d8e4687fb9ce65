"""How a CPU's fused operations come to be: compiled once, by whoever is first, or left out with a reason."""

import hashlib
import shutil
import subprocess
import sys
from collections.abc import Callable
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


EVIL = """
#include <stdio.h>
__attribute__((constructor)) static void run(void) {{ fclose(fopen("{mark}", "w")); }}
"""


def emptied(path: Path, mark: Path) -> None:
    path.write_bytes(b"")


def halved(path: Path, mark: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def one_bit(path: Path, mark: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def text(path: Path, mark: Path) -> None:
    path.write_text("no library")


def planted(path: Path, mark: Path) -> None:
    source = mark.with_suffix(".c")
    source.write_text(EVIL.format(mark=mark))
    subprocess.run(["cc", "-shared", "-fPIC", "-o", str(path), str(source)], check=True)


def linked(path: Path, mark: Path) -> None:
    planted(mark.with_suffix(".so"), mark)
    path.unlink()
    path.symlink_to(mark.with_suffix(".so"))


def unloadable(path: Path, mark: Path) -> None:
    """Whole by its name, but no library."""
    path.unlink()
    path = path.with_name(f"{path.stem.rpartition('-')[0]}-{hashlib.sha256(b'x').hexdigest()}.so")
    path.write_bytes(b"x")


@pytest.mark.long
@pytest.mark.parametrize("happened", [emptied, halved, one_bit, text, planted, linked, unloadable], ids=lambda each: each.__name__)
def test_a_library_that_is_torn_or_another_is_built_again_and_never_loaded(happened: Callable[[Path, Path], None], tmp_path: Path) -> None:
    mark, folder = tmp_path / "mark", tmp_path / "cache"
    assert load(folder) == "loaded True\n"
    (library,) = folder.iterdir()
    before = library.read_bytes()
    happened(library, mark)
    assert load(folder) == "loaded True\n" and not mark.exists()
    assert [path.read_bytes() for path in folder.iterdir()] == [before]


def test_a_folder_that_others_may_write_to_is_not_used(tmp_path: Path) -> None:
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared").chmod(0o777)
    assert kernels.load(torch.float32, tmp_path / "shared") == f"other users may write to {tmp_path / 'shared'}"


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
