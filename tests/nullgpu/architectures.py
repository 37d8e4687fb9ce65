"""A step's Triton kernels compiled for other GPUs than the one that they were made for, by triton.compile and ptxas; no GPU is asked."""

import json
import re
import subprocess
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

SHARED_BYTES = {75: 64 << 10, 80: 163 << 10, 86: 99 << 10, 89: 99 << 10, 90: 227 << 10, 100: 227 << 10, 120: 99 << 10}  # of one block


@dataclass(frozen=True)
class Compiled:
    """One candidate of a kernel on one architecture: registers of a thread, bytes of its stack (spills), shared memory of a block."""

    name: str
    registers: int
    spilled: int
    shared: int


def candidates(cache: Path) -> list[Path]:
    """The kernels in Triton's intermediate form that a run left in its compile cache, each with the options of one candidate beside it."""
    return sorted(path for path in cache.rglob("*.ttir") if path.with_suffix(".json").exists())


def compiled(source: Path, capability: int, folder: Path, half: str = "bf16") -> Compiled:
    """The kernel `source` for `capability` (90: sm_90), with `half` in place of bfloat16. Raises what Triton or ptxas raises."""
    import triton
    from triton.backends.compiler import GPUTarget

    options = json.loads(source.with_suffix(".json").read_text(encoding="utf-8"))
    text = folder / source.name
    text.write_text(source.read_text(encoding="utf-8").replace("bf16", half), encoding="utf-8")
    kept = {name: options[name] for name in ("num_warps", "num_stages")}
    kernel = triton.compile(str(text), target=GPUTarget("cuda", capability, 32), options=kept)
    binary = folder / "kernel.cubin"
    binary.write_bytes(kernel.asm["cubin"])
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    said = subprocess.run([tool, "-res-usage", binary], capture_output=True, text=True, check=True)
    found = re.search(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", said.stdout + said.stderr)
    assert found, said.stdout + said.stderr
    registers, stack, local = map(int, found.groups())
    return Compiled(source.stem, registers, stack + local, kernel.metadata.shared)


def tried(sources: list[Path], capability: int, folder: Path, half: str = "bf16") -> list[Compiled]:
    """Of each kernel of `sources` its candidates up to the first without faults, compiled as `compiled` does."""
    results, good = [], set[str]()
    for source in sources:
        if source.stem not in good:
            results.append(compiled(source, capability, folder, half))
            if not faults(results[-1:], capability):
                good.add(source.stem)
    return results


def faults(results: list[Compiled], capability: int) -> list[str]:
    """Kernels of which no candidate runs well on `capability`: each spills registers, or needs more shared memory than a block has."""
    by_name: dict[str, list[Compiled]] = defaultdict(list)
    for one in results:
        by_name[one.name].append(one)
    bad = []
    for name, group in by_name.items():
        if all(one.spilled for one in group):
            bad.append(f"sm_{capability}: every candidate of {name} spills")
        if all(one.shared > SHARED_BYTES[capability] for one in group):
            bad.append(f"sm_{capability}: every candidate of {name} needs more shared memory than a block has")
    return bad
