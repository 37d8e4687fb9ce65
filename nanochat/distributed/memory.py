"""The device's memory: a cap on what this process takes of it, and smaller parts of the same work where it is not enough.

Over the cap is "out of memory", also where a driver would rather move what does not fit to the system's memory, as Windows' and WSL's
do: that would be fifty times slower, and silent. Out of memory does not end a run: the same work is done in smaller parts.
"""

import gc
import traceback
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import TypeVar

import torch

from nanochat.console import log
from nanochat.errors import OutOfMemoryError
from nanochat.hardware.gpu_specs import usable_bytes

Item = TypeVar("Item")
Result = TypeVar("Result")

RESERVE = 256 * 2**20  # bytes of what is free that libraries take beside torch's allocator
WORDS = ("can't allocate memory", "not enough memory", "CUDA error: out of memory", "ALLOC_FAILED")  # of other errors than torch's own


def cap(device: torch.device) -> int | None:
    """Bytes that torch may take of a GPU from now on: what a plan counts on, less where others hold some of it; None on a CPU."""
    if device.type != "cuda":
        return None
    free, total = torch.cuda.mem_get_info(device)
    limit = max(min(usable_bytes(total), free - RESERVE), 0)
    torch.cuda.set_per_process_memory_fraction(limit / total, device)
    return limit


def is_out_of_memory(error: BaseException | None) -> bool:
    """Whether `error` is the device's or the system's way to say so."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(word in str(error) for word in WORDS)


class Attempt:
    """Work that may need too much memory: `with Attempt(device) as attempt: ...`, and afterwards `attempt.failed`.

    What the failed work held is free again by then; any other error passes.
    """

    def __init__(self, device: torch.device):
        self.device, self.failed = device, False

    def __enter__(self) -> "Attempt":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> bool:
        self.failed = is_out_of_memory(error)
        if self.failed:
            traceback.clear_frames(trace)  # their variables hold the activations
            gc.collect()
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
        return self.failed


def map_with_oom_backoff(
    items: Sequence[Item],
    size: int,
    work: Callable[[Sequence[Item]], Sequence[Result]],
    device: torch.device,
    what: str,
    cost: Callable[[Item], int] = lambda item: 1,
) -> tuple[list[Result], int]:
    """`work`'s results for `items`, done in parts whose items cost `size` together, each as much as the part's first one.

    A part that needs too much memory is halved, and so are those after it; the second value is the size that was enough.
    `what` is for the messages. Raises OutOfMemoryError if one item alone is too much.
    """
    results: list[Result] = []
    while len(results) < len(items):
        each = cost(items[len(results)])
        part = items[len(results) : len(results) + max(size // each, 1)]
        with Attempt(device) as attempt:
            results += work(part)
        if not attempt.failed:
            continue
        if len(part) == 1:
            raise OutOfMemoryError(f"out of memory {what}, with one at a time", "close what else uses the device, or use --device=cpu")
        size = each * (len(part) // 2)
        log(f"warning: out of memory {what}: it goes on with {len(part) // 2} at a time")
    return results, size
