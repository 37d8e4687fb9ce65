"""Bytes that a step moves outside of matrix products and attention: Inductor's kernels by its own estimate, torch's operations by tensors.

Nothing is measured: an estimate counts each tensor that a kernel reads or writes once, whatever a cache would keep.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

KERNELS: dict[str, list[float]] = defaultdict(lambda: [0, 0.0])  # Inductor's kernels since the last clear(): launches and bytes

PRODUCTS = ("mm", "addmm", "addmm_", "bmm", "baddbmm")
NOT_COUNTED = ("attention", "empty")  # in names: attention, and memory that nobody writes
WRITTEN = ("zero_", "zeros", "zeros_like", "new_zeros", "fill_", "full", "ones", "new_full", "full_like")  # what they are given is not read
SCATTERED = ("index_add_", "index_add", "index_put_", "index_put", "_unsafe_index_put", "scatter_add_", "embedding_dense_backward")


def count_kernels() -> None:
    """Have Inductor's kernels counted, not compiled."""
    import torch._inductor.config as inductor
    from torch._inductor.runtime.triton_heuristics import CachingAutotuner

    inductor.benchmark_kernel = True  # which makes it write the bytes of each kernel
    inductor.compile_threads = 1
    inductor.force_disable_caches = True

    def launch(self: Any, *arguments: Any, **more: Any) -> None:
        name = self.inductor_meta.get("kernel_name") or self.fn.__name__
        size = self.inductor_meta.get("kernel_num_gb")
        if size is None:
            size = sum(_bytes(arguments)) / 1e9
        KERNELS[name][0] += 1
        KERNELS[name][1] += size * 1e9

    CachingAutotuner.run = launch
    CachingAutotuner.precompile = lambda self, *arguments, **more: None


class Traffic(TorchDispatchMode):
    """What a block moves in bytes: `with Traffic() as traffic: ...`, then `traffic.bytes`: "kernels" are Inductor's, the rest torch's own.

    A matrix product counts with what it writes, and with what it reads of a sum that it adds to; its factors are not counted.
    """

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        """The graphs that torch.compile has made run as they are, and what they call is counted."""
        return True

    def __enter__(self) -> "Traffic":
        KERNELS.clear()
        self.bytes: Counter[str] = Counter()
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self.bytes["kernels"] = int(sum(size for _, size in KERNELS.values()))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func._schema.name.split("::")[1]
        if not func.is_view and not any(word in name for word in NOT_COUNTED):
            self.bytes[name] += _moved(name, args, kwargs or {}, result)
        return result


def _moved(name: str, args: Any, kwargs: dict[str, Any], result: Any) -> int:
    written = sum(_bytes(result))
    if name == "add_products":  # nanochat/kernels/accumulation.py
        return 2 * sum(_bytes(args[0]))
    if name in PRODUCTS:
        adds = name in ("addmm", "addmm_", "baddbmm") and kwargs.get("beta", 1) != 0
        return written + (sum(_bytes(args[0])) if adds else 0)
    if name in WRITTEN:
        return written
    if name in SCATTERED:  # rows of a table: read, and read and written where they go; a new table is filled with zeros first
        rows = max(_bytes(args[1:] if name != "embedding_dense_backward" else args[0]), default=0)
        return 3 * rows + (written if not name.endswith("_") else 0)
    return written + sum(_bytes((args, {key: value for key, value in kwargs.items() if key != "out"})))


def _bytes(tree: Any) -> Iterator[int]:
    """Bytes of each of the tensors on the GPU in `tree`."""
    return (one.numel() * one.element_size() for one in tree_leaves(tree) if isinstance(one, torch.Tensor) and one.is_cuda)
