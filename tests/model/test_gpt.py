"""The model: its size, its first loss, that it cannot see ahead, and that decoding with a cache is the same function."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from nanochat.config import Config
from nanochat.model.attention import KVCache
from nanochat.model.build import allocate_model, build_model
from nanochat.model.loss import cross_entropy_sum
from nanochat.model.scaling import GPTConfig, gpt_config
from nanochat.model.transformer import Transformer

VOCAB = 70
CONTEXT = 288  # the smallest round context whose short window (128) is shorter than itself by more than one block

SHAPES: dict[str, dict[str, Any]] = {
    "nanochat": {},
    "qwen3": {"architecture": "qwen3"},
    "windows": {"window_pattern": "SSSL"},
    "qwen3 windows": {"architecture": "qwen3", "window_pattern": "SL"},
    "qwen3 gqa": {"architecture": "qwen3", "n_kv_head": 1},
    "gqa": {"n_kv_head": 1},
    "gqa windows": {"n_kv_head": 2, "n_head": 4, "head_dim": 8, "window_pattern": "SSSL"},
    "one layer": {"depth": 1},
}


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def config(**changes: Any) -> GPTConfig:
    shape = {"depth": 4, "dim": 32, "n_head": 2, "n_kv_head": 2, "head_dim": 16, "vocab_size": VOCAB, "max_seq_len": CONTEXT}
    return GPTConfig(**shape | changes)


def random_model(**changes: Any) -> Transformer:
    """A tiny model whose every weight is random, so that each part of it moves the logits."""
    model = build_model(config(**changes))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(torch.randn(weight.shape, generator=generator) * (0.3 if weight.dim() > 1 else 0.7))
    return model


def tokens(rows: int, length: int, seed: int = 0) -> Tensor:
    return torch.randint(0, VOCAB, (rows, length), generator=torch.Generator().manual_seed(seed))


@torch.inference_mode()
def full(model: Transformer, ids: Tensor) -> Tensor:
    """The reference: the logits (B, T, V) of one pass over everything."""
    return model.logits(model(ids))


@pytest.mark.parametrize(
    ("depth", "total", "scaled"),
    [(4, 36.7, 11.5), (8, 125.8, 41.9), (12, 286.3, 110.1), (20, 896.5, 435.0), (26, 1682.0, 918.0), (32, 2819.0, 1678.0)],
)
def test_parameters_of_the_depth_dial(depth: int, total: float, scaled: float) -> None:
    """Millions of parameters, all of them and those that decide the token count, against the published figures."""
    model = allocate_model(gpt_config(Config(depth=depth, vocab_size=32768)), "meta")
    sizes = {name: weight.numel() / 1e6 for name, weight in model.named_parameters()}
    assert sum(sizes.values()) == pytest.approx(total, rel=2e-3)
    assert sum(size for name, size in sizes.items() if name.startswith(("blocks", "head"))) == pytest.approx(scaled, rel=3e-3)


def test_the_first_loss_is_ln_v() -> None:
    for vocab in (VOCAB, 128, 4000):  # also where the head has padded rows
        model = build_model(config(vocab_size=vocab, max_seq_len=64))
        ids = torch.randint(0, vocab, (4, 65), generator=torch.Generator().manual_seed(3))
        loss = cross_entropy_sum(model, model(ids[:, :-1]), ids[:, 1:]) / ids[:, 1:].numel()
        assert loss.item() == pytest.approx(math.log(vocab), abs=2e-3)


def test_weights_follow_the_seed_alone() -> None:
    first, again, other = (build_model(config(), seed=seed).state_dict() for seed in (5, 5, 6))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["embed.weight"], other["embed.weight"])


def test_new_weights_have_the_recipes_spread() -> None:
    model = build_model(config(dim=256, n_head=2, n_kv_head=2, head_dim=128, vocab_size=512))
    spread = {name: weight.std().item() for name, weight in model.named_parameters() if weight.dim() == 2}
    assert spread["embed.weight"] == pytest.approx(0.8, rel=0.02)
    assert spread["head.weight"] == pytest.approx(0.001, rel=0.02)
    assert spread["value_embeds.3.weight"] == pytest.approx(256**-0.5, rel=0.02)
    assert spread["blocks.0.attn.q.weight"] == pytest.approx(256**-0.5, rel=0.02)
    assert spread["blocks.2.mlp.fc.weight"] == pytest.approx(0.4 * 256**-0.5, rel=0.02)
    assert spread["blocks.1.attn.o.weight"] == spread["blocks.1.mlp.proj.weight"] == 0


@pytest.mark.parametrize("shape", SHAPES)
def test_a_later_token_never_changes_an_earlier_logit(shape: str) -> None:
    model = random_model(**SHAPES[shape])
    ids = tokens(1, CONTEXT)
    before = full(model, ids)
    for place in (1, 127, 128, 200, CONTEXT - 1):
        changed = ids.clone()
        changed[0, place:] = (changed[0, place:] + 1) % VOCAB
        after = full(model, changed)
        assert torch.equal(before[:, :place], after[:, :place])
        assert not torch.allclose(before[:, place], after[:, place])


def test_a_short_window_forgets() -> None:
    """One layer that is not the last sees 128 tokens; with the smear and the last layer's whole context taken away, no more."""
    model = random_model(depth=2, window_pattern="SL")
    model.get_parameter("smear_lambda").data.zero_()
    for block in model.blocks:
        block.attn.window = 128  # type: ignore[union-attr]
    ids = tokens(1, CONTEXT)
    changed = ids.clone()
    changed[0, 0] = (changed[0, 0] + 1) % VOCAB
    same = (full(model, ids) == full(model, changed)).all(-1)[0]
    assert same[2 * 127 + 1 :].all()  # two layers of 128 tokens, each of them counting the position itself
    assert not same[: 2 * 127 + 1].any()


@pytest.mark.parametrize("shape", SHAPES)
def test_cached_decoding_equals_the_full_pass(shape: str) -> None:
    """A prompt in one piece, then a second piece, then token by token."""
    model = random_model(**SHAPES[shape])
    ids = tokens(2, CONTEXT)
    cache = KVCache(model.config, slots=2, length=CONTEXT)
    pieces = [ids[:, :150], ids[:, 150:270], *ids[:, 270:].split(1, dim=1)]
    with torch.inference_mode():
        logits = torch.cat([model.logits(model(piece, cache=cache)) for piece in pieces], dim=1)
    torch.testing.assert_close(logits, full(model, ids), rtol=1e-4, atol=1e-4)
    assert cache.lengths.tolist() == [CONTEXT, CONTEXT]


@pytest.mark.parametrize("shape", ["nanochat", "gqa windows"])
@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_ragged_batches_with_counts_equal_the_full_pass(shape: str, data: st.DataObject) -> None:
    """Right-padded rows of any lengths, again and again, into slots of which some run full; `keep` drops and reorders slots."""
    model = random_model(**SHAPES[shape])
    slots, room = 3, data.draw(st.sampled_from([40, 200]))
    ids = tokens(slots, room)
    expected = full(model, ids)
    cache = KVCache(model.config, slots, room)
    rows = list(range(slots))
    done = [0] * slots
    for _ in range(4):
        counts = [data.draw(st.integers(0, room - done[row])) for row in rows]
        width = max(1, *counts) + data.draw(st.sampled_from([0, 1, 150]))
        piece = torch.full((len(rows), width), VOCAB - 1)
        for place, (row, count) in enumerate(zip(rows, counts, strict=True)):
            piece[place, :count] = ids[row, done[row] : done[row] + count]
        with torch.inference_mode():
            logits = model.logits(model(piece, cache=cache, counts=torch.tensor(counts)))
        for place, (row, count) in enumerate(zip(rows, counts, strict=True)):
            torch.testing.assert_close(logits[place, :count], expected[row, done[row] : done[row] + count], rtol=1e-4, atol=1e-4)
            done[row] += count
        assert cache.lengths.tolist() == [done[row] for row in rows]
        if len(rows) > 1 and data.draw(st.booleans()):
            one, other = data.draw(st.permutations(range(len(rows))))[:2]
            cache.swap(one, other, room)
            rows[one], rows[other] = rows[other], rows[one]
            last = data.draw(st.integers(1, len(rows)))
            cache, rows = cache.slots(0, last), rows[:last]


def test_a_slots_view_writes_into_the_cache() -> None:
    """As a scheduler does: prompts of different lengths filled in slot by slot, then all slots decoded together."""
    model = random_model(window_pattern="SSSL")
    ids, lengths = tokens(3, 200), [170, 1, 140]
    expected = full(model, ids)
    cache = KVCache(model.config, slots=3, length=200)
    with torch.inference_mode():
        for row in (2, 0, 1):
            hidden = model(ids[row : row + 1, : lengths[row]], cache=cache.slots(row, row + 1))
            torch.testing.assert_close(model.logits(hidden[0, -1]), expected[row, lengths[row] - 1], rtol=1e-4, atol=1e-4)
        for step in range(5):
            places = torch.tensor(lengths) + step
            logits = model.logits(model(ids[torch.arange(3), places][:, None], cache=cache))[:, 0]
            torch.testing.assert_close(logits, expected[torch.arange(3), places], rtol=1e-4, atol=1e-4)


def test_a_used_slot_can_be_used_again() -> None:
    model = random_model()
    cache = KVCache(model.config, slots=1, length=64)
    with torch.inference_mode():
        model(tokens(1, 60, seed=9), cache=cache)
        cache.lengths.zero_()
        cache.previous.zero_()
        ids = tokens(1, 30)
        torch.testing.assert_close(model.logits(model(ids, cache=cache)), full(model, ids), rtol=1e-4, atol=1e-4)


def test_bfloat16_stays_close() -> None:
    model = random_model()
    ids = tokens(2, 64)
    exact = full(model, ids)
    model.use(torch.bfloat16)
    rough = full(model, ids)
    assert rough.dtype == torch.float32
    assert (rough - exact).abs().mean() < 0.1 * exact.abs().mean()
