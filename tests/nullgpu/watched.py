"""One `nanochat` command on the null GPU, with what each step, evaluation and sample did: `python -m tests.nullgpu.watched OUT ARGUMENTS`.

The command runs as it is, but for what needs a value that a GPU would have computed: initial weights are not drawn, a step that ran out of
memory is said by the host (the flag would come back as zero), every second rollout is rewarded (no answer is right, and without a
difference there is nothing to learn), and as one of several ranks (NULLGPU_RANKS) the others are not waited for. NULLGPU_TAKEN is a number
of bytes that another program takes before the first step, after the checks.
"""

import contextlib
import ctypes
import itertools
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from nanochat.data.problems import Problem
from nanochat.distributed import ranks
from nanochat.distributed.memory import Attempt
from nanochat.distributed.ranks import Ranks
from nanochat.model.gpt import GPT
from nanochat.model.qwen3 import Qwen3
from nanochat.train.trainer import Trainer
from tests.nullgpu.counted import Counted

ENTRIES: list[dict[str, Any]] = []


def watch(name: str) -> None:
    """Have the Trainer's method `name` counted."""
    method: Callable[..., Any] = getattr(Trainer, name)

    def counted(self: Trainer, *arguments: Any) -> Any:
        if taken := int(os.environ.pop("NULLGPU_TAKEN", "0")):
            assert ctypes.CDLL(os.environ["LD_PRELOAD"]).nullgpu_take(ctypes.c_size_t(taken))
        with Counted() as block:
            result = method(self, *arguments)
        ENTRIES.append({"kind": name, "stage": self.stage.name, "step": self.done, "rows": self.rows} | block.entry)
        return result

    setattr(Trainer, name, counted)


def tell_failures() -> None:
    """Have the flag that ranks agree on come from the host: the newest Attempt's failure is the last of a step's six numbers."""
    leave, add = Attempt.__exit__, Ranks.all_reduce_sum
    failed = [False]

    def told(self: Attempt, *error: Any) -> bool:
        failed[0] = leave(self, *error)
        return failed[0]

    def summed(self: Ranks, tensor: Tensor) -> Tensor:
        result = add(self, tensor)
        if tuple(tensor.shape) != (6,):
            return result
        values = result.cpu()  # the copy that the step makes, which is counted
        values[-1] = float(failed[0])
        return values

    Attempt.__exit__ = told  # type: ignore[method-assign]
    Ranks.all_reduce_sum = summed  # type: ignore[method-assign]


def reward_alternately() -> None:
    """Have every second answer be right."""
    asked = itertools.count()
    Problem.reward = lambda self, answer: float(next(asked) % 2)  # type: ignore[method-assign]


def first_of(world: int) -> None:
    """Be rank 0 of `world`: NCCL's stub answers for the others."""

    @contextlib.contextmanager
    def join(device: str) -> Iterator[Ranks]:
        chosen = torch.device(device, 0)
        torch.cuda.set_device(chosen)
        dist.init_process_group("nccl", store=dist.HashStore(), rank=0, world_size=world, device_id=chosen)
        yield Ranks(0, 0, world, chosen)

    os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE=str(world))
    ranks.join = join
    Ranks.gather_objects = lambda self, value: [json.loads(json.dumps(value))] * world  # type: ignore[method-assign]


def main(out: str, *arguments: str) -> None:
    """Run the command and write the entries, whatever its end."""
    from nanochat.cli.app import main as command

    for model in (GPT, Qwen3):
        model.init_weights = lambda self, seed: None  # type: ignore[method-assign]
    torch.backends.cuda.enable_cudnn_sdp(False)  # cuDNN plans its attention with a real GPU; flash attention keeps as much memory
    for name in ("step", "evaluate", "sample"):
        watch(name)
    tell_failures()
    reward_alternately()
    if (world := int(os.environ.get("NULLGPU_RANKS", "1"))) > 1:
        first_of(world)
    sys.argv = ["nanochat", *arguments]
    try:
        command()
    finally:
        Path(out).write_text(json.dumps(ENTRIES), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
