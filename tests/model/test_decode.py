"""The quick way to one more token a row, against the general forward pass."""

from typing import Any

import pytest
import torch

from nanochat.model.attention import KVCache
from nanochat.model.build import build_model
from nanochat.model.decode import Decoder, decoder_for
from nanochat.model.scaling import GPTConfig
from nanochat.model.transformer import Transformer

VOCAB = 100


def random_model(**changes: Any) -> Transformer:
    """Every weight random, so that each part of the model moves the logits."""
    shape: dict[str, Any] = {"depth": 4, "dim": 64, "n_head": 4, "n_kv_head": 4, "head_dim": 16, "vocab_size": VOCAB, "max_seq_len": 600}
    model = build_model(GPTConfig(**shape | changes))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * (0.2 if parameter.dim() > 1 else 0.5))
    return model


def decoder(model: Transformer) -> Decoder:
    made = decoder_for(model)
    assert made is not None
    return made


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"n_kv_head": 2},
        {"window_pattern": "SSSL", "depth": 5},
        {"depth": 1},
        {"architecture": "qwen3"},
        {"architecture": "qwen3", "n_kv_head": 2},
        {"architecture": "qwen3", "window_pattern": "SSSL", "depth": 5},
        # An imported shape; its eps is large, so that leaving it out is seen.
        {
            "architecture": "qwen3",
            "n_head": 6,
            "n_kv_head": 2,
            "head_dim": 24,
            "mlp_width": 72,
            "rope_base": 1e6,
            "norm_eps": 0.1,
            "tied": True,
        },
    ],
)
def test_equals_the_general_pass(changes: dict[str, Any]) -> None:
    model = random_model(**changes)
    lengths = [1, 170, 40]
    ids = torch.randint(0, VOCAB, (3, 200), generator=torch.Generator().manual_seed(2))
    caches = [KVCache(model.config, 4, 250) for _ in range(2)]
    decode = decoder(model)
    with torch.inference_mode():
        for cache in caches:
            counts = torch.tensor(lengths)
            model(ids[:, :170], cache=cache.slots(0, 3), counts=counts)
        for step in range(6):
            places = [length + step for length in lengths]
            tokens = ids[torch.arange(3), torch.tensor(places)]
            expected = model.logits(model(tokens[:, None], cache=caches[0].slots(0, 3)))[:, 0]
            got = decode(tokens.tolist(), places, caches[1].slots(0, 3))
            torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
    for name in ("keys", "values", "lengths", "previous"):
        torch.testing.assert_close(getattr(caches[1], name)[..., :-1, :] if name in ("keys", "values") else getattr(caches[1], name),
                                   getattr(caches[0], name)[..., :-1, :] if name in ("keys", "values") else getattr(caches[0], name),
                                   rtol=1e-4, atol=1e-4)  # fmt: skip


def test_bfloat16_stays_close() -> None:
    model = random_model()
    exact = decoder(model)([5, 7], [0, 0], KVCache(model.config, 2, 9))
    model.use(torch.bfloat16)
    rough = decoder(model)([5, 7], [0, 0], KVCache(model.config, 2, 9, dtype=torch.bfloat16))
    assert rough.dtype == torch.float32
    assert (rough - exact).abs().mean() < 0.1 * exact.abs().mean()
