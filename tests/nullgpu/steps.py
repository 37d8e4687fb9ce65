"""Some training steps of a config on the null GPU, and its plan: a request as JSON on stdin, the result as JSON on stdout's last line.

The request: `profile` and `trial`, `config` (its changed fields), `steps` (3), `micro` (micro-steps of a step, 2), `world` (ranks, 1),
`evaluate`, `kernels`: "compile", or "count" for kernels that Inductor writes and nobody compiles, each with Inductor's own estimate of
its bytes, and `traffic`: what one more micro-step of a step moves, of all rows and of half of them.
"""

import contextlib
import json
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from nanochat.config import Config, build_config
from nanochat.distributed import memory
from nanochat.distributed.ranks import Ranks, single
from nanochat.evaluation.bits_per_byte import bits_per_byte
from nanochat.hardware.machine import this_machine
from nanochat.model.gpt import GPT
from nanochat.model.optim import LearningRates, MuonAdamW
from nanochat.model.qwen3 import Qwen3
from nanochat.model.scaling import gpt_config
from nanochat.model.transformer import Transformer
from nanochat.planning.plan import make_plan
from nanochat.train import device
from nanochat.train.batch import StepBatch
from nanochat.train.gradients import accumulate_gradients
from tests.nullgpu.counted import Counted, kernels
from tests.nullgpu.traffic import KERNELS, Traffic, count_kernels


def join(world: int) -> Ranks:
    """Rank 0 of `world`."""
    here = torch.device("cuda", 0)
    if world == 1:
        return single(here)
    dist.init_process_group("nccl", store=dist.HashStore(), rank=0, world_size=world, device_id=here)
    return Ranks(0, 0, world, here)


def more_traffic(steps: Callable[[int], StepBatch], rows: int, model: Transformer, forward: Any, ranks: Ranks) -> dict[str, int]:
    """Bytes by operation that a third micro-step of `rows` adds to a step of two."""
    found = []
    for micro in (1, 2, 3):  # the first one compiles
        with Traffic() if micro > 1 else contextlib.nullcontext() as traffic:
            accumulate_gradients(steps(micro * rows), rows, model, forward, ranks)
        for weight in model.parameters():
            weight.grad = None
        found.append(traffic.bytes if traffic else {})
    return {name: found[2][name] - found[1][name] for name in found[2]}


def measured(request: dict[str, Any]) -> dict[str, Any]:
    """The plan of the request's config, and memory and counts of its steps."""
    changes = {"device": "cuda", "dataset": "climbmix"} | request.get("config", {})
    world = request.get("world", 1)
    changes |= {"nproc_per_node": world}
    config = build_config(request["profile"], request.get("trial", False), changes) if "profile" in request else Config(**changes)
    plan = make_plan(config, this_machine("cuda"))
    config = Config(**plan.config)
    device.set_up(config)
    torch.backends.cuda.enable_cudnn_sdp(False)
    ranks = join(world)
    cap = memory.cap(ranks.device)
    model = device.new_model(gpt_config(config), ranks.device, config)
    optimizer = MuonAdamW(model, LearningRates(), config.total_batch_size, ranks)
    static = torch.cuda.memory_allocated()
    forward = device.forward_of(model, config)
    rows = config.device_batch_size * request.get("micro", 2)

    def ids_of(rows: int) -> np.ndarray:
        return np.random.default_rng(0).integers(0, config.vocab_size, (rows, config.max_seq_len + 1)).astype(np.uint16)

    def batch_of(rows: int) -> StepBatch:
        ids = ids_of(rows)
        return StepBatch(ids[:, :-1], ids[:, 1:], counted=ids[:, 1:].size * world, tokens=ids[:, 1:].size * world)

    batch = batch_of(rows)
    found: list[dict[str, Any]] = []
    before: dict[str, int] = {}
    for step in range(request.get("steps", 3)):
        if step == request.get("steps", 3) - 1:
            KERNELS.clear()
            before = kernels()
        began = time.perf_counter()
        with Counted() as computed:
            accumulate_gradients(batch, config.device_batch_size, model, forward, ranks).tolist()
        with Counted() as updated:
            optimizer.step(lr=1.0, beta=0.9, weight_decay=0.1)
            optimizer.zero_grad()
        found.append({"gradients": computed.entry, "optimizer": updated.entry, "host_seconds": time.perf_counter() - began})
    launched = {name: count - before.get(name, 0) for name, count in kernels().items() if count != before.get(name, 0)}
    traffic = dict(KERNELS)
    entry: dict[str, Any] = {}
    if request.get("evaluate"):
        ids = ids_of(config.device_batch_size + 1)  # a whole batch and a part
        with Counted() as evaluated:
            targets, lengths = ids[:, 1:].astype(np.int64), np.ones(config.vocab_size, np.int64)
            bits_per_byte(model, forward, ids[:, :-1], targets, lengths, config.device_batch_size, ranks)
        entry = evaluated.entry
    sizes = (config.device_batch_size, config.device_batch_size // 2) if request.get("traffic") else ()
    moved = [more_traffic(batch_of, size, model, forward, ranks) for size in sizes]
    return {
        "plan": plan.memory_bytes,
        "rows_at_most": plan.max_device_batch_size,
        "config": plan.config,
        "cap": cap,
        "static": static,
        "steps": found,
        "peak": max((one[part]["peak"] for one in found for part in ("gradients", "optimizer")), default=0),
        "reserved": max((one[part]["reserved"] for one in found for part in ("gradients", "optimizer")), default=0),
        "kernels": launched,
        "triton_bytes": sum(size for _, size in traffic.values()),
        "triton": traffic,
        "evaluation": entry,
        "parameters": sum(weight.numel() for weight in model.parameters()),
        "traffic": moved,
    }


def main() -> None:
    """Answer the request."""
    request = json.load(sys.stdin)
    for kind in (GPT, Qwen3):
        kind.init_weights = lambda self, seed: None  # type: ignore[method-assign]
    if request.get("kernels", "count") == "count":
        count_kernels()
    with contextlib.redirect_stdout(sys.stderr):
        found = measured(request)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
