"""What torch.compile writes for a CPU, compiled in a few C++ files where Inductor writes one for each kernel.

g++ takes about a second for a kernel, most of it for headers that all of them share: more than half of a small model's first step.
Here a graph's kernels are compiled together, and while the next graph is being traced. This reaches into torch._inductor, whose
version requirements.lock holds fixed; a kernel that does not look as expected goes Inductor's own way.
"""

import functools
import re
import shlex
import subprocess
from collections.abc import Callable, Sequence
from typing import Any

import torch._functorch.config
import torch._inductor.async_compile
import torch._inductor.config
from torch._inductor.async_compile import AsyncCompile, get_compile_threads
from torch._inductor.codecache import CppPythonBindingsCodeCache
from torch._inductor.cpp_builder import get_cpp_compiler

INCLUDE = re.compile(r"^\s*#include .*\n", re.MULTILINE)
DEFINITION = re.compile(r'^\s*extern "C"\s+void\s+kernel\(', re.MULTILINE)
COMPLETE_COMPILER = 12  # the first GCC, and the first clang, that know each instruction set that Inductor asks for
Kernel = Callable[..., None]
Source = tuple[Sequence[str], str]  # the arguments' C++ types, and the code of a function `kernel`


@functools.cache
def compile_together() -> None:
    """Have what this process compiles for the CPU from now on compiled as this module does; once is enough."""
    torch._inductor.async_compile.AsyncCompile = _TogetherCompile  # type: ignore[misc]
    torch._inductor.config.cpp_cache_precompile_headers = False  # takes longer than what it saves of a few files
    torch._functorch.config.force_non_lazy_backward_lowering = True  # so that it is traced while the forward pass is compiled
    if _compiler_version() >= COMPLETE_COMPILER:
        torch._inductor.config.cpp.vec_isa_ok = True  # what the processor says it has need not be tried out, set by set


def _compiler_version() -> int:
    """The major version of the C++ compiler; 0 where it does not say."""
    said = subprocess.run([*shlex.split(get_cpp_compiler()), "-dumpversion"], capture_output=True, text=True, check=False).stdout
    found = re.match(r"\d+", said)
    return int(found[0]) if found else 0


class _TogetherCompile(AsyncCompile):
    """What a generated module gives its kernels to: it names them all, then calls `wait`, and runs them later."""

    def __init__(self) -> None:
        super().__init__()
        self.sources: list[Source] = []
        self.finish: Callable[[], dict[int, Kernel]] = dict

    def cpp_pybinding(self, argtypes: list[str], source_code: str) -> Any:
        if len(DEFINITION.findall(source_code)) != 1:
            return super().cpp_pybinding(argtypes, source_code)
        index = len(self.sources)
        self.sources.append((argtypes, source_code))

        def kernel(*arguments: object) -> None:
            self.finish()[index](*arguments)

        return kernel

    def wait(self, scope: dict[str, Any]) -> None:
        """Start compiling; the first kernel that is called waits for the end."""
        threads = get_compile_threads()
        files = max(threads // 2, 1)  # the other half traces meanwhile, and each file costs its headers
        self.finish = _start(self.sources, files, self.submit if threads > 1 else None)
        super().wait(scope)


def _start(sources: list[Source], files: int, submit: Callable[..., Any] | None) -> Callable[[], dict[int, Kernel]]:
    """Start the compiler on at most so many files, about equally long. What is returned waits once, and gives each source's kernel."""
    shares: list[list[int]] = [[] for _ in range(min(files, len(sources)))]
    for index in sorted(range(len(sources)), key=lambda index: -len(sources[index][1])):
        min(shares, key=lambda share: sum(len(sources[i][1]) for i in share)).append(index)
    modules = [CppPythonBindingsCodeCache.load_async(_joined([sources[i] for i in share]), submit_fn=submit) for share in shares]

    @functools.cache
    def finish() -> dict[int, Kernel]:
        found: dict[int, Kernel] = {}
        for share, module in zip(shares, modules, strict=True):
            entry = module().kernel
            found |= {index: functools.partial(entry, place) for place, index in enumerate(share)}
        return found

    return finish


def _joined(sources: list[Source]) -> str:
    """One file of them, whose entry takes a kernel's place in it before the kernel's own arguments."""
    includes = dict.fromkeys(line for _, code in sources for line in INCLUDE.findall(code))
    bodies, cases = [], []
    for place, (argtypes, code) in enumerate(sources):
        bodies.append(DEFINITION.sub(f"\nstatic void kernel_{place}(", INCLUDE.sub("", code)))
        arguments = (f"parse_arg<{kind.replace('const ', '')}>(args, {number})" for number, kind in enumerate(argtypes, 1))
        cases.append(f"case {place}: kernel_{place}({', '.join(arguments)}); break;")
    bindings = CppPythonBindingsCodeCache.suffix_template.format(
        entry_func="kernel",
        arg_len="nargs",  # which each kernel has its own of
        call_entry_func=f"switch (parse_arg<int64_t>(args, 0)) {{ {' '.join(cases)} }} Py_RETURN_NONE;",
        extra_parse_arg="",
    )
    return "".join(includes) + "\n".join(bodies) + bindings
