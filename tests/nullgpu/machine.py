"""The null GPU: this machine as if it had a GPU, on which nothing is computed and everything is counted.

libnullgpu.so (the .c files beside this one, some 700 lines) answers in place of the CUDA runtime, the driver, NVML, cuBLAS and NCCL. It is
loaded before torch's own libraries, so torch's allocator, autograd, Inductor, Triton and ptxas all run as on a real GPU of that name,
capability and memory. Each stub answers what its caller needs to go on; launches, copies, products and collectives are counted, memory is
counted and refused beyond the card's. Every number that comes back from the GPU is zero: losses and answers mean nothing, and no time says
anything about a GPU. Memory, counts, compilation and control flow are real.
"""

import getpass
import hashlib
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nanochat.hardware.gpu_specs import GIB
from nanochat.kernels.private import private_folder

FOLDER = Path(__file__).resolve().parent
ROOT = FOLDER.parent.parent
LIBRARY = "libnullgpu.so"
NAMES = ("libcuda.so.1", "libcuda.so", "libnvidia-ml.so.1")  # the driver's libraries, which are opened by these names
FLAGS = ("-O1", "-Wall", "-Wextra", "-Wno-unused-parameter", "-shared", "-fPIC", "-Wl,-soname,libcuda.so.1")


@dataclass(frozen=True)
class Card:
    """What a program can see of a GPU. `memory` and `l2` in bytes."""

    name: str
    capability: int
    multiprocessors: int
    memory: int
    l2: int


CARDS = {
    "4050": Card("NVIDIA GeForce RTX 4050 Laptop GPU", 89, 20, 6 * GIB, 24 << 20),
    "3090": Card("NVIDIA GeForce RTX 3090", 86, 82, 24 * GIB, 6 << 20),
    "4090": Card("NVIDIA GeForce RTX 4090", 89, 128, 24 * GIB, 72 << 20),
    "5090": Card("NVIDIA GeForce RTX 5090", 120, 170, 32 * GIB, 96 << 20),
    "h100": Card("NVIDIA H100 80GB HBM3", 90, 132, 80 * GIB, 50 << 20),
    "t4": Card("Tesla T4", 75, 40, 16 * GIB, 4 << 20),
}


def why_not() -> str:
    """The reason why there is no null GPU on this machine; "" if there can be one."""
    if sys.platform != "linux":
        return "the null GPU needs Linux"
    if missing := [str(path) for path in _includes()[1:] if not path.is_dir()]:
        return f"torch is a build without CUDA: {missing[0]} is missing"
    return ""


def _includes() -> list[Path]:
    """Directories of headers: ours first, then those of torch's CUDA libraries."""
    spec = importlib.util.find_spec("nvidia")  # a namespace of several wheels
    wheels = [Path(place) for place in (spec and spec.submodule_search_locations) or ()]
    found = [
        max((path for wheel in wheels for path in wheel.glob(name)), default=Path(name)) for name in ("cu[0-9]*/include", "nccl/include")
    ]
    return [FOLDER, FOLDER / "include", *found]


def build() -> Path:
    """The directory of the null GPU's libraries, compiled by cc once for each version of their source."""
    sources = sorted(FOLDER.glob("*.c"))
    text = b"".join(path.read_bytes() for path in [*sources, *sorted(FOLDER.rglob("*.h"))]) + " ".join(map(str, _includes())).encode()
    place = private_folder(Path(tempfile.gettempdir(), f"nanochat-tests-{getpass.getuser()}"), "nullgpu")
    folder = place / hashlib.sha256(text).hexdigest()[:16]
    if folder.is_dir():
        return folder
    with tempfile.TemporaryDirectory(dir=place) as made:
        headers = [f"-I{path}" for path in _includes()[:2]] + [f"-isystem{path}" for path in _includes()[2:]]
        command = ["cc", *FLAGS, *headers, "-o", str(Path(made, LIBRARY)), *map(str, sources), "-ldl", "-lpthread"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        for name in NAMES:
            Path(made, name).symlink_to(LIBRARY)
        try:
            Path(made).rename(folder)
        except OSError:  # another process was faster
            if not folder.is_dir():
                raise
        Path(made).mkdir(exist_ok=True)  # for the end of the block
    return folder


def environment(card: str, devices: int = 1, **more: str) -> dict[str, str]:
    """The environment of a process that sees `devices` of `card`. `more`: variables such as NULLGPU_MEMORY, which replace the card's."""
    folder, about = build(), CARDS[card]
    pretended = {
        "NULLGPU_NAME": about.name,
        "NULLGPU_CAPABILITY": str(about.capability),
        "NULLGPU_MULTIPROCESSORS": str(about.multiprocessors),
        "NULLGPU_MEMORY": str(about.memory),
        "NULLGPU_L2": str(about.l2),
        "NULLGPU_DEVICES": str(devices),
        "LD_PRELOAD": str(folder / LIBRARY),
        "LD_LIBRARY_PATH": str(folder),
        "OMP_NUM_THREADS": "1",
    }
    return {key: value for key, value in os.environ.items() if not key.startswith("TORCHINDUCTOR")} | pretended | more


def module(name: str, checkout: Path | None) -> tuple[str, ...]:
    """Python's arguments that run the module `name` of this directory, with the package nanochat of `checkout` in place of this one's."""
    if checkout is None:
        return "-m", name
    begin = f"import runpy, sys, tests.nullgpu.counted; sys.path.insert(0, {str(checkout)!r})"
    return "-c", f"{begin}; runpy.run_module({name!r}, run_name='__main__')"


def run(card: str, *command: str, timeout: float = 600, devices: int = 1, stdin: str = "", **more: str) -> subprocess.CompletedProcess[str]:
    """`python COMMAND` with `card` in this machine."""
    return subprocess.run(
        [sys.executable, *command],
        input=stdin,
        env=environment(card, devices, **more),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def steps(
    card: str,
    timeout: float = 1200,
    devices: int = 1,
    environ: dict[str, str] | None = None,
    checkout: Path | None = None,
    script: str = "steps",
    **request: Any,
) -> dict[str, Any]:
    """The memory and the counts of some training steps on `card`: the result of tests/nullgpu/steps.py, of a config and its plan, or of
    another `script`. `checkout`: the nanochat that is counted, by default this one."""
    command = module(f"tests.nullgpu.{script}", checkout)
    done = run(card, *command, timeout=timeout, devices=devices, stdin=json.dumps(request), **environ or {})
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert isinstance(found, dict)
    return found


def train(card: str, folder: Path, *arguments: str, timeout: float = 600, devices: int = 1, ranks: int = 1, **more: str) -> "Run":
    """`nanochat ARGUMENTS` on `card` with its data directory in `folder`, as rank 0 of `ranks`, and what it counted."""
    out = folder / "counted.json"
    more |= {"NANOCHAT_BASE_DIR": str(folder / "base"), "NULLGPU_RANKS": str(ranks)}
    done = run(card, "-m", "tests.nullgpu.watched", str(out), *arguments, timeout=timeout, devices=max(devices, ranks), **more)
    return Run(done.returncode, done.stdout + done.stderr, json.loads(out.read_text()) if out.exists() else [])


@dataclass(frozen=True)
class Run:
    """A command's exit code, its output, and one entry for each step, evaluation and sample (tests/nullgpu/watched.py)."""

    code: int
    text: str
    counted: list[dict[str, Any]]

    def of(self, kind: str, stage: str = "") -> list[dict[str, Any]]:
        """The entries of "step", "evaluate" or "sample", of one stage or of all."""
        return [entry for entry in self.counted if entry["kind"] == kind and stage in ("", entry["stage"])]
