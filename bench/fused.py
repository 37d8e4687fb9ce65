"""Claim: with the fused operations a CPU's micro-batch is faster than in eager torch, and not slower than with torch.compile.

Medians of alternating forward, loss and backward passes on random ids. Prints milliseconds and ratios for the shapes of the
quickstart's model, of the comparison with karpathy/nanochat (d4) and of a d6. --compile adds torch.compile, which takes a minute or two
per shape.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from nanochat.config import Config
from nanochat.kernels import selection
from nanochat.model.build import build_model
from nanochat.model.loss import cross_entropy_sum
from nanochat.model.scaling import GPTConfig
from nanochat.model.transformer import Transformer
from nanochat.train import device

SHAPES = {  # depth, width, head, context, vocabulary, rows
    "quickstart": (3, 96, 32, 256, 512, 4),
    "d4": (4, 256, 128, 256, 8192, 4),
    "d6": (6, 384, 64, 512, 8192, 4),
}
ROUNDS = 15


def build(shape: tuple[int, ...], dtype: torch.dtype) -> Transformer:
    """A model with random weights, because a new one's are partly zeros."""
    depth, dim, head, context, vocabulary, _ = shape
    heads = dim // head
    config = GPTConfig(depth=depth, dim=dim, n_head=heads, n_kv_head=heads, head_dim=head, vocab_size=vocabulary, max_seq_len=context)
    model = build_model(config)
    model.use(dtype)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight) * 0.02)
    return model


def main() -> None:
    """Measure every shape."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtype", choices=("float32", "int16", "bfloat16"), default="float32")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--compile", action="store_true")
    options = parser.parse_args()
    dtype = device.activations(options.dtype)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = folder
        began = time.perf_counter()
        device.set_up(Config(device="cpu", threads=options.threads, dtype=options.dtype))
        if not selection.loaded(dtype):
            raise SystemExit("the fused operations cannot be compiled on this machine")
        took = time.perf_counter() - began
        print(f"torch {torch.__version__}, {options.threads} threads, {options.dtype}; compiled in {took:.1f} s")
        for name, shape in SHAPES.items():
            measure(name, shape, options.dtype, Path(folder), options.compile)


def measure(name: str, shape: tuple[int, ...], kind: str, folder: Path, compiled: bool) -> None:
    """One shape: a line of milliseconds and ratios."""
    dtype = device.activations(kind)
    device.load_kernels(kind, folder)
    model = build(shape, dtype)
    selection.forget()
    plain = build(shape, dtype)
    ids = torch.randint(0, shape[4], (shape[5], shape[3]))

    def micro_batch(model: Transformer, forward: Callable[[torch.Tensor], torch.Tensor], ours: bool) -> float:
        selection.forget()  # also the products, which the models share
        if ours:
            device.load_kernels(kind, folder)
        began = time.perf_counter()
        cross_entropy_sum(model, forward(ids), ids).backward()
        return 1000 * (time.perf_counter() - began)

    ways: dict[str, Callable[[], float]] = {
        "fused": lambda: micro_batch(model, model, True),
        "eager": lambda: micro_batch(plain, plain, False),
    }
    if compiled:
        joined = build(shape, dtype)
        joined.use(dtype, compiled=True)
        forward = torch.compile(joined, dynamic=False)
        ways["compiled"] = lambda: micro_batch(joined, forward, False)
    firsts = {way: run() for way, run in ways.items()}
    times: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(ROUNDS):
        for way, run in ways.items():
            times[way].append(run())
    medians = {way: statistics.median(each) for way, each in times.items()}
    said = ", ".join(f"{way} {medians[way]:.1f} ms (the first {firsts[way] / 1000:.1f} s)" for way in ways)
    print(f"{name}: {said}; " + ", ".join(f"{way} / fused = {medians[way] / medians['fused']:.2f}" for way in ways if way != "fused"))


if __name__ == "__main__":
    main()
