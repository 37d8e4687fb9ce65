"""Compiles a CPU's fused operations (nanochat/model/fused.c) for this machine, once, and has the model use them."""

import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

import torch

from nanochat.model import fused

SOURCE = Path(fused.__file__).with_suffix(".c")
# No flag that lets NaN be forgotten. Not linked to an OpenMP: the one that torch has loaded is used, whose threads are there already.
FLAGS: tuple[str, ...] = (
    "-std=c11",
    "-O3",
    "-march=native",
    "-fopenmp",
    "-fPIC",
    "-fno-math-errno",
    "-fno-trapping-math",
    f"-DBLOCK={fused.BLOCK}",
)
if platform.machine() == "x86_64":
    FLAGS += ("-mprefer-vector-width=512",)  # GCC takes half of the longest vectors, else
TYPES = {torch.float32: (), torch.bfloat16: ("-DBFLOAT16",)}


def load(dtype: torch.dtype, folder: Path) -> str:
    """Have fused.c compiled into `folder`, unless it was, and used for tensors of `dtype`. Returns why not, or nothing."""
    if fused.loaded(dtype):
        return ""
    found = compiler()
    if not found:
        return "no C compiler (cc)"
    key = (SOURCE.read_bytes(), *FLAGS, *TYPES[dtype], found, os.stat(found).st_mtime, _processor())
    path = folder / f"fused-{hashlib.sha256(repr(key).encode()).hexdigest()[:16]}.so"
    try:
        if not path.exists():
            _compile(found, dtype, path)
        fused.use(dtype, str(path))
    except subprocess.CalledProcessError as error:
        return f"{found} says: {error.stderr.strip()[-300:]}"
    except OSError as error:
        return str(error)
    return ""


def compiler() -> str:
    """The C compiler; nothing where there is none."""
    return next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), "")


def _processor() -> str:
    """What this machine's processor can do: a folder may be shared with others."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    return platform.machine() + next((line for line in lines if line.startswith(("flags", "Features"))), "")


def _compile(program: str, dtype: torch.dtype, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:  # other processes may be at it too
        made, linked = Path(folder, "fused.o"), Path(folder, path.name)
        for command in ([*FLAGS, *TYPES[dtype], "-c", str(SOURCE), "-o", str(made)], ["-shared", str(made), "-o", str(linked)]):
            subprocess.run([program, *command], check=True, capture_output=True, text=True)
        linked.replace(path)
