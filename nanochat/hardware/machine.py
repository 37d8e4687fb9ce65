"""What a run is planned for: this machine's GPU or CPU, or a card of the table that is not here.

torch is imported only where there might be a GPU, so that a plan without one answers at once.
"""

import ctypes
import dataclasses
import functools
import math
import os
import sys
import time
from pathlib import Path

import numpy as np

from nanochat.config import Config
from nanochat.hardware import gpu_specs as cards
from nanochat.hardware.gpu_specs import GIB, usable_bytes


@dataclasses.dataclass(frozen=True)
class Hardware:
    """What a run is planned for: `count` equal devices."""

    name: str
    cuda: bool
    memory: int  # bytes of one device
    usable: int  # bytes that training may take of them
    flops: float  # floating-point operations a second that training achieves on one device, by scaling.flops_per_token
    count: int = 1
    bf16: bool = False
    avx2: bool = False  # and FMA: a CPU that can multiply in int16 (nanochat/kernels/products.c)
    dollars: float | None = None  # rent of one device for an hour, about; None where it is not rented out
    here: bool = True  # this machine has it
    source: str = ""  # of `flops`


_FLOPS_PER_MULTIPROCESSOR = 0.45e12  # of a card that is not in the table: between a 3090's and a 4050's
CPU_FLOPS = 15e9  # training on two slow cores (measured: 17e9); a fast pair reaches 130e9


def _may_have_gpu() -> bool:
    """Whether a GPU driver is installed: asked first, because importing torch takes seconds."""
    if "torch" in sys.modules or os.path.exists("/dev/kfd"):
        return True
    try:
        ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return False
    return True


def this_machine(device: str = "auto") -> Hardware:
    """This machine's GPU, or with `device` "cpu", or without one, its CPU (whose speed is not measured here)."""
    if device != "cpu" and _may_have_gpu():
        import torch

        if torch.cuda.is_available():
            card = torch.cuda.get_device_properties(0)
            known = cards.known(card.name)
            return Hardware(
                name=card.name,
                cuda=True,
                memory=card.total_memory,
                usable=usable_bytes(card.total_memory),
                flops=known.flops if known else _FLOPS_PER_MULTIPROCESSOR * card.multi_processor_count,
                count=torch.cuda.device_count(),
                bf16=card.major >= 8,
                dollars=known.dollars if known else None,
                source=known.source if known else "estimate by the number of its multiprocessors",
            )
    memory = _free_memory()
    processors = _read("/proc/cpuinfo").splitlines()
    model = next((line.partition(":")[2].strip() for line in processors if line.startswith("model name")), "CPU")
    name = f"{model}, {physical_cores()} cores"
    can = {word for line in processors if line.startswith(("flags", "Features")) for word in line.split()}
    bf16, avx2 = bool(can & {"avx512_bf16", "amx_bf16", "bf16"}), {"avx2", "fma"} <= can
    usable = int(0.8 * memory)
    return Hardware(name, cuda=False, memory=memory, usable=usable, flops=CPU_FLOPS, bf16=bf16, avx2=avx2, source="measured here")


def card_hardware(card: cards.CardType, count: int) -> Hardware:
    """`count` cards of the table, which are not in this machine."""
    return Hardware(
        card.name,
        True,
        card.memory,
        usable_bytes(card.memory),
        card.flops,
        count,
        card.bf16,
        dollars=card.dollars,
        here=False,
        source=card.source,
    )


def profile_hardware(config: Config) -> Hardware | None:
    """The card that `config`'s profile is for, from the table; None for cpu and for no profile."""
    if config.profile not in cards.PROFILE_CARDS or config.device == "cpu":
        return None
    return card_hardware(cards.named(cards.PROFILE_CARDS[config.profile]), config.nproc_per_node)


def choose_hardware(config: Config) -> Hardware:
    """What to plan for: this machine's GPU where there is one, else the profile's card, else this CPU."""
    here = this_machine(config.device)
    return here if here.cuda else profile_hardware(config) or here


def _read(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""


def profile_here() -> str:
    """The profile that this machine is made for: by its GPUs' number and memory, cpu without one."""
    here = this_machine()
    if not here.cuda:
        return "cpu"
    if here.count >= 8 and here.memory >= 70 * GIB:
        return "h100x8"
    return "rtx4090" if here.memory >= 20 * GIB else "rtx4050"


BUSY = 0.4  # of one processor, that others may take of a quiet machine


@functools.cache
def physical_cores() -> int:
    """Cores that this process may use, hyperthreads counted once, a container's limit respected."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    cores = set()
    for processor in _read("/proc/cpuinfo").split("\n\n"):
        fields = dict(line.split(":", 1) for line in processor.splitlines() if ":" in line)
        ids = {key.strip(): value.strip() for key, value in fields.items()}
        if "core id" in ids:
            cores.add((ids.get("physical id", "0"), ids["core id"]))
    limit, _, period = _read("/sys/fs/cgroup/cpu.max").partition(" ")
    quota = math.ceil(int(limit) / int(period)) if limit.isdigit() and period.strip().isdigit() else allowed
    return max(min(allowed, len(cores) or allowed, quota), 1)


def quiet(seconds: float = 0.1) -> bool:
    """Whether in one of five spans of so long as many processors had nothing to do as this process has cores.

    False where that cannot be seen: only Linux tells.
    """
    return any(_idle_processors(seconds) > physical_cores() - BUSY for _ in range(5))


def _idle_processors(seconds: float) -> float:
    """How many of the machine's processors have nothing to do, on average of so long; 0 where that cannot be seen."""
    try:
        before = _processor_ticks()
        time.sleep(seconds)
        idle, total = (after - first for after, first in zip(_processor_ticks(), before, strict=True))
        return (os.cpu_count() or 1) * idle / total
    except (ValueError, ZeroDivisionError):
        return 0.0


def _processor_ticks() -> tuple[int, int]:
    """Idle ticks and all ticks of all processors together since the start. Raises ValueError where there are none."""
    ticks = [int(number) for number in _read("/proc/stat").partition("\n")[0].split()[1:9]]
    if len(ticks) < 5:
        raise ValueError("no /proc/stat")
    return ticks[3] + ticks[4], sum(ticks)


def _free_memory() -> int:
    """Bytes of memory that this process may still take."""
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 8 * GIB
    available = [int(line.split()[1]) * 1024 for line in _read("/proc/meminfo").splitlines() if line.startswith("MemAvailable")]
    limit, used = _read("/sys/fs/cgroup/memory.max").strip(), _read("/sys/fs/cgroup/memory.current").strip()
    contained = [int(limit) - int(used)] if limit.isdigit() and used.isdigit() else []
    return min([total, *available, *contained])


@functools.cache
def measured_cpu_flops(seconds: float = 0.2) -> float:
    """Operations a second that training on this CPU may reach: a quarter of a matrix product's, measured for `seconds`.

    Between 1/1.5 and 1/9 of it were seen on two kinds of machine: a guess, good to a factor of two.
    """
    a = np.ones((768, 768), np.float32)
    a @ a  # the first product starts the threads
    best, began = math.inf, time.perf_counter()
    while (now := time.perf_counter()) - began < seconds:
        a @ a
        best = min(best, time.perf_counter() - now)
    return 2 * 768**3 / best / 4
