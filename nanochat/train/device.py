"""Device set-up: threads, precision, determinism, compilation."""

import ctypes
import os
from collections.abc import Callable
from pathlib import Path

import torch
import torch._functorch.config
from torch import Tensor

from nanochat import paths
from nanochat.config import DeviceConfig
from nanochat.console import log
from nanochat.distributed import memory
from nanochat.hardware.gpu_specs import find_spec
from nanochat.kernels import build as kernels
from nanochat.kernels.private import private_folder, why_not_private
from nanochat.model.build import build_model
from nanochat.model.scaling import CHEAP_BUDGET, GPTConfig
from nanochat.model.transformer import Transformer

INDUCTOR, TRITON = "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR"  # directories of the compile caches of torch and Triton
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # mallopt(3)


def set_up(config: DeviceConfig) -> None:
    """Set threads, determinism, the compile cache, a GPU's allocator and a CPU's operations for this process, before the first tensor."""
    # The optimizer's moments of embedding rows that are unused for a thousand steps become denormal, which an Intel core computes with at
    # a fiftieth of its speed. Set before other threads start, because they inherit it.
    torch.set_flush_denormal(True)
    torch.set_num_threads(max(config.threads, 1))
    if config.device == "cpu":
        _keep_freed_memory()
    else:
        memory.expand_segments()
    if config.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    else:
        torch.set_float32_matmul_precision("high")
    folder = cache_folder(config.device)
    if config.device == "cpu":
        load_kernels(config.dtype, folder)


def cache_folder(device: str) -> Path:
    """Directory of the compile cache for "cpu" or "cuda", also set for torch's compiler.

    It is private, because torch's compiler unpickles its files.
    """
    name = torch.cuda.get_device_name().replace(" ", "-") if device == "cuda" else "cpu"
    folder = _chosen(INDUCTOR) or private_folder(paths.base_dir() / "cache", f"{name}-torch{torch.__version__}")
    os.environ[INDUCTOR] = str(folder)  # the default needs a user name, which a container may lack
    if TRITON in os.environ and not _chosen(TRITON):
        del os.environ[TRITON]  # torch's compiler then uses a subdirectory
    return folder


def _chosen(variable: str) -> Path | None:
    """The directory in an environment variable, created if needed; None, with a warning, if other users may write to it."""
    if not os.environ.get(variable):
        return None
    folder = Path(os.environ[variable]).absolute()
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        why = why_not_private(folder.resolve())
    except OSError as error:
        why = str(error)
    if why:
        log(f"warning: {variable} is not used: {why}")
    return None if why else folder


def activations(dtype: str) -> torch.dtype:
    """The type of a model's activations for a resolved `dtype`; int16 is only a type of products."""
    return {"bfloat16": torch.bfloat16, "float16": torch.float16}.get(dtype, torch.float32)


def load_kernels(dtype: str, folder: Path) -> None:
    """Compile and use a CPU's operations for activations of `dtype`; a message names those that are not available."""
    if dtype == "float16":  # only to see on a CPU what a GPU does; torch's operations are slow but exact
        return
    if why := kernels.load(activations(dtype), folder):
        log(f"skipped: fused operations ({why}); training takes 1.3 to 1.6 times as long")
        return
    if dtype != "bfloat16" and kernels.better_products() and (why := kernels.load_products("float32", folder)):
        log(f"skipped: faster matrix products ({why}); training takes 1.1 times as long")
    if dtype == "int16" and (why := kernels.load_products("int16", folder)):
        log(f"skipped: 16-bit integer products ({why}); training in float32 takes 1.3 times as long")


def _keep_freed_memory() -> None:
    """Have the C library keep freed memory, like a GPU's allocator, instead of returning large blocks to the system.

    Each step frees and allocates the same tensors; clearing and mapping returned pages again takes a tenth of a step's time. The peak is
    unchanged.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # glibc only
    if mallopt:
        mallopt(M_MMAP_THRESHOLD, 2**30)
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def new_model(gpt: GPTConfig, device: torch.device, config: DeviceConfig) -> Transformer:
    """A model with initial weights, in the precision of a resolved `config`."""
    model = build_model(gpt, device, config.seed)
    model.use(activations(config.dtype))
    return model


def forward_of(model: Transformer, config: DeviceConfig) -> Callable[[Tensor], Tensor]:
    """The model's forward pass, compiled with the loss if the config's `compile` is on."""
    compiled = config.compile == "on"
    model.use(model.compute_dtype, compiled=compiled)
    if compiled:
        expected = "about a minute" if config.device == "cuda" else "20 s to 2 minutes"
        log(f"torch.compile: the first step and the first evaluation take {expected} longer")
        _set_budget(config.activation_memory_budget)
    return torch.compile(model, dynamic=False) if compiled else model


def _set_budget(budget: float) -> None:
    """Have compiled steps keep the fraction `budget` of their activations, or from CHEAP_BUDGET on recompute only what is cheap.

    Just below 1, torch's own choice moves 11 to 14% more bytes and raises the peak of deep models (docs/experiments/log.md).
    """
    cheap = CHEAP_BUDGET <= budget < 1
    torch._functorch.config.ban_recompute_materialized_backward = not cheap
    torch._functorch.config.activation_memory_budget = 1.0 if cheap else budget


def peak_flops(device: torch.device) -> float:
    """Peak bf16 FLOP/s of the GPU, for the metrics' mfu (model FLOPs utilisation); 0 if unknown."""
    spec = find_spec(torch.cuda.get_device_name(device)) if device.type == "cuda" else None
    return spec.peak_flops if spec else 0.0
