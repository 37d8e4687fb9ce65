"""This machine's CPU: name, cores, load and speed."""

import dataclasses
import functools
import math
import os
import time

import numpy as np

from nanochat.hardware import procfs

DEFAULT_FLOPS = 15e9  # FLOP/s of training on two slow cores (measured: 17e9); a fast pair reaches 130e9
STAT = "/proc/stat"  # busy and idle ticks of all processors
BUSY_PROCESSORS = 0.4  # average load of other programs at which a machine still counts as idle
SPANS = 5  # number of time spans measured


@dataclasses.dataclass(frozen=True)
class CPU:
    """The CPU's model name, and the vector instructions that it has."""

    name: str
    bf16: bool  # bfloat16 units
    avx2: bool  # AVX2 and FMA, which int16 products need (nanochat/kernels/products.c)


def read_cpu() -> CPU:
    """This machine's CPU, as /proc/cpuinfo describes it."""
    lines = procfs.read("/proc/cpuinfo").splitlines()
    name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "CPU")
    flags = {word for line in lines if line.startswith(("flags", "Features")) for word in line.split()}
    return CPU(name, bf16=bool(flags & {"avx512_bf16", "amx_bf16", "bf16"}), avx2={"avx2", "fma"} <= flags)


@functools.cache
def physical_cores() -> int:
    """Cores that this process may use, hyperthreads counted once, a container's limit respected."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    cores = set()
    for processor in procfs.read("/proc/cpuinfo").split("\n\n"):
        fields = dict(line.split(":", 1) for line in processor.splitlines() if ":" in line)
        ids = {key.strip(): value.strip() for key, value in fields.items()}
        if "core id" in ids:
            cores.add((ids.get("physical id", "0"), ids["core id"]))
    limit, _, period = procfs.read("/sys/fs/cgroup/cpu.max").partition(" ")
    quota = math.ceil(int(limit) / int(period)) if limit.isdigit() and period.strip().isdigit() else allowed
    return max(min(allowed, len(cores) or allowed, quota), 1)


def has_idle_cores(seconds: float = 0.1) -> bool:
    """Whether in one of SPANS spans of `seconds` as many processors were idle as this process has cores.

    False if unknown, as on systems other than Linux.
    """
    return any(_idle_processors(seconds) > physical_cores() - BUSY_PROCESSORS for _ in range(SPANS))


def _idle_processors(seconds: float) -> float:
    """Average number of idle processors of the machine over `seconds`; 0 if unknown."""
    try:
        before = _processor_ticks()
        time.sleep(seconds)
        idle, total = (after - first for after, first in zip(_processor_ticks(), before, strict=True))
        return (os.cpu_count() or 1) * idle / total
    except (ValueError, ZeroDivisionError):
        return 0.0


def _processor_ticks() -> tuple[int, int]:
    """(idle, all) ticks of all processors since boot. Raises ValueError if there are none."""
    ticks = [int(number) for number in procfs.read(STAT).partition("\n")[0].split()[1:9]]
    if len(ticks) < 5:
        raise ValueError(f"no ticks in {STAT}")
    return ticks[3] + ticks[4], sum(ticks)


@functools.cache
def measure_flops(seconds: float = 0.2) -> float:
    """FLOP/s that training on this CPU may reach: a quarter of a matrix product's, measured over `seconds`.

    Measured shares were between 1/1.5 and 1/9 on two kinds of machine, so this is a guess within a factor of two.
    """
    a = np.ones((768, 768), np.float32)
    a @ a  # the first product starts the threads
    best, began = math.inf, time.perf_counter()
    while (now := time.perf_counter()) - began < seconds:
        a @ a
        best = min(best, time.perf_counter() - now)
    return 2 * 768**3 / best / 4
