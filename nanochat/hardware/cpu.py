"""This machine's CPU: name, cores, load and speed."""

import dataclasses
import functools
import math
import os
import time
from collections.abc import Iterator

import numpy as np

from nanochat.hardware import cgroups, procfs

DEFAULT_FLOPS = 15e9  # FLOP/s of training on two slow cores (measured: 17e9); a fast pair reaches 130e9


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


def usable_processors() -> set[int]:
    """Numbers of the processors that this process may use, hyperthreads included."""
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))


@functools.cache
def physical_cores() -> int:
    """Cores that this process may use, hyperthreads counted once, a container's limit respected."""
    allowed = len(usable_processors())
    cores = set()
    for processor in procfs.read("/proc/cpuinfo").split("\n\n"):
        fields = dict(line.split(":", 1) for line in processor.splitlines() if ":" in line)
        ids = {key.strip(): value.strip() for key, value in fields.items()}
        if "core id" in ids:
            cores.add((ids.get("physical id", "0"), ids["core id"]))
    return max(min(allowed, len(cores) or allowed, math.ceil(processor_limit())), 1)


def processor_limit() -> float:
    """Processors that this process may use on average, by all limits of its control groups; at most those that it is allowed to run on."""
    return min(len(usable_processors()), *_quotas(), math.inf)


def _quotas() -> Iterator[float]:
    """Processors that each limit of this process's control groups allows."""
    for folder in cgroups.folders("cpu"):
        limit, _, period = procfs.read(f"{folder}/cpu.max").strip().partition(" ")
        old_limit, old_period = cgroups.number(f"{folder}/cpu.cfs_quota_us"), cgroups.number(f"{folder}/cpu.cfs_period_us")
        if limit.isdigit() and period.isdigit() and int(period):
            yield int(limit) / int(period)
        if old_limit and old_period:
            yield old_limit / old_period


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
