"""Some training steps of a config on the null GPU, and its plan: a request as JSON on stdin, the result as JSON on stdout's last line.

The request: `profile` and `trial`, `config` (its changed fields), `steps` (3), `micro` (micro-steps of a step, 2), `world` (ranks, 1),
`evaluate`, and `kernels`: "compile", or "count" for kernels that Inductor writes and nobody compiles, each with Inductor's own estimate of
its bytes.
"""

import contextlib
import json
import sys
import time
from collections import defaultdict
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
from nanochat.planning.plan import make_plan
from nanochat.train import device
from nanochat.train.batch import StepBatch
from nanochat.train.gradients import accumulate_gradients
from tests.nullgpu.counted import Counted, kernels

TRAFFIC: dict[str, list[float]] = defaultdict(lambda: [0, 0.0])  # Inductor's kernels: launches and bytes


def count_kernels() -> None:
    """Have Inductor's kernels counted, not compiled."""
    import torch._inductor.config as inductor
    from torch._inductor.runtime.triton_heuristics import CachingAutotuner

    inductor.benchmark_kernel = True  # which makes it write the bytes of each kernel
    inductor.compile_threads = 1
    inductor.force_disable_caches = True

    def launch(self: Any, *arguments: Any, **more: Any) -> None:
        name = self.inductor_meta.get("kernel_name") or self.fn.__name__
        size = self.inductor_meta.get("kernel_num_gb")
        if size is None:
            size = sum(one.numel() * one.element_size() for one in arguments if isinstance(one, torch.Tensor)) / 1e9
        TRAFFIC[name][0] += 1
        TRAFFIC[name][1] += size * 1e9

    CachingAutotuner.run = launch
    CachingAutotuner.precompile = lambda self, *arguments, **more: None


def join(world: int) -> Ranks:
    """Rank 0 of `world`."""
    here = torch.device("cuda", 0)
    if world == 1:
        return single(here)
    dist.init_process_group("nccl", store=dist.HashStore(), rank=0, world_size=world, device_id=here)
    return Ranks(0, 0, world, here)


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
    ids = np.random.default_rng(0).integers(0, config.vocab_size, (rows, config.max_seq_len + 1)).astype(np.uint16)
    batch = StepBatch(ids[:, :-1], ids[:, 1:], counted=ids[:, 1:].size * world, tokens=ids[:, 1:].size * world)
    found: list[dict[str, Any]] = []
    before: dict[str, int] = {}
    for step in range(request.get("steps", 3)):
        if step == request.get("steps", 3) - 1:
            TRAFFIC.clear()
            before = kernels()
        began = time.perf_counter()
        with Counted() as computed:
            accumulate_gradients(batch, config.device_batch_size, model, forward, ranks).tolist()
        with Counted() as updated:
            optimizer.step(lr=1.0, beta=0.9, weight_decay=0.1)
            optimizer.zero_grad()
        found.append({"gradients": computed.entry, "optimizer": updated.entry, "host_seconds": time.perf_counter() - began})
    launched = {name: count - before.get(name, 0) for name, count in kernels().items() if count != before.get(name, 0)}
    traffic = dict(TRAFFIC)
    entry: dict[str, Any] = {}
    if request.get("evaluate"):
        held_out = ids[: config.device_batch_size + 1], np.ones(config.vocab_size, np.int64)  # a whole batch and a part
        with Counted() as evaluated:
            targets = held_out[0][:, 1:].astype(np.int64)
            bits_per_byte(model, forward, held_out[0][:, :-1], targets, held_out[1], config.device_batch_size, ranks)
        entry = evaluated.entry
    return {
        "plan": plan.memory_bytes,
        "rows_at_most": plan.max_device_batch_size,
        "config": plan.config,
        "cap": cap,
        "static": static,
        "steps": found,
        "peak": max(one[part]["peak"] for one in found for part in ("gradients", "optimizer")),
        "reserved": max(one[part]["reserved"] for one in found for part in ("gradients", "optimizer")),
        "kernels": launched,
        "triton_bytes": sum(size for _, size in traffic.values()),
        "triton": traffic,
        "evaluation": entry,
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
