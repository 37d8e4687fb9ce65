"""Compiles a CPU's fused operations (nanochat/kernels/fused.c) and products (products.c) for this machine, once, for the model to use."""

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
# No flag that lets NaN be forgotten. Not linked to an OpenMP: the one that torch has loaded is used, whose threads are there already.
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
    FLAGS += ("-mprefer-vector-width=512",)  # GCC takes half of the longest vectors, else
TYPES: dict[torch.dtype, tuple[str, ...]] = {torch.float32: (), torch.bfloat16: ("-DBFLOAT16",)}


def load(dtype: torch.dtype, folder: Path) -> str:
    """Have fused.c compiled into `folder`, unless it was, and used by models of `dtype` built from now on. Returns why not, or nothing."""
    return "" if selection.loaded(dtype) else _load(FUSED, TYPES[dtype], folder, lambda path: selection.use(dtype, path))


def load_products(kind: str, folder: Path) -> str:
    """The same of products.c, for float32 matrices whose products are to be of `kind`, float32 or int16."""
    flags = ("-DINT16",) if kind == "int16" else ()
    return "" if products.loaded(kind) else _load(PRODUCTS, flags, folder, lambda path: products.use(kind, path))


def can_have_products() -> bool:
    """Whether this processor has what products.c is written in."""
    return {"avx2", "fma"} <= set(_processor().split())


def better_products() -> bool:
    """Whether they are worth it: the library that torch has is Intel's, and leaves more of others' processors unused."""
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
    """The library `name` that was built before: its file's name ends with the hash of its bytes. One that is torn is removed."""
    for path in folder.glob(f"{name}-*.so"):
        if not path.is_symlink() and path.stem == f"{name}-{paths.sha256(path)}":
            return path
        path.unlink(missing_ok=True)
    return None


def _usable(path: Path, use: Callable[[str], None]) -> bool:
    """Whether the library at `path` could be loaded, and is used from now on; otherwise it is removed, to be built again."""
    try:
        use(str(path))
    except (OSError, AttributeError):  # AttributeError: it lacks a function
        path.unlink(missing_ok=True)
        return False
    return True


def _processor() -> str:
    """Who made this machine's processor, and what it can do: a folder may be shared with others."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    wanted = (next((line for line in lines if line.startswith(name)), "") for name in ("vendor_id", "flags", "Features"))
    return "\n".join((platform.machine(), *wanted))


def _compile(command: list[str], source: Path, folder: Path, name: str) -> Path:
    """Build the library `name` in `folder`; its file, which is there as a whole or not at all."""
    with tempfile.TemporaryDirectory(dir=folder) as temporary:  # other processes may be at it too
        made, linked = Path(temporary, "made.o"), Path(temporary, "linked.so")
        for arguments in ([*command, "-c", str(source), "-o", str(made)], [command[0], "-shared", str(made), "-o", str(linked)]):
            subprocess.run(arguments, check=True, capture_output=True, text=True)
        paths.fsync_file(linked)
        path = folder / f"{name}-{paths.sha256(linked)}.so"
        linked.replace(path)
        paths.fsync_dir(folder)
    return path
