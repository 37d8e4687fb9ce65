"""The compilers of this machine: for the CPU's fused operations, and for torch.compile."""

import shutil
import sysconfig
from pathlib import Path


def torch_compile_lacks(cuda: bool) -> list[str]:
    """What torch.compile needs at run time and this machine lacks: a compiler, the header that every kernel's bindings include."""
    name, found = torch_compiler(cuda)
    lacking = [] if found else [name]
    return lacking if Path(sysconfig.get_paths()["include"], "Python.h").exists() else [*lacking, "Python.h"]


def torch_compiler(cuda: bool) -> tuple[str, str | None]:
    """The compiler that torch.compile needs, and where it, or another that will do, is on this machine."""
    names = ("gcc", "cc", "clang") if cuda else ("g++", "c++", "clang++")
    return names[0], next(filter(None, map(shutil.which, names)), None)
