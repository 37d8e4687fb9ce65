"""The depth dial against the published table, and its arithmetic against the model itself."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanochat.config import Config
from nanochat.model import scaling
from nanochat.model.scaling import GPTConfig, gpt_config


def shape(depth: int, pattern: str = "L", **more: object) -> GPTConfig:
    return gpt_config(Config(depth=depth, window_pattern=pattern, vocab_size=32768, **more))  # type: ignore[arg-type]


# depth, total M, scaling M, tokens B at 12:1, log2(batch), steps, MFLOP a token with SSSL, with L, operations, weight decay
TABLE = [
    (4, 36.7, 11.5, 0.14, 18, 528, 80, 94, 1.1e16, 1.89),
    (8, 125.8, 41.9, 0.50, 18, 1920, 296, 352, 1.5e17, 0.52),
    (12, 286.3, 110.1, 1.32, 19, 2520, 760, 887, 1.0e18, 0.28),
    (20, 896.5, 435, 5.2, 20, 4980, 2886, 3240, 1.5e19, 0.10),
    (26, 1682, 918, 11.0, 20, 10510, 5991, 6574, 6.6e19, 0.048),
    (32, 2819, 1678, 20.1, 21, 9600, 10771, 11677, 2.2e20, 0.037),
]


@pytest.mark.parametrize("row", TABLE, ids=lambda row: f"d{row[0]}")
def test_the_published_table_is_reproduced(row: tuple[float, ...]) -> None:
    depth, total, scaled, tokens, batch, steps, windowed, whole, operations, decay = row
    gpt = shape(int(depth))
    wanted = scaling.target_tokens(gpt, 12)
    chosen = scaling.total_batch_rule(wanted)
    per_token = scaling.flops_per_token(shape(int(depth), "SSSL"))
    assert scaling.count_parameters(gpt)["total"] / 1e6 == pytest.approx(total, rel=2e-3)
    assert scaling.scaling_parameters(gpt) / 1e6 == pytest.approx(scaled, rel=3e-3)
    assert wanted / 1e9 == pytest.approx(tokens, rel=0.02)
    assert chosen == 2**batch
    assert scaling.steps_rule(wanted, chosen) == pytest.approx(steps, rel=2e-3)
    assert per_token / 1e6 == pytest.approx(windowed, rel=5e-3)
    assert scaling.flops_per_token(gpt) / 1e6 == pytest.approx(whole, rel=5e-3)
    assert per_token * wanted == pytest.approx(operations, rel=0.05)
    assert scaling.weight_decay_rule(chosen, wanted) == pytest.approx(decay, rel=0.05)


@pytest.mark.parametrize("architecture", ["nanochat", "portable"])
@pytest.mark.parametrize("depth", [1, 4, 5])
def test_counts_equal_the_models(architecture: str, depth: int) -> None:
    pytest.importorskip("torch")
    from nanochat.model.build import allocate_model

    gpt = gpt_config(Config(depth=depth, aspect_ratio=32, head_dim=32, vocab_size=300, architecture=architecture))
    model = allocate_model(gpt, "meta")
    parts = scaling.count_parameters(gpt)
    gains = sum(weight.numel() for name, weight in model.named_parameters() if name.startswith("blocks.") and name.endswith(".gain"))

    def size(*prefixes: str) -> int:
        return sum(weight.numel() for name, weight in model.named_parameters() if name.startswith(prefixes))

    assert parts["total"] == sum(weight.numel() for weight in model.parameters())
    assert (parts["embedding"], parts["head"]) == (size("embed."), size("head."))
    assert (parts["value_embeddings"], parts["matrices"]) == (size("value_embeds."), size("blocks.") - gains)


def test_windows_and_value_embeddings_of_the_layers() -> None:
    gpt = shape(6, "SSSL")
    assert [gpt.window(layer) for layer in range(6)] == [512, 512, 512, 2048, 512, 2048]  # the last layer sees everything
    assert [gpt.has_value_embedding(layer) for layer in range(6)] == [False, True] * 3
    assert [shape(5).has_value_embedding(layer) for layer in range(5)] == [True, False, True, False, True]
    assert gpt_config(Config(depth=2, vocab_size=300, max_seq_len=300, window_pattern="sl")).window(0) == 128
    assert gpt_config(Config(depth=2, vocab_size=300, max_seq_len=64, window_pattern="SL")).window(0) == 64


def test_width_is_whole_heads_and_vocabulary_is_padded() -> None:
    gpt = gpt_config(Config(depth=3, vocab_size=300))
    assert (gpt.dim, gpt.n_head, gpt.padded_vocab) == (256, 2, 320)


def test_a_shape_survives_its_dictionary() -> None:
    for architecture in ("nanochat", "portable"):
        gpt = shape(4, "SSSL", architecture=architecture)
        assert GPTConfig.from_dict(gpt.to_dict()) == gpt
    with pytest.raises(TypeError):
        GPTConfig.from_dict(gpt.to_dict() | {"colour": "red"})
    with pytest.raises(ValueError, match="unknown architecture"):
        GPTConfig.from_dict(gpt.to_dict() | {"smear": True})


def test_a_checkpoints_names_of_the_parts() -> None:
    """They are on users' disks; the oldest checkpoints do not name qwen3."""
    written = shape(4).to_dict()
    assert list(written)[8:] == ["value_embeddings", "residual_scalars", "smear", "backout", "softcap", "qwen3"]
    assert (written["smear"], written["softcap"], written["qwen3"]) == (True, 15.0, False)
    assert GPTConfig.from_dict({name: value for name, value in written.items() if name != "qwen3"}) == shape(4)
    assert shape(4, architecture="portable").to_dict() == written | {
        **dict.fromkeys(("value_embeddings", "residual_scalars", "smear", "backout"), False),
        "softcap": 0.0,
        "qwen3": True,
    }


def test_learning_rate_scales_are_one_at_the_reference() -> None:
    assert scaling.batch_lr_scale(2**19) == scaling.width_lr_scale(768) == 1
    assert scaling.batch_lr_scale(2**17) == 0.5
    assert scaling.width_lr_scale(192) == 2


@given(st.floats(1e3, 1e12), st.integers(1, 64), st.integers(64, 4096), st.integers(1, 8))
def test_a_rules_batch_can_be_dealt(tokens: float, rows: int, context: int, processes: int) -> None:
    group = rows * context * processes
    batch = scaling.total_batch_rule(tokens, group)
    assert batch >= group
    assert batch % group == 0
    power = scaling.total_batch_rule(tokens)
    assert power == 2 ** round(math.log2(power))
    assert tokens / power >= min(scaling.MINIMUM_STEPS, tokens) * 0.999
    assert 0 < scaling.weight_decay_rule(batch, tokens) <= 2
