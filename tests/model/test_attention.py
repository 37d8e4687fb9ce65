"""Attention against a slow reference with a dense mask, and the rotary positions."""

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from nanochat.kernels.operations import Operations, rotate
from nanochat.model.attention import Append, KVCache, causal_attention
from nanochat.model.layers import rotary_table
from nanochat.model.scaling import GPTConfig

torch.set_num_threads(1)
OPERATIONS = Operations(torch.float32)


def dense_attention(q: Tensor, k: Tensor, v: Tensor, window: int) -> Tensor:
    """The definition, head by head and in float64: q (B, T, H, K), k and v (B, T, G, K) -> (B, T, H, K)."""
    out = torch.zeros_like(q)
    length, group = q.size(1), q.size(2) // k.size(2)
    behind = torch.arange(length)[:, None] - torch.arange(length)
    seen = (behind >= 0) & (behind < window)
    for head in range(q.size(2)):
        keys, values = k[:, :, head // group], v[:, :, head // group]  # (B, T, K)
        scores = q[:, :, head] @ keys.mT / q.size(-1) ** 0.5
        out[:, :, head] = scores.masked_fill(~seen, -torch.inf).softmax(-1) @ values
    return out


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64, requires_grad=True)


@settings(max_examples=40, deadline=None)
@given(length=st.integers(1, 40), window=st.integers(1, 45), heads=st.sampled_from([(1, 1), (4, 2), (3, 1)]), rows=st.integers(1, 3))
@example(length=32, window=8, heads=(2, 2), rows=2)
@example(length=33, window=8, heads=(2, 1), rows=2)
@example(length=9, window=8, heads=(1, 1), rows=1)
def test_windows_equal_a_dense_mask(length: int, window: int, heads: tuple[int, int], rows: int) -> None:
    """Forward and backward; where the window is no shorter than the row it is plain causal attention."""
    q = random(rows, length, heads[0], 4, seed=1)
    k, v = random(rows, length, heads[1], 4, seed=2), random(rows, length, heads[1], 4, seed=3)
    fast, slow = causal_attention(OPERATIONS, q, k, v, window), dense_attention(q, k, v, window)
    torch.testing.assert_close(fast, slow)
    upstream = torch.randn(fast.shape, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    for one, other in zip(torch.autograd.grad(fast, (q, k, v), upstream), torch.autograd.grad(slow, (q, k, v), upstream), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.long
def test_the_compiled_backward_pass_in_bfloat16() -> None:
    """It has products of its own there: as near to the definition as bfloat16's 8 bits let it."""
    q, k, v = (random(2, 40, 3, 16, seed=seed) for seed in (1, 2, 3))
    wanted, rough = dense_attention(q, k, v, 40), [x.detach().bfloat16().requires_grad_() for x in (q, k, v)]
    found = torch.compile(causal_attention, dynamic=False)(OPERATIONS, *rough, 40)
    upstream = random(*wanted.shape, seed=4).detach()
    pairs = zip(torch.autograd.grad(found, rough, upstream.bfloat16()), torch.autograd.grad(wanted, (q, k, v), upstream), strict=True)
    for one, other in [(found, wanted), *pairs]:
        assert (one.double() - other).norm() < 0.01 * other.norm()


def test_rotation_keeps_lengths_and_sees_distances_alone() -> None:
    cos, sin = rotary_table(50, 16)
    q, k = (torch.randn(16, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2))
    turned_q, turned_k = (rotate(x.expand(1, 50, 1, 16), cos, sin)[0, :, 0] for x in (q, k))  # (50, 16)
    torch.testing.assert_close(turned_q.norm(dim=-1), q.norm().expand(50))
    torch.testing.assert_close(turned_q[0], q)
    products = turned_q @ turned_k.T
    for distance in (-7, 0, 3):
        diagonal = products.diagonal(distance)
        torch.testing.assert_close(diagonal, diagonal[:1].expand(len(diagonal)), rtol=1e-4, atol=1e-4)


def test_rms_norm() -> None:
    x = torch.randn(3, 64)
    torch.testing.assert_close(OPERATIONS.rms_norm(x), x / x.square().mean(-1, keepdim=True).sqrt())
    assert torch.equal(OPERATIONS.rms_norm(torch.zeros(2, 8)), torch.zeros(2, 8))


@pytest.mark.parametrize(("dtype", "error"), [(torch.float32, 1e-6), (torch.bfloat16, 0.005)])
def test_the_gradient_of_rms_norm(dtype: torch.dtype, error: float) -> None:
    exact, upstream = random(3, 64, seed=1), random(3, 64, seed=2).detach().to(dtype)
    x = exact.detach().to(dtype).requires_grad_()
    (found,) = torch.autograd.grad(OPERATIONS.rms_norm(x), x, upstream)
    wanted = torch.autograd.grad(exact / exact.square().mean(-1, keepdim=True).sqrt(), exact, upstream.double())[0]
    assert found.dtype == dtype
    assert (found.double() - wanted).norm() < error * wanted.norm()


def test_padding_far_beyond_the_cache_stays_finite() -> None:
    """A short row beside a long one in a nearly full cache: its padding lies past the end, by more than a window."""
    config = GPTConfig(depth=1, dim=4, n_head=1, n_kv_head=1, head_dim=4, vocab_size=8, max_seq_len=32)
    cache = KVCache(config, slots=2, length=32)
    cache.lengths.copy_(torch.tensor([0, 30]))
    append = Append(cache, tokens=30)
    q, k, v = (torch.randn(2, 30, 1, 4) for _ in range(3))
    assert append.mask(8).any(-1).all()  # every query, real or padding, sees at least one key
    assert append.attend(0, q, k, v, window=8).isfinite().all()
