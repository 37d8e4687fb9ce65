"""Some training steps of karpathy/nanochat on the null GPU, as its scripts/base_train.py does them: a request as JSON on stdin, the result
as JSON on stdout's last line.

The request: `depth`, `rows`, `length`, `vocab`, `steps` (3), `micro` (micro-steps of a step, 2) and `window_pattern` ("L"). The package
nanochat is the one that the module's caller has put first on the path (machine.steps). Weights are allocated, not drawn.
"""

import contextlib
import json
import os
import sys
from typing import Any

import torch
import torch.nn.init

from tests.nullgpu.counted import Counted
from tests.nullgpu.traffic import KERNELS, count_kernels

HEAD = 128  # width of a head; a layer's width is a multiple of it, 64 for each layer


def measured(request: dict[str, Any]) -> dict[str, Any]:
    """Memory and counts of the request's steps."""
    from nanochat.gpt import GPT, GPTConfig  # karpathy's

    torch.set_float32_matmul_precision("high")
    torch.backends.cuda.enable_cudnn_sdp(False)
    for name in ("normal_", "uniform_", "zeros_", "constant_"):
        setattr(torch.nn.init, name, lambda tensor, *arguments, **more: tensor)
    rows, length, micro = request["rows"], request["length"], request.get("micro", 2)
    width = -(-64 * request["depth"] // HEAD) * HEAD
    shape = {"n_layer": request["depth"], "n_head": width // HEAD, "n_kv_head": width // HEAD, "n_embd": width}
    with torch.device("meta"):
        pattern = request.get("window_pattern", "L")
        model = GPT(GPTConfig(sequence_len=length, vocab_size=request["vocab"], window_pattern=pattern, **shape))
    model.to_empty(device="cuda")
    model.init_weights()
    optimizer = model.setup_optimizer()
    static = torch.cuda.memory_allocated()
    forward = torch.compile(model, dynamic=False)
    ids = torch.zeros(rows, length, dtype=torch.int64, device="cuda")
    found: list[dict[str, Any]] = []
    for _ in range(request.get("steps", 3)):
        KERNELS.clear()
        with Counted() as computed:
            for _ in range(micro):
                (forward(ids, ids) / micro).backward()
        with Counted() as updated:
            kernels = {name: list(entry) for name, entry in KERNELS.items()}
            optimizer.step()
            model.zero_grad(set_to_none=True)
        found.append({"gradients": computed.entry, "optimizer": updated.entry})
    return {
        "parameters": sum(weight.numel() for weight in model.parameters()),
        "static": static,
        "steps": found,
        "peak": max(one[part]["peak"] for one in found for part in ("gradients", "optimizer")),
        "reserved": max(one[part]["reserved"] for one in found for part in ("gradients", "optimizer")),
        "triton_bytes": sum(size for _, size in kernels.values()),
        "triton": kernels,
    }


def main() -> None:
    """Answer the request."""
    request = json.load(sys.stdin)
    os.environ["PYTORCH_ALLOC_CONF"] = "expandable_segments:True"  # as base_train.py does
    count_kernels()
    with contextlib.redirect_stdout(sys.stderr):
        found = measured(request)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
