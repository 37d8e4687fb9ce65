"""The null GPU's counters in the process that runs on it, and torch's memory and compilations beside them."""

import ctypes
import os
from typing import Any

import torch
from torch._dynamo.utils import counters as dynamo


def counters() -> dict[str, int]:
    """What was counted since the process began, by the words of nullgpu.h."""
    library = ctypes.CDLL(os.environ["LD_PRELOAD"])
    names: list[str] = []
    words = (ctypes.c_char_p * 64).in_dll(library, "nullgpu_names")
    for word in words:
        if word is None:  # the end of the list
            break
        names.append(word.decode())
    values = (ctypes.c_longlong * len(names)).in_dll(library, "nullgpu_counters")
    return dict(zip(names, values, strict=True))


def kernels() -> dict[str, int]:
    """Launches of torch's own kernels since the process began, by their mangled names."""
    library = ctypes.CDLL(os.environ["LD_PRELOAD"])
    most = 1 << 16
    names, launches = (ctypes.c_char_p * most)(), (ctypes.c_longlong * most)()
    found = library.nullgpu_kernels(names, launches, most)
    return {names[i].decode(): launches[i] for i in range(found)}


class Counted:
    """What a block did: `with Counted() as counted: ...`, then `counted.entry`: counts that are not 0, peak bytes, new graphs."""

    def __enter__(self) -> "Counted":
        torch.cuda.reset_peak_memory_stats()
        self._before, self._graphs = counters(), dynamo["stats"]["unique_graphs"]
        return self

    def __exit__(self, *error: object) -> None:
        after = counters()
        self.entry: dict[str, Any] = {
            "counts": {name: after[name] - old for name, old in self._before.items() if after[name] != old},
            "peak": torch.cuda.max_memory_allocated(),
            "reserved": torch.cuda.max_memory_reserved(),
            "graphs": dynamo["stats"]["unique_graphs"] - self._graphs,
        }
