"""Claim: a plan's memory is within 3% of what torch's allocator takes on a GPU, counted on one that computes nothing (tests/nullgpu).

Prints a row for each setting of tests/nullgpu/settings.py: the plan, the peak of what is allocated and of what is reserved, the limit, and
of a micro-step the launches and the bytes that Inductor's kernels read and write. Nothing here is a speed. `--kernels DEPTH` compiles the
kernels of a model of that depth for each architecture instead. Needs no GPU, and some minutes of CPU time for each deep setting.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from tests.nullgpu import architectures, machine
from tests.nullgpu.settings import SETTINGS


def memory(names: list[str]) -> None:
    """A row of Markdown for each setting."""
    print("| setting | card | planned GB | allocated | planned by allocated | reserved | limit | launches | Triton GB |")
    print("|---|---|---|---|---|---|---|---|---|")
    for name in names:
        card, request = SETTINGS[name]
        micro = 2
        found = machine.steps(card, timeout=3000, micro=micro, **request)
        counts = found["steps"][-1]["gradients"]["counts"]
        kernels = sum(launches for launches, _ in found["triton"].values())
        launches = (counts.get("launches", 0) + counts.get("triton_launches", 0) + counts.get("products", 0) + kernels) / micro
        sizes = [found["plan"]["total"], found["peak"], found["reserved"], found["cap"]]
        planned, peak, reserved, cap = (f"{size / 1e9:.2f}" for size in sizes)
        traffic = f"{found['triton_bytes'] / micro / 1e9:.1f}" if kernels else ""
        ratio = f"{sizes[0] / sizes[1]:.3f}"
        print(f"| {name} | {card} | {planned} | {peak} | {ratio} | {reserved} | {cap} | {launches:.0f} | {traffic} |", flush=True)


def kernels(depth: int) -> None:
    """Compile a compiled step's kernels for every architecture; prints what does not compile or fit."""
    shape = {"depth": depth, "device_batch_size": 4, "max_seq_len": 1024, "compile": "on", "total_batch_size": 8192, "num_iterations": 10}
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        environ = {"TORCHINDUCTOR_CACHE_DIR": str(folder / "cache")}
        machine.steps("4090", environ=environ, config=shape, kernels="compile", steps=2, evaluate=True, timeout=3000)
        sources = architectures.candidates(folder)
        for capability, half in ((75, "f16"), (86, "bf16"), (89, "bf16"), (90, "bf16"), (100, "bf16"), (120, "bf16")):
            began = time.monotonic()
            results = [architectures.compiled(source, capability, folder, half) for source in sources]
            spilled, seconds = sum(one.spilled > 0 for one in results), time.monotonic() - began
            print(f"sm_{capability}: {len(results)} candidates compiled in {seconds:.0f} s, {spilled} spill", flush=True)
            for fault in architectures.faults(results, capability):
                print(f"  {fault}")


def main() -> None:
    """Print what the options ask for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="settings, all by default")
    parser.add_argument("--kernels", type=int, default=0, metavar="DEPTH")
    options = parser.parse_args()
    if why := machine.why_not():
        sys.exit(why)
    kernels(options.kernels) if options.kernels else memory(options.names or list(SETTINGS))


if __name__ == "__main__":
    main()
