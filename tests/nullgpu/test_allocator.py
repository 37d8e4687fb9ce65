"""The memory that torch's allocator takes on a GPU: segments that expand, without virtual memory too, and the share of one of several."""

import json

import pytest

from nanochat.config import Config
from nanochat.model.scaling import gpt_config
from nanochat.planning.memory import memory_bytes
from tests.nullgpu.machine import run, steps

SET_UP = """
import json, sys, torch
from nanochat.config import Config
from nanochat.distributed import memory
from nanochat.train import device
device.set_up(Config(device="cuda", threads=1))
cap = memory.cap(torch.device("cuda", 0))
held = torch.empty(1 << 20, device="cuda")
with memory.Attempt(held.device) as attempt:
    torch.empty(cap, dtype=torch.uint8, device="cuda")
print(json.dumps([[segment["is_expandable"] for segment in torch.cuda.memory_snapshot()], attempt.failed]))
"""


@pytest.mark.long
@pytest.mark.parametrize(
    ("variables", "expands", "said"),
    [
        ({}, True, False),
        ({"NULLGPU_VIRTUAL_MEMORY": "0"}, False, True),  # as some drivers of WSL2
        ({"PYTORCH_ALLOC_CONF": "expandable_segments:False"}, False, False),
    ],
)
def test_segments_expand_where_the_driver_can(variables: dict[str, str], expands: bool, said: bool) -> None:
    """The cap holds either way, and torch's warning about NVLink, which nobody asked for, is not seen."""
    done = run("4050", "-c", SET_UP, **variables)
    assert done.returncode == 0, done.stderr
    segments, capped = json.loads(done.stdout)
    assert set(segments) == {expands} and capped
    assert ("skipped: expandable segments" in done.stderr) == said
    assert "Warning" not in done.stderr


@pytest.mark.long
def test_reserved_memory_is_hardly_more_than_allocated() -> None:
    shape = {"depth": 6, "head_dim": 64, "device_batch_size": 4, "max_seq_len": 512, "compile": "off", "total_batch_size": 4096}
    found = steps("4090", config=shape | {"vocab_size": 8192})
    assert found["peak"] <= found["reserved"] <= 1.08 * found["peak"]


CALIBRATED = """
import json, sys
from nanochat.config import Config
from nanochat.planning import calibrate
calibrate.MAX_STEPS = 2
shape = dict(depth=4, head_dim=64, vocab_size=8192, max_seq_len=256, device_batch_size=1, total_batch_size=2048, num_iterations=1)
config = Config(device="cuda", dtype="bfloat16", compile="off", threads=1, **shape)
print(json.dumps([calibrate.time_training(config.replace(nproc_per_node=ranks)).memory_bytes for ranks in (1, 8)]))
"""


@pytest.mark.long
def test_a_calibration_for_several_devices_has_one_devices_share() -> None:
    """Of eight ranks each has an eighth of the optimizer's state, which one device alone could not hold for the largest profile."""
    done = run("4090", "-c", CALIBRATED)
    assert done.returncode == 0, done.stderr
    one, eight = json.loads(done.stdout)
    shape = gpt_config(Config(depth=4, head_dim=64, vocab_size=8192, max_seq_len=256))
    planned = [memory_bytes(shape, 1, compiled=False, processes=ranks)["optimizer"] for ranks in (1, 8)]
    assert one - eight == pytest.approx(planned[0] - planned[1], rel=0.1)
