"""The shape of an imported Qwen3: its JSON, its parameters, and tied embeddings in training."""

from typing import Any

import pytest
import torch

from nanochat.kernels.operations import RMS_EPS, Operations
from nanochat.model.build import build_model
from nanochat.model.layers import Layer
from nanochat.model.loss import cross_entropy_sum
from nanochat.model.scaling import NORM_EPS, GPTConfig, count_parameters

PLAIN: dict[str, Any] = {"depth": 2, "dim": 64, "n_head": 4, "n_kv_head": 4, "head_dim": 16, "vocab_size": 100, "max_seq_len": 32}
OTHER = PLAIN | {"n_head": 6, "n_kv_head": 2, "mlp_width": 72, "rope_base": 1e6, "norm_eps": 1e-6, "tied": True}


def test_the_json_of_our_own_models_is_as_it_was() -> None:
    parts = {"value_embeddings", "residual_scalars", "smear", "backout", "softcap", "qwen3"}
    for architecture in ("nanochat", "qwen3"):
        gpt = GPTConfig(**PLAIN, architecture=architecture)
        assert gpt.to_dict().keys() == PLAIN.keys() | {"window_pattern"} | parts
        assert GPTConfig.from_dict(gpt.to_dict()) == gpt
    assert NORM_EPS == RMS_EPS


def test_an_imported_shape() -> None:
    gpt = GPTConfig(**OTHER, architecture="qwen3")
    assert GPTConfig.from_dict(gpt.to_dict()) == gpt and gpt.mlp_dim == 72
    model = build_model(gpt)
    assert count_parameters(gpt)["total"] == sum(weight.numel() for weight in model.parameters())
    assert model.head.weight is model.embed.weight and "head.weight" not in dict(model.named_parameters())
    for changes in ({"norm_eps": 0}, {"rope_base": float("nan")}, {"tied": 1}, {"mlp_width": 2**30}, {"n_kv_head": 4}, {"head_dim": 15}):
        with pytest.raises(ValueError):
            GPTConfig.from_dict(gpt.to_dict() | changes)
    with pytest.raises(ValueError, match="impossible"):
        GPTConfig.from_dict(GPTConfig(**PLAIN).to_dict() | {"tied": True})  # not of nanochat's architecture


@pytest.mark.usefixtures("fused_operations")
def test_the_gradient_of_tied_embeddings_is_the_same_by_every_operation() -> None:
    """Two micro-batches, by the CPU's fused operations and by torch's."""
    torch.manual_seed(1)
    ids, targets = torch.randint(0, 100, (2, 3, 20)), torch.randint(0, 100, (2, 3, 20))
    found = []
    for fused in (True, False):
        model = build_model(GPTConfig(**OTHER, architecture="qwen3"))
        with torch.no_grad():
            for weight in model.parameters():
                weight.copy_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(weight.numel())) * 0.2)
        assert model.operations.fused
        if not fused:
            for part in model.modules():
                if isinstance(part, Layer):
                    part.operations = Operations(torch.float32)
        for batch in range(2):
            cross_entropy_sum(model, model(ids[batch]), targets[batch]).backward()
        found.append({name: weight.grad for name, weight in model.named_parameters()})
    for name, grad in found[0].items():
        torch.testing.assert_close(grad, found[1][name], rtol=1e-3, atol=1e-3, msg=name)
    assert found[0]["embed.weight"].abs().sum() > 0
