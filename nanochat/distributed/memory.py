"""Device memory: a limit for this process, and back-off to smaller batches when out of memory.

The limit makes an allocation fail that the drivers of Windows and WSL would silently move to system memory, where it is fifty times
slower. Out of memory does not end a run: the same work is done in smaller batches.
"""

import gc
import os
import traceback
import warnings
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import TypeVar

import torch

from nanochat.console import log
from nanochat.errors import OutOfMemoryError
from nanochat.hardware.gpu_specs import usable_bytes

Item = TypeVar("Item")
Result = TypeVar("Result")

RESERVE = 256 * 2**20  # bytes left for libraries that bypass torch's allocator
SETTINGS = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")  # variables with which a user configures torch's allocator
WORDS = (
    "can't allocate memory",
    "not enough memory",
    "CUDA error: out of memory",
    "ALLOC_FAILED when",
    "could not create a primitive",
)  # of other libraries


def expand_segments() -> bool:
    """Have torch's GPU memory grow in place, in segments of one range of addresses, before the first tensor; returns whether it does.

    Without it, memory that is reserved for tensors of one size cannot serve others: 8 to 17% of a training run's. Drivers without virtual
    memory, as some of WSL2, refuse it. Nothing is changed where the user's environment configures the allocator.
    """
    if any(os.environ.get(name) for name in SETTINGS):
        return False
    try:
        torch._C._accelerator_setAllocatorSettings("expandable_segments:True")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on a GPU without NVLink torch warns that it asked for that
            torch.empty(1, device="cuda")
    except RuntimeError as error:
        torch._C._accelerator_setAllocatorSettings("expandable_segments:False")
        log(f"skipped: expandable segments of GPU memory, which this driver refuses ({str(error).splitlines()[0]})")
        return False
    return True


def cap(device: torch.device) -> int | None:
    """Limit torch's memory on a GPU to what a plan assumes, or to what other programs leave; returns the bytes, None on a CPU."""
    if device.type != "cuda":
        return None
    free, total = torch.cuda.mem_get_info(device)
    limit = max(min(usable_bytes(total), free - RESERVE), 0)
    torch.cuda.set_per_process_memory_fraction(limit / total, device)
    return limit


def is_out_of_memory(error: BaseException | None) -> bool:
    """Whether `error` means out of memory, on the device or in the system."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(word in str(error) for word in WORDS)


class Attempt:
    """Work that may run out of memory: `with Attempt(device) as attempt: ...`, and afterwards `attempt.failed`.

    The failed work's memory has been freed by then; any other error is raised.
    """

    def __init__(self, device: torch.device):
        self.device, self.failed = device, False

    def __enter__(self) -> "Attempt":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> bool:
        self.failed = is_out_of_memory(error)
        if self.failed:
            traceback.clear_frames(trace)  # their variables keep the activations alive
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
    """`work`'s results for `items`, in batches whose items cost at most `size` together, each counted as the first of its batch.

    When out of memory, the batch and all later ones are halved; the second value is the final size. `what` is for messages.
    Raises OutOfMemoryError if a single item does not fit.
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
            raise OutOfMemoryError(
                f"out of memory {what}, at batch size 1", "close other programs that use the device, or use --device=cpu"
            )
        size = each * (len(part) // 2)
        log(f"warning: out of memory {what}; continuing with batch size {len(part) // 2}")
    return results, size
