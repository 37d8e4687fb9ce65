"""Matrix products: by products.c if it is loaded and faster, else by torch.

Shapes: M rows, K terms of a sum, N columns; with three axes, a batch of C matrices.
"""

import ctypes
from typing import Any

import torch
from torch import Tensor

N, F, P = ctypes.c_ssize_t, ctypes.c_float, ctypes.c_void_p
ARGUMENTS: list[Any] = [ctypes.c_int, N, N, N, N, F, P, N, N, N, P, N, N, N, F, P, N, N, P, N, N]
HALVES = ("", "symmetric", "lower result", "lower left", "upper left")  # as in products.c
WIDE = 4096  # columns of a result from which torch's library is slow: rows so far apart share cache lines
SMALLEST = 32  # rows, columns and terms at least: with fewer, padding and packing cost as much as the product
_libraries: dict[str, ctypes.CDLL] = {}  # by the type of the terms: float32, int16


def use(kind: str, path: str) -> None:
    """Multiply float32 matrices on the CPU with the library at `path`, in `kind`. Raises OSError if it is not a library."""
    library = ctypes.CDLL(path)
    library.product.argtypes = ARGUMENTS
    _libraries[kind] = library


def loaded(kind: str) -> bool:
    """Whether a library for `kind` is in use."""
    return kind in _libraries


def forget() -> None:
    """Return to torch for every product."""
    _libraries.clear()


def product(
    a: Tensor,
    b: Tensor,
    add: Tensor | None = None,
    *,
    alpha: float = 1.0,
    beta: float = 1.0,
    out: Tensor | None = None,
    half: str = "",
    low_precision: bool = False,
) -> Tensor:
    """alpha * a b + beta * add: a (M, K) and b (K, N) -> (M, N), or (C, M, K) and (C, K, N) -> (C, M, N); written to `out` if given.

    `add` may be `out`. `half` names the half of a square matrix that need not be computed. With "symmetric" the result is symmetric, with
    "lower result" it is undefined above the diagonal, and with "lower left" or "upper left", `a` is a lower or upper triangle.
    A `low_precision` product may use 16-bit integers if they are loaded, with an error of 1e-4 of the factors' norms.
    No gradients. Raises MemoryError if the packed matrices cannot be allocated.
    """
    library = _chosen(a, b, add, out, half, low_precision)
    if library is None:
        if add is not None:
            return (torch.addmm if a.dim() == 2 else torch.baddbmm)(add, a, b, beta=beta, alpha=alpha, out=out)
        made = torch.matmul(a, b, out=out)
        return made if alpha == 1 else made.mul_(alpha)
    if out is None:
        out = a.new_empty(*a.shape[:-1], b.size(-1))
    left, right, old, new = (_described(x) for x in (a, b, add, out))
    count = a.size(0) if a.dim() == 3 else 1
    if library.product(HALVES.index(half), count, a.size(-2), b.size(-1), a.size(-1), alpha, *left, *right, beta, *old[:3], *new[:3]):
        raise MemoryError(f"cannot allocate memory to multiply {tuple(a.shape)} by {tuple(b.shape)}")
    return out


def _described(x: Tensor | None) -> tuple[int | None, ...]:
    """A tensor's address, and the strides of three axes."""
    return (None, 0, 0, 0) if x is None else (x.data_ptr(), *(0,) * (3 - x.dim()), *x.stride())


def _chosen(a: Tensor, b: Tensor, add: Tensor | None, out: Tensor | None, half: str, low_precision: bool) -> ctypes.CDLL | None:
    """The library for a product, or None for torch."""
    if not _libraries or min(*a.shape[-2:], b.size(-1)) < SMALLEST:
        return None
    written = [x for x in (add, out) if x is not None]
    known = all(x.dtype == torch.float32 and x.device.type == "cpu" for x in (a, b, *written))
    if not known or any(x.stride(-1) != 1 for x in written):
        return None
    if low_precision and half not in ("lower left", "upper left") and "int16" in _libraries:
        return _libraries["int16"]
    return _libraries.get("float32") if half or b.size(-1) >= WIDE else None
