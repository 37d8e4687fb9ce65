"""Compilation of a CPU's fused operations (nanochat/kernels/fused.c) and products (products.c) for this machine, once."""

import hashlib
import os
import platform
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch

from nanochat import paths
from nanochat.hardware.toolchain import c_compiler
from nanochat.kernels import products, selection
from nanochat.kernels.library import BLOCK
from nanochat.kernels.private import why_not_private

FUSED, PRODUCTS = (Path(__file__).with_name(name) for name in ("fused.c", "products.c"))
# No fast-math: NaN must propagate. Not linked to an OpenMP: the one that torch has loaded is used, with its running threads.
FLAGS: tuple[str, ...] = (
    "-std=c11",
    "-O3",
    "-march=native",
    "-fopenmp",
    "-fPIC",
    "-fno-math-errno",
    "-fno-trapping-math",
    f"-DBLOCK={BLOCK}",
)
if platform.machine() == "x86_64":
    FLAGS += ("-mprefer-vector-width=512",)  # otherwise GCC uses vectors of 256 bits
TYPES: dict[torch.dtype, tuple[str, ...]] = {torch.float32: (), torch.bfloat16: ("-DBFLOAT16",)}


def load(dtype: torch.dtype, folder: Path) -> str:
    """Compile fused.c into `folder` if needed, and use it in new models of `dtype`. Returns the reason for a failure, else ""."""
    return "" if selection.loaded(dtype) else _load(FUSED, TYPES[dtype], folder, lambda path: selection.use(dtype, path))


def load_products(kind: str, folder: Path) -> str:
    """Compile products.c likewise, for products of float32 matrices in `kind`: float32 or int16."""
    flags = ("-DINT16",) if kind == "int16" else ()
    return "" if products.loaded(kind) else _load(PRODUCTS, flags, folder, lambda path: products.use(kind, path))


def can_have_products() -> bool:
    """Whether this processor has the instructions that products.c uses."""
    return {"avx2", "fma"} <= set(_processor().split())


def better_products() -> bool:
    """Whether products.c is faster than torch's library: that is Intel's MKL, which is slower on other makers' processors."""
    words = set(_processor().split())
    return can_have_products() and bool(words & {"AuthenticAMD", "HygonGenuine"}) and "avx512f" not in words


def _load(source: Path, flags: tuple[str, ...], folder: Path, use: Callable[[str], None]) -> str:
    found = c_compiler()
    if not found:
        return "no C compiler (cc)"
    parts = sorted(source.parent.glob(f"{source.stem}*.[ch]"))
    key = (*(part.read_bytes() for part in parts), *FLAGS, *flags, found, os.stat(found).st_mtime, _processor())
    name = f"{source.stem}-{hashlib.sha256(repr(key).encode()).hexdigest()[:16]}"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if why := why_not_private(folder):
            return why
        if (path := _built(folder, name)) and _usable(path, use):
            return ""
        use(str(_compile([found, *FLAGS, *flags], source, folder, name)))
    except subprocess.CalledProcessError as error:
        return f"{found} says: {error.stderr.strip()[-300:]}"
    except OSError as error:
        return str(error)
    return ""


def _built(folder: Path, name: str) -> Path | None:
    """The library `name` of an earlier build; its file name ends with the hash of its content. An incomplete one is removed."""
    for path in folder.glob(f"{name}-*.so"):
        if not path.is_symlink() and path.stem == f"{name}-{paths.sha256(path)}":
            return path
        path.unlink(missing_ok=True)
    return None


def _usable(path: Path, use: Callable[[str], None]) -> bool:
    """Load the library at `path` and use it from now on; if that fails, remove it, so that it is built again."""
    try:
        use(str(path))
    except (OSError, AttributeError):  # AttributeError: a function is missing
        path.unlink(missing_ok=True)
        return False
    return True


def _processor() -> str:
    """The maker and the instructions of this machine's processor, because machines may share the directory."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    wanted = (next((line for line in lines if line.startswith(name)), "") for name in ("vendor_id", "flags", "Features"))
    return "\n".join((platform.machine(), *wanted))


def _compile(command: list[str], source: Path, folder: Path, name: str) -> Path:
    """Build the library `name` in `folder` and return its file, which appears in one rename."""
    with tempfile.TemporaryDirectory(dir=folder) as temporary:  # other processes may build it at the same time
        made, linked = Path(temporary, "made.o"), Path(temporary, "linked.so")
        for arguments in ([*command, "-c", str(source), "-o", str(made)], [command[0], "-shared", str(made), "-o", str(linked)]):
            subprocess.run(arguments, check=True, capture_output=True, text=True)
        paths.fsync_file(linked)
        path = folder / f"{name}-{paths.sha256(linked)}.so"
        linked.replace(path)
        paths.fsync_dir(folder)
    return path
