"""Table of GPU specifications: memory, peak and planned FLOP/s, rent, and the GPU of each profile."""

import dataclasses
import re

from nanochat.errors import UsageError, did_you_mean

GIB = 2**30
ESTIMATE = "estimate: 0.37 of the data sheet's peak"
ESTIMATED_SHARE = 0.37  # share of the peak that training achieves, if there is no published figure
PLANNED_SHARE = 0.75  # share of a published figure that a plan assumes: those runs' kernels are tuned to the GPU


@dataclasses.dataclass(frozen=True)
class GPUSpec:
    """One model of GPU. `name` is the driver's name for it, and its id in RunPod's catalogue."""

    name: str
    memory: int  # bytes
    peak_flops: float  # FLOP/s in bfloat16, dense, with 32-bit accumulation; in float16 without bfloat16 units
    flops: float  # FLOP/s that a plan assumes
    source: str  # of `flops`
    dollars: float | None = None  # approximate rent per hour; prices change. None if it is not rented out
    bf16: bool = True  # whether it has bfloat16 units


def _spec(name: str, gibibytes: int, peak: float, published: float = 0.0, source: str = "", dollars: float | None = None) -> GPUSpec:
    """A GPU whose planned FLOP/s follow from a `published` run (tokens per second times FLOP per token), else from its peak."""
    flops = PLANNED_SHARE * published if published else ESTIMATED_SHARE * peak
    return GPUSpec(name, gibibytes * GIB, peak, flops, f"three quarters of {source}" if published else ESTIMATE, dollars)


# A GeForce's peak is 512 FLOP per clock and multiprocessor, half of the figure with 16-bit accumulation (NVIDIA's white papers on Ampere
# GA102, Ada and Blackwell), times multiprocessors and boost clock, a laptop's at its highest power. Other peaks are those of NVIDIA's data
# sheets, dense.
GPU_SPECS = (
    GPUSpec(
        "NVIDIA GeForce RTX 4050 Laptop GPU",
        6 * GIB,
        24e12,
        9.8e12,
        "estimate, a guess: d8 at 28K and d12 at 11K tokens/s; no published figure",
    ),
    _spec("NVIDIA GeForce RTX 3060", 12, 25e12),
    _spec("NVIDIA GeForce RTX 4060", 8, 30e12),
    _spec("NVIDIA GeForce RTX 4060 Laptop GPU", 8, 28e12),
    _spec("NVIDIA GeForce RTX 4070", 12, 58e12, 49e12, "a published d12 at 55.7K tokens/s"),
    _spec("NVIDIA GeForce RTX 4080", 16, 97e12),
    _spec("NVIDIA GeForce RTX 3090", 24, 71e12, 34e12, "a published d12 at 40K tokens/s", 0.45),
    _spec("NVIDIA GeForce RTX 4090", 24, 165e12, 107e12, "a published GPT-2 small at 130K tokens/s", 0.7),
    _spec("NVIDIA GeForce RTX 5090", 32, 209e12, dollars=0.9),
    GPUSpec(
        "Tesla T4",
        15 * GIB,
        65e12,
        13e12,
        "estimate: a fifth of the data sheet's float16 peak, whose clock its 70 W do not sustain; no published figure",
        0.35,
        bf16=False,
    ),
    _spec("NVIDIA L4", 24, 121e12, dollars=0.45),
    _spec("NVIDIA L40S", 48, 362e12, dollars=0.9),
    _spec("NVIDIA A100-SXM4-40GB", 40, 312e12, 230e12, "published runs of eight at 315K tokens/s", 1.5),
    _spec("NVIDIA A100-SXM4-80GB", 80, 312e12, 230e12, "published runs of eight at 315K tokens/s", 1.8),
    _spec("NVIDIA H100 80GB HBM3", 80, 989e12, 470e12, "a published d26 on eight at 630K tokens/s", 3.0),
    _spec("NVIDIA H200", 141, 989e12, 470e12, "the H100's published figure, which has the same chip", 3.6),
    _spec("NVIDIA GH200 480GB", 96, 989e12, 470e12, "the H100's published figure, which has the same chip"),
)

# Profile -> the GPU that it is for.
PROFILE_GPUS = {
    "t4": "Tesla T4",
    "rtx4050": "NVIDIA GeForce RTX 4050 Laptop GPU",
    "rtx4090": "NVIDIA GeForce RTX 4090",
    "speedrun": "NVIDIA H100 80GB HBM3",
    "h100x8": "NVIDIA H100 80GB HBM3",
}
# Profile -> GPUs to rent for it, in order: its own if it is rented out, then others that are no slower, so that the estimate holds.
RENTAL_GPUS = {
    "t4": ("NVIDIA L4", "NVIDIA GeForce RTX 3090"),
    "rtx4050": ("NVIDIA GeForce RTX 3090", "NVIDIA GeForce RTX 4090"),
    "rtx4090": ("NVIDIA GeForce RTX 4090", "NVIDIA GeForce RTX 5090"),
    "speedrun": ("NVIDIA H100 80GB HBM3", "NVIDIA H200"),
    "h100x8": ("NVIDIA H100 80GB HBM3", "NVIDIA H200"),
}


def profile_for(count: int, memory: int, *, float16: bool = False) -> str:
    """The profile for a machine with `count` GPUs of `memory` bytes each, which compute in `float16` or in bfloat16."""
    if not count:
        return "cpu"
    if count >= 8 and memory >= 70 * GIB:
        return "h100x8"
    if float16 and 14 * GIB <= memory < 20 * GIB:
        return "t4"
    return "rtx4090" if memory >= 20 * GIB else "rtx4050"


def usable_bytes(memory: int) -> int:
    """Bytes available to training on a GPU of `memory` bytes: 5.2e9 of 6 GiB, 22.5e9 of 24, 76e9 of 80."""
    return int(0.9 * memory - 0.6e9)


def find_spec(name: str) -> GPUSpec | None:
    """The spec of the GPU with the driver's `name`; of several of one model, the one that shares the most words with it."""
    wanted = _numbered_words(name)
    same_model = [spec for spec in GPU_SPECS if wanted and _numbered_words(spec.name)[0] == wanted[0]]

    def distance(spec: GPUSpec) -> tuple[int, bool]:
        return len({*_numbered_words(spec.name)} ^ {*wanted}), ("laptop" in spec.name.lower()) != ("laptop" in name.lower())

    return min(same_model, key=distance, default=None)


def require_spec(name: str) -> GPUSpec:
    """The spec of the GPU that a user named (4070, h100, rtx 4090). Raises UsageError with the known ones."""
    found = find_spec(name)
    if found is None:
        known = [spec.name.removeprefix("NVIDIA ").removeprefix("GeForce ") for spec in GPU_SPECS]
        raise UsageError(f"unknown GPU {name!r}", did_you_mean(name, [_numbered_words(spec)[0] for spec in known], known))
    return found


def _numbered_words(text: str) -> list[str]:
    """The words of a GPU's name that have a number in them, the model's first: ["h100", "80gb", "hbm3"]."""
    return re.findall(r"[a-z]*\d+[a-z]*", text.lower().replace("rtx", " "))
