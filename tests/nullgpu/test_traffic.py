"""What a further micro-step of a step moves, beside its matrix products: weights' gradients are added by the product itself."""

import pytest

from nanochat.config import Config
from nanochat.model.scaling import count_parameters, gpt_config
from tests.nullgpu.machine import steps

SHAPE = {"depth": 2, "head_dim": 64, "max_seq_len": 512, "vocab_size": 2048, "device_batch_size": 8, "total_batch_size": 8192}


@pytest.mark.slow
def test_a_further_micro_step_moves_little_for_each_weight() -> None:
    found = steps("4090", config=SHAPE | {"compile": "on", "num_iterations": 10}, steps=0, traffic=True)
    whole, half = found["traffic"]
    matrices = count_parameters(gpt_config(Config(**found["config"])))["matrices"]
    assert whole["add_products"] == half["add_products"] == pytest.approx(8 * matrices, rel=1e-3), "the sum is read and written once"
    assert whole["add_"] < 1000, "no gradient is added in a pass of its own, but those of single numbers"
    assert whole["kernels"] > half["kernels"] > 0, "compiled kernels are counted too"
