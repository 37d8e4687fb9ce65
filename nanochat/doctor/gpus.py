"""`doctor --gpus`: ten seconds of matrix products on all GPUs, and an all-reduce between them.

`python -m nanochat.doctor.gpus OUT DEVICE SECONDS` is one of the processes; `check_gpus` starts them and reports an outlier.
"""

import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch

from nanochat.distributed import ranks
from nanochat.distributed.ranks import Ranks
from nanochat.doctor.findings import ERROR, OK, WARNING, Finding
from nanochat.errors import NanochatError

SECONDS = 10.0  # of matrix products
SIZE = {"cuda": 8192, "cpu": 512}  # rows and columns of a matrix
EXCHANGED = {"cuda": 256 << 20, "cpu": 4 << 20}  # bytes of one all-reduce
EXCHANGES = 10
SLOW = 0.9  # fraction of the median below which a GPU is an outlier


def work(here: Ranks, seconds: float) -> float:
    """FLOP/s of matrix products on this rank's device, without the first second (warm-up)."""
    kind = here.device.type
    dtype = _fastest() if kind == "cuda" else torch.float32
    a = torch.randn(SIZE[kind], SIZE[kind], device=here.device, dtype=dtype)
    count, began = 0, time.monotonic()
    warm = min(1.0, seconds / 10)
    while (now := time.monotonic()) - began < warm + seconds:
        if now - began < warm:
            count, since = 0, now
        for _ in range(4):
            a @ a
        synchronize(here)
        count += 4
    return 2 * SIZE[kind] ** 3 * count / (time.monotonic() - since)


def _fastest() -> torch.dtype:
    """The type that this GPU trains in."""
    return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16


def synchronize(here: Ranks) -> None:
    """Wait until the device has finished its work."""
    if here.device.type == "cuda":
        torch.cuda.synchronize(here.device)


def exchange(here: Ranks) -> float:
    """Bytes per second of an all-reduce between all ranks; 0 for a single rank."""
    if here.world_size == 1:
        return 0.0
    tensor = torch.ones(EXCHANGED[here.device.type] // 4, device=here.device)
    here.all_reduce_sum(tensor)
    synchronize(here)
    began = time.monotonic()
    for _ in range(EXCHANGES):
        here.all_reduce_mean(tensor)
    synchronize(here)
    return EXCHANGES * EXCHANGED[here.device.type] / (time.monotonic() - began)


def main(out: str, device: str, seconds: float) -> None:
    """Measure in one process; the main rank writes the results of all."""
    with ranks.join(device) as here:
        rate = work(here, seconds)
        found = here.gather_objects((rate, exchange(here)))
        if here.main:
            Path(out).write_text(json.dumps(found), encoding="utf-8")


def check_gpus(device: str = "cuda", count: int | None = None, seconds: float = SECONDS) -> list[Finding]:
    """Findings on `count` devices (default is all GPUs): a failing or slow device, and the speed of the exchange."""
    count = count or torch.cuda.device_count()
    if not count:
        return [Finding("gpus", OK, "there is no GPU to test")]
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "out.json")
        try:
            code = ranks.launch(["-m", "nanochat.doctor.gpus", str(out), device, str(seconds)], count, restarts=0)
            measured = json.loads(out.read_text(encoding="utf-8")) if code == 0 else []
        except (OSError, ValueError, NanochatError):
            measured = []
    if not measured:
        why, fix = (
            "a GPU or the link between two does not work; see the processes' output above",
            "test each GPU alone, with CUDA_VISIBLE_DEVICES=0",
        )
        return [Finding("gpus", ERROR, f"the test failed on {count} device(s)", why, fix)]
    return judge([rate for rate, _ in measured], min(speed for _, speed in measured))


def judge(rates: list[float], exchanged: float) -> list[Finding]:
    """Findings from the FLOP/s of each device and the bytes per second of the exchange."""
    median = statistics.median(rates)
    found = []
    for index, rate in enumerate(rates):
        what = f"GPU {index}: {rate / 1e12:.3g} TFLOP/s"
        if rate < SLOW * median:
            why = f"the others reach {median / 1e12:.3g}, and every step waits for the slowest"
            fix = (
                "check its cooling, its power limit and other users (nvidia-smi -q -d PERFORMANCE), or leave it out (CUDA_VISIBLE_DEVICES)"
            )
            found.append(Finding("gpus", WARNING, what, why, fix))
        else:
            found.append(Finding("gpus", OK, what))
    if len(rates) > 1:
        found.append(Finding("all-reduce", OK, f"{exchanged / 1e9:.3g} GB/s between {len(rates)} devices"))
    return found


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], float(sys.argv[3]))
