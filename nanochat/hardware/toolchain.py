"""The compilers on this machine, for a CPU's fused operations and for torch.compile."""

import shutil
import sysconfig
from pathlib import Path


def torch_compile_lacks(cuda: bool) -> list[str]:
    """The requirements of torch.compile that this machine lacks: a compiler, and Python's header."""
    name, found = torch_compiler(cuda)
    lacking = [] if found else [name]
    return lacking if Path(sysconfig.get_paths()["include"], "Python.h").exists() else [*lacking, "Python.h"]


def torch_compiler(cuda: bool) -> tuple[str, str | None]:
    """(name of the compiler that torch.compile needs, path of it or of a substitute on this machine)."""
    names = ("gcc", "cc", "clang") if cuda else ("g++", "c++", "clang++")
    return names[0], next(filter(None, map(shutil.which, names)), None)
