"""Choice of a model's operations: a CPU's fused ones if they are loaded for the type of its activations, a GPU's lean ones, torch's."""

import torch

from nanochat.kernels import products
from nanochat.kernels.fused import FusedOperations
from nanochat.kernels.lean import LeanOperations, TracedLeanOperations
from nanochat.kernels.library import Library
from nanochat.kernels.operations import Operations

_fused: dict[torch.dtype, FusedOperations] = {}


def use(dtype: torch.dtype, path: str) -> None:
    """Use the library at `path` in new models with activations of `dtype`. Raises OSError if it is not a library."""
    _fused[dtype] = FusedOperations(Library(path, dtype))


def loaded(dtype: torch.dtype) -> bool:
    """Whether a library for `dtype` is in use."""
    return dtype in _fused


def forget() -> None:
    """Return to torch in new models and for every product."""
    _fused.clear()
    products.forget()


def operations_for(device: torch.device, dtype: torch.dtype, *, compiled: bool = False, traced: bool = False) -> Operations:
    """The fastest operations available for activations of `dtype` on `device`.

    `traced` asks for operations that torch.compile can trace, which the fused ones are not. `compiled` compiles torch's loss, which is
    outside of a traced forward pass.
    """
    if device.type == "cuda":
        return (TracedLeanOperations if traced else LeanOperations)(dtype, compiled=compiled)
    if device.type == "cpu" and dtype in _fused and not traced:
        return _fused[dtype]
    return Operations(dtype, compiled=compiled)
