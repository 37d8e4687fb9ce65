"""What the device decides: threads, precision, determinism, compilation."""

import os
from collections.abc import Callable

import torch
from torch import Tensor

from nanochat import paths
from nanochat.config import Config
from nanochat.console import log
from nanochat.model.gpt import GPT

# Dense bfloat16 peaks of the vendors' data sheets, in FLOP/s, for the "model FLOPs utilisation" of the metrics.
PEAK_FLOPS = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "RTX 4090": 165e12, "RTX 3090": 71e12}


def set_up(config: Config) -> None:
    """Set threads, determinism and the compile cache for this process, before the first tensor."""
    torch.set_num_threads(max(config.threads, 1))
    if config.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    else:
        torch.set_float32_matmul_precision("high")
    name = torch.cuda.get_device_name().replace(" ", "-") if config.device == "cuda" else "cpu"
    cache = paths.base_dir() / "cache" / f"{name}-torch{torch.__version__}"
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache))  # torch's default asks for a user name that a container may lack


def compute_dtype(config: Config) -> torch.dtype:
    """bfloat16 where the GPU has units for it, else float32."""
    bf16 = config.device == "cuda" and not config.deterministic and torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.bfloat16 if bf16 else torch.float32


def forward_of(model: GPT, config: Config) -> Callable[[Tensor], Tensor]:
    """The model's forward pass, compiled where the config says so."""
    if config.compile == "on":
        expected = "about a minute" if config.device == "cuda" else "40 s to 4 minutes"
        log(f"torch.compile: the first step takes {expected} longer, and the first evaluation too")
    return torch.compile(model, dynamic=False) if config.compile == "on" else model


def peak_flops(device: torch.device) -> float:
    """Peak bf16 FLOP/s of the card, 0 where unknown."""
    if device.type != "cuda":
        return 0.0
    name = torch.cuda.get_device_name(device)
    return next((value for key, value in PEAK_FLOPS.items() if key in name), 0.0)
