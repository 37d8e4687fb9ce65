"""The compilers on this machine, for a CPU's fused operations and for torch.compile."""

import shutil
import sysconfig
from pathlib import Path


def c_compiler() -> str:
    """Path of the C compiler: for the fused operations and for Triton's kernels. Empty if there is none."""
    return _first("cc", "gcc", "clang")


def torch_compiler(cuda: bool) -> tuple[str, str]:
    """The compiler that torch.compile needs, by its package, and the path of it or one like it; empty if none."""
    return ("gcc", c_compiler()) if cuda else ("g++", _first("c++", "g++", "clang++"))


def torch_compile_lacks(cuda: bool) -> list[str]:
    """The requirements of torch.compile that this machine lacks: a compiler, and Python's header."""
    name, found = torch_compiler(cuda)
    lacking = [] if found else [name]
    return lacking if Path(sysconfig.get_paths()["include"], "Python.h").exists() else [*lacking, "Python.h"]


def _first(*names: str) -> str:
    return next(filter(None, map(shutil.which, names)), "")
