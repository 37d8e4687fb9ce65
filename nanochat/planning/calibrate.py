"""Calibration: step time and memory of a model, measured in a few steps on this machine and cached in the data directory.

The model of a config is trained for some steps on random ids in a separate process, so that its memory can be measured.
`python -m nanochat.planning.calibrate` is that process: it reads a config from stdin ({} for products only) and writes the result to
stdout.
"""

import contextlib
import dataclasses
import functools
import json
import math
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from nanochat import paths
from nanochat.config import Config
from nanochat.console import log
from nanochat.hardware.load import FreeProcessors, OtherLoad

FILE = "calibration.json"  # in the data directory's cache/
FORMAT = 6  # increased when a step becomes faster or smaller, so that older measurements are not used
SECONDS = 4.0  # approximate duration of the measurement, without the start of the process
MAX_STEPS, MIN_STEPS = 24, 2
TIMEOUT, COMPILE_TIMEOUT = 180.0, 900.0  # seconds of the process; a first compilation takes 194 s for 16 layers on two cores
FAILURE_SECONDS = 86400.0  # for which a failed measurement is not tried again
OTHERS_CHANGED, OTHERS_SECONDS = 0.3, 0.3  # change of the share of the CPU from which an older measurement says little
# The config's fields that decide time and memory.
FIELDS = (
    *("architecture", "depth", "aspect_ratio", "head_dim", "max_seq_len", "window_pattern", "vocab_size"),
    *("device_batch_size", "device", "dtype", "compile", "activation_memory_budget", "deterministic", "threads", "nproc_per_node"),
)


@dataclasses.dataclass(frozen=True)
class Measured:
    """Seconds of a micro-step (forward and backward of one micro-batch) and of the optimizer, and peak bytes, of one device."""

    micro_seconds: float
    optimizer_seconds: float
    memory_bytes: int
    others: float = 0.0  # share of the CPU that other programs used meanwhile


def measure(config: Config) -> Measured | None:
    """Measure a resolved config's steps on this machine; None if that fails (out of memory, or a step takes too long)."""
    load = OtherLoad(every=0)
    with contextlib.suppress(TypeError):
        found = Measured(**_run_process(config.to_dict(), COMPILE_TIMEOUT if config.compile == "on" else TIMEOUT))
        return dataclasses.replace(found, others=round(load.sample().others, 2))
    return None


def calibrated(config: Config, machine: str, fresh: bool = False) -> Measured | None:
    """`measure`, cached for each model shape on `machine` (a name); `fresh` ignores the cache.

    A CPU's measurement is repeated if other programs use much more or less of it now. A failure is cached too, for FAILURE_SECONDS: it
    may have been another program's, and the next command should not wait for it again.
    """
    key = json.dumps([FORMAT, machine, *(getattr(config, name) for name in FIELDS)])
    cached = {} if fresh else _read_cache().get(key, {})
    with contextlib.suppress(TypeError):
        known = Measured(**cached)
        if config.device != "cpu" or abs(known.others - others_now()) < OTHERS_CHANGED:
            return known
    failed = cached.get("failed")
    if isinstance(failed, int | float) and 0 <= time.time() - failed < FAILURE_SECONDS:
        log("skipped: measuring a few steps, which failed here within the last day; the plan uses estimates")
        return None
    log(f"measuring a few steps of depth {config.depth} on this machine")
    found = measure(config)
    _remember(key, dataclasses.asdict(found) if found else {"failed": time.time()})
    return found


@functools.cache  # --hours resolves some hundred plans
def product_gain(machine: str, kind: str) -> float:
    """Speed of this CPU's bfloat16 or int16 products relative to float32, measured once; 1 if not supported."""
    key = json.dumps([FORMAT, machine, kind])
    found = _read_cache().get(key, {})
    if "gain" not in found:
        found = _run_process({"products": kind}, TIMEOUT)
        if "gain" in found:
            _remember(key, found)
    return float(found.get("gain", 1.0))


def others_now() -> float:
    """The share of the CPU that other programs use now, over OTHERS_SECONDS."""
    load = OtherLoad(every=0)
    time.sleep(OTHERS_SECONDS)
    return load.sample().others


def _run_process(request: dict[str, Any], timeout: float) -> dict[str, Any]:
    """The result of the process below for `request`; {} if it fails, or takes more than `timeout` seconds."""
    command = [sys.executable, "-m", "nanochat.planning.calibrate"]
    try:
        done = subprocess.run(command, input=json.dumps(request), capture_output=True, text=True, timeout=timeout, check=True)
        return _parse_object(done.stdout)
    except (OSError, subprocess.SubprocessError, ValueError):
        return {}


def _cache_path() -> Path:
    return paths.base_dir() / "cache" / FILE


def _read_cache() -> dict[str, dict[str, Any]]:
    """Cached measurements by key; {} if there are none or the file is damaged."""
    try:
        return _parse_object(_cache_path().read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def _parse_object(text: str) -> dict[str, Any]:
    """The JSON object in `text`, {} if it is another value. Raises ValueError if it is not JSON."""
    found = json.loads(text)
    return found if isinstance(found, dict) else {}


def _remember(key: str, value: dict[str, Any]) -> None:
    """Cache a measurement."""
    with contextlib.suppress(OSError):  # a plan needs no disk
        paths.atomic_write_json(_cache_path(), _read_cache() | {key: value})


# ---- the process ------------------------------------------------------------------------------------------------


def _peak_memory(device: str) -> int:
    """Peak bytes of this process since `_reset_peak_memory`."""
    import torch

    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    return _process_memory("VmHWM")


def _process_memory(name: str) -> int:
    """A memory field of /proc/self/status, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


def _reset_peak_memory(device: str) -> int:
    """Reset the peak and return the current bytes."""
    import torch

    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    Path("/proc/self/clear_refs").write_text("5")
    return _process_memory("VmRSS")


def time_training(config: Config) -> Measured:
    """Time some steps of `config`'s model in this process, each with two micro-steps and an optimizer step.

    If other programs leave fewer processors free than `config.threads`, time that number of threads too and return the faster times: a
    run chooses the same way.
    """
    import torch

    from nanochat.train import device

    processors = FreeProcessors()
    device.set_up(config)
    _time_steps(config.replace(depth=1, aspect_ratio=64, max_seq_len=128, vocab_size=512, device_batch_size=1, compile="off"), 0.0)
    before = _reset_peak_memory(config.device)  # torch's own initial memory is not the model's
    times = [_time_steps(config, SECONDS)]
    memory, free = _peak_memory(config.device) - before, processors()
    if config.device == "cpu" and not config.deterministic and free is not None and round(free) < config.threads > 1:
        torch.set_num_threads(max(round(free), 1))
        times.append(_time_steps(config, SECONDS))
    return Measured(*min(times, key=sum), memory)


def _time_steps(config: Config, seconds: float) -> tuple[float, float]:
    """Train on random ids; returns the mean seconds of a micro-step and of the optimizer.

    On one of several devices the optimizer has that one's share of the state and of the work, without the exchange.
    """
    import torch

    from nanochat.distributed.ranks import share_of, single
    from nanochat.model.loss import cross_entropy_sum
    from nanochat.model.optim import LearningRates, MuonAdamW
    from nanochat.model.scaling import gpt_config
    from nanochat.train import device
    from nanochat.train.timeleft import steady_mean

    here = single(config.device)
    shape = (config.device_batch_size, config.max_seq_len)
    model = device.new_model(gpt_config(config), here.device, config)
    optimizer = MuonAdamW(model, LearningRates(*([1e-4] * 5)), shape[0] * shape[1], share_of(here, config.nproc_per_node))
    forward = device.forward_of(model, config)

    def now() -> float:
        if config.device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    micro: list[float] = []
    step: list[float] = []
    began = now()
    while len(step) < MAX_STEPS and (len(step) < MIN_STEPS or now() - began < seconds):
        if len(step) == 1:
            began = now()  # the first step compiles, which may take longer than the whole measurement
        model.operations.start_gradients(model.parameters())
        for _ in range(2):  # the second one adds to existing gradients
            start = now()
            ids = torch.randint(0, config.vocab_size, shape, device=here.device)
            cross_entropy_sum(model, forward(ids), ids).backward()
            micro.append(now() - start)
        start = now()
        model.operations.finish_gradients(model.parameters())
        optimizer.step(lr=0.0, beta=0.9, weight_decay=0.0)
        optimizer.zero_grad()
        step.append(now() - start)
    return steady_mean(micro[2:]), steady_mean(step[1:])  # without the first steps, which include set-up


def time_products(kind: str) -> float:
    """Speed of a layer's product in bfloat16 or int16 relative to float32 on one thread, best of several alternating runs."""
    import torch

    from nanochat.kernels import build as kernels
    from nanochat.kernels.products import product
    from nanochat.train import device

    torch.set_num_threads(1)
    if kind == "int16" and (why := kernels.load_products(kind, device.cache_folder("cpu"))):
        raise OSError(why)
    exact = torch.ones(1024, 256), torch.ones(256, 1024)
    cast = exact if kind == "int16" else (exact[0].bfloat16(), exact[1].bfloat16())
    ways = (lambda: exact[0] @ exact[1]), (lambda: product(*cast, low_precision=True))
    best = [math.inf, math.inf]
    for _ in range(10):
        for i, way in enumerate(ways):
            start = time.perf_counter()
            way()
            best[i] = min(best[i], time.perf_counter() - start)
    return best[0] / best[1]


if __name__ == "__main__":
    request = json.load(sys.stdin)
    if "products" in request:
        print(json.dumps({"gain": time_products(request["products"])}))
    else:
        print(json.dumps(dataclasses.asdict(time_training(Config(**request)))))
