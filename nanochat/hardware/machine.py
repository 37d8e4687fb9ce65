"""The devices that a run on this machine uses: its GPUs, else its CPU.

torch is imported only if a GPU driver is installed, so that a plan for a CPU is immediate.
"""

import ctypes
import dataclasses
import sys

from nanochat.hardware import cpu, memory
from nanochat.hardware.gpu_specs import find_spec, usable_bytes

FLOPS_PER_MULTIPROCESSOR = 0.45e12  # for a GPU that is not in the table: between a 3090's and a 4050's


@dataclasses.dataclass(frozen=True)
class Hardware:
    """`count` equal devices of this machine, or of another that a run is planned for."""

    name: str
    cuda: bool
    memory: int  # bytes of one device
    usable: int  # bytes of them available to training
    flops: float  # FLOP/s that training achieves on one device, as scaling.flops_per_token counts them
    count: int = 1
    bf16: bool = False
    fp16: bool = False  # whether a GPU multiplies float16 faster than float32
    avx2: bool = False  # AVX2 and FMA, which a CPU's int16 products need (nanochat/kernels/products.c)
    dollars: float | None = None  # approximate rent of one device per hour; None if it is not rented out
    here: bool = True  # whether it is this machine's
    source: str = ""  # of `flops`


def this_machine(device: str = "auto") -> Hardware:
    """This machine's GPUs; with `device` "cpu", or without a GPU, its CPU (whose speed is not measured here)."""
    if device != "cpu" and has_gpu_driver():
        import torch

        if torch.cuda.is_available() and not torch.version.hip:  # no operation here is tested on AMD's GPUs, which torch calls cuda too
            return _these_gpus()
    return _this_cpu()


def has_gpu_driver() -> bool:
    """Whether an NVIDIA driver is installed; checked first, because importing torch takes seconds."""
    if "torch" in sys.modules:
        return True
    try:
        ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return False
    return True


def _these_gpus() -> Hardware:
    """This machine's GPUs, all assumed equal to the first."""
    import torch

    gpu = torch.cuda.get_device_properties(0)
    spec = find_spec(gpu.name)
    return Hardware(
        name=gpu.name,
        cuda=True,
        memory=gpu.total_memory,
        usable=usable_bytes(gpu.total_memory),
        flops=spec.flops if spec else FLOPS_PER_MULTIPROCESSOR * gpu.multi_processor_count,
        count=torch.cuda.device_count(),
        bf16=gpu.major >= 8,
        fp16=gpu.major >= 7,
        dollars=spec.dollars if spec else None,
        source=spec.source if spec else "estimate from the number of its multiprocessors",
    )


def _this_cpu() -> Hardware:
    """This machine's CPU and main memory."""
    found, available = cpu.read_cpu(), memory.available_bytes()
    return Hardware(
        name=f"{found.name}, {cpu.physical_cores()} cores",
        cuda=False,
        memory=available,
        usable=int(0.8 * available),
        flops=cpu.DEFAULT_FLOPS,
        bf16=found.bf16,
        avx2=found.avx2,
        source="measured here",
    )
