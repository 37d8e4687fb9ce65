"""Claim: in eager float32 on a CPU, our RMSNorm (forward and backward) takes a fraction of torch's own time.

Alternating, medians of 20 rounds; prints the ratio for the shapes of the quickstart's model and of a d8.
"""

import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from nanochat.model.attention import rms_norm

SHAPES = ((4, 256, 96), (4, 256, 3, 32), (4, 1024, 512), (4, 1024, 4, 128))
ROUNDS, CALLS = 20, 10


def theirs(x: Tensor) -> Tensor:
    """torch's RMSNorm."""
    return F.rms_norm(x, (x.size(-1),))


def seconds(norm: Callable[[Tensor], Tensor], x: Tensor, grad: Tensor) -> float:
    """Time of one forward and backward pass."""
    began = time.perf_counter()
    for _ in range(CALLS):
        norm(x).backward(grad)
    return (time.perf_counter() - began) / CALLS


def main() -> None:
    """Measure every shape."""
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    for shape in SHAPES:
        x, grad = torch.randn(shape, requires_grad=True), torch.randn(shape)
        for norm in (rms_norm, theirs):
            seconds(norm, x, grad)
        pairs = [(seconds(rms_norm, x, grad), seconds(theirs, x, grad)) for _ in range(ROUNDS)]
        ours, other = (statistics.median(part) for part in zip(*pairs, strict=True))
        print(f"{shape}: ours {ours * 1e6:.0f} us, torch {other * 1e6:.0f} us, torch / ours = {other / ours:.2f}")


if __name__ == "__main__":
    main()
