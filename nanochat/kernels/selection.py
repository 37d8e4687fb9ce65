"""Which operations a model computes with: a CPU's fused ones where they are loaded for the type of its activations, torch's otherwise."""

import torch

from nanochat.kernels import products
from nanochat.kernels.fused import FusedOperations
from nanochat.kernels.library import Library
from nanochat.kernels.operations import Operations

_fused: dict[torch.dtype, FusedOperations] = {}


def use(dtype: torch.dtype, path: str) -> None:
    """Have models with activations of `dtype` use the library at `path` from now on. Raises OSError if that is none."""
    _fused[dtype] = FusedOperations(Library(path, dtype))


def loaded(dtype: torch.dtype) -> bool:
    """Whether they do."""
    return dtype in _fused


def forget() -> None:
    """Leave new models, and every product of `product`, to torch again."""
    _fused.clear()
    products.forget()


def operations_for(device: torch.device, dtype: torch.dtype, *, compiled: bool = False) -> Operations:
    """The fastest operations here for activations of `dtype` on `device`.

    `compiled` is for torch's own: it has the loss compiled. The fused operations are compiled already, and torch.compile cannot see
    into them: what it is to compile needs `Operations`.
    """
    if device.type == "cpu" and dtype in _fused:
        return _fused[dtype]
    return Operations(dtype, compiled=compiled)
