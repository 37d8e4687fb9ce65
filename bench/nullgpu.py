"""Claim: a plan's memory is within 3% of what torch's allocator takes on a GPU, counted on one that computes nothing (tests/nullgpu).

Prints a row for each setting of tests/nullgpu/settings.py: the plan, the peak of what is allocated and of what is reserved, the limit, and
of a micro-step the launches and the bytes that Inductor's kernels read and write. Nothing here is a speed. Needs no GPU, and some minutes
of CPU time for each deep setting. Instead:
`--upstream DIRECTORY` counts a checkout of karpathy/nanochat and this project by turns at two depths, and this project with recomputation.
`--traffic` counts the bytes that a further micro-step moves for each parameter, whatever its rows, `--checkout DIRECTORY` of an earlier
version of this project. `--kernels DEPTH` compiles the kernels of a model of that depth for each architecture.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from nanochat.model.scaling import CHEAP_BUDGET
from tests.nullgpu import architectures, machine
from tests.nullgpu.settings import SETTINGS, other

MICRO = 2  # micro-steps of a step
BESIDE = {"d12, 16 rows": {"depth": 12, "rows": 16, "length": 2048}, "d20, 8 rows": {"depth": 20, "rows": 8, "length": 2048}}  # upstream's
MOVED = {name: SETTINGS[name] for name in BESIDE} | {"d16, 8 rows": ("h100", other(16, 8, 2048, True))}  # whose traffic is counted


def memory(names: list[str]) -> None:
    """A row of Markdown for each setting."""
    print("| setting | card | planned GB | allocated | planned by allocated | reserved by allocated | limit | launches | Triton GB |")
    print("|---|---|---|---|---|---|---|---|---|")
    for name in names:
        card, request = SETTINGS[name]
        found = machine.steps(card, timeout=3000, micro=MICRO, **request)
        counts = found["steps"][-1]["gradients"]["counts"]
        kernels = sum(launches for launches, _ in found["triton"].values())
        launches = (counts.get("launches", 0) + counts.get("triton_launches", 0) + counts.get("products", 0) + kernels) / MICRO
        planned, peak, reserved, cap = found["plan"]["total"], found["peak"], found["reserved"], found["cap"]
        sizes = f"{planned / 1e9:.3f} | {peak / 1e9:.3f} | {planned / peak:.3f} | {reserved / peak:.3f} | {cap / 1e9:.2f}"
        traffic = f"{found['triton_bytes'] / MICRO / 1e9:.1f}" if kernels else ""
        print(f"| {name} | {card} | {sizes} | {launches:.0f} | {traffic} |", flush=True)


def beside(upstream: Path, names: list[str]) -> None:
    """Upstream's memory and ours at the same shapes, compiled, without windows, on an H100."""
    print("| setting | program | allocated GB | by upstream's | reserved by allocated | Triton GB | by the whole |")
    print("|---|---|---|---|---|---|---|")
    for name in names:
        shape: dict[str, Any] = {"vocab": 32768, "micro": MICRO} | BESIDE[name]
        environ = {"PYTORCH_ALLOC_CONF": "expandable_segments:True", "NANOCHAT_DTYPE": "bfloat16"}  # the first as its base_train.py does
        theirs = machine.steps("h100", 3000, environ=environ, checkout=upstream, script="upstream", **shape)
        card, request = SETTINGS[name]
        ours = machine.steps(card, 3000, micro=MICRO, **request)
        config = request["config"] | {"activation_memory_budget": CHEAP_BUDGET}
        cheap = machine.steps(card, 3000, micro=MICRO, config=config)
        for program, found in (("upstream", theirs), ("ours", ours), (f"ours, budget {CHEAP_BUDGET}", cheap)):
            peak, kernels = found["peak"], found["triton_bytes"] / MICRO
            ratios = f"{peak / theirs['peak']:.3f} | {found['reserved'] / peak:.3f} | {kernels / 1e9:.2f}"
            print(f"| {name} | {program} | {peak / 1e9:.3f} | {ratios} | {kernels * MICRO / ours['triton_bytes']:.3f} |", flush=True)


def traffic(names: list[str], checkout: Path | None) -> None:
    """Bytes of a further micro-step that do not depend on its rows, of each parameter: from all rows and half of them."""
    print("| setting | parameters | micro-step GB | Inductor's kernels GB | per parameter GB | bytes each |")
    print("|---|---|---|---|---|---|")
    for name in names:
        card, request = MOVED[name]
        found = machine.steps(card, 3000, checkout=checkout, steps=0, traffic=True, **request)
        whole, half = found["traffic"]
        fixed = {operation: 2 * half.get(operation, 0) - size for operation, size in whole.items()}
        own, parameters = sum(fixed.values()), found["parameters"]
        sizes = f"{sum(whole.values()) / 1e9:.2f} | {whole['kernels'] / 1e9:.2f} | {own / 1e9:.2f} | {own / parameters:.1f}"
        print(f"| {name} | {parameters / 1e6:.1f}M | {sizes} |")
        print("  by operation:", ", ".join(f"{operation} {size / 1e9:.2f}" for operation, size in fixed.items() if size > 5e6), flush=True)


def kernels(depth: int) -> None:
    """Compile a compiled step's kernels for every architecture; prints what does not compile or fit."""
    shape = {"depth": depth, "device_batch_size": 4, "max_seq_len": 1024, "compile": "on", "total_batch_size": 8192, "num_iterations": 10}
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        environ = {"TORCHINDUCTOR_CACHE_DIR": str(folder / "cache")}
        machine.steps("4090", environ=environ, config=shape, kernels="compile", steps=2, evaluate=True, timeout=3000)
        sources = architectures.candidates(folder)
        print(f"{len({source.stem for source in sources})} kernels, {len(sources)} candidates")
        for capability, half in ((75, "f16"), (86, "bf16"), (89, "bf16"), (90, "bf16"), (100, "bf16"), (120, "bf16")):
            began = time.monotonic()
            results = architectures.tried(sources, capability, folder, half)
            seconds, faults = time.monotonic() - began, architectures.faults(results, capability)
            print(
                f"sm_{capability}: {len(results)} compiled in {seconds:.0f} s, {len(faults)} kernels without a good one",
                *faults,
                sep="\n  ",
            )


def main() -> None:
    """Print what the options ask for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="settings, all by default")
    parser.add_argument("--upstream", type=Path, metavar="DIRECTORY")
    parser.add_argument("--traffic", action="store_true")
    parser.add_argument("--checkout", type=Path, metavar="DIRECTORY")
    parser.add_argument("--kernels", type=int, default=0, metavar="DEPTH")
    options = parser.parse_args()
    if why := machine.why_not():
        sys.exit(why)
    if options.kernels:
        kernels(options.kernels)
    elif options.upstream:
        beside(options.upstream.absolute(), options.names or list(BESIDE))
    elif options.traffic:
        traffic(options.names or list(MOVED), options.checkout and options.checkout.absolute())
    else:
        memory(options.names or list(SETTINGS))


if __name__ == "__main__":
    main()
