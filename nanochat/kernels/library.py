"""Python bindings of the compiled fused.c: one library for float32 tensors, one for bfloat16."""

import ctypes
from typing import Any

import torch
from torch import Tensor

LETTERS = {"n": ctypes.c_ssize_t, "f": ctypes.c_float, "p": ctypes.c_void_p}
FUNCTIONS = {  # arguments of each: n a size or stride, f a number, p a tensor
    "accumulate": "nfpp",
    "embed": "nnnppp",
    "embed_backward": "nnppp",
    "rms_norm": "nnfppp",
    "rms_norm_backward": "nnpppp",
    "rotary_norm": "nnnnnnnffppppp",
    "rotary_norm_backward": "nnnnnnnfpppppp",
    "mix": "nffppp",
    "mix_backward": "nnffpppppp",
    "relu_square": "npp",
    "relu_square_backward": "nppp",
    "add_gated": "nnpppp",
    "add_gated_backward": "nnppppp",
    "cross_entropy": "nnfpppp",
    "attention_backward": "nnfpppp",
}
BLOCK = 64  # rows of one partial sum of `mix_backward`; fused.c is compiled with it


class Library:
    """The functions of a compiled fused.c for tensors of `dtype`. Raises OSError if `path` is not a library."""

    def __init__(self, path: str, dtype: torch.dtype):
        self.dtype = dtype
        self._functions = ctypes.CDLL(path)
        for name, letters in FUNCTIONS.items():
            getattr(self._functions, name).argtypes = [LETTERS[letter] for letter in letters]

    def call(self, name: str, *arguments: Any) -> int:
        """Call the function `name` with tensors as their addresses, and return its result."""
        found = getattr(self._functions, name)(*(each.data_ptr() if isinstance(each, Tensor) else each for each in arguments))
        return int(found)
