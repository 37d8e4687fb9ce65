"""Causal self-attention over whole rows or with the KV cache, shared by the architectures.

Shapes: B rows, T positions, S cached positions, H query heads, G key/value heads, K width of a head, D model width.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from nanochat.kernels.operations import Operations
from nanochat.model.layers import Layer, Linear
from nanochat.model.scaling import GPTConfig


class KVCache:
    """Keys and values of all layers for a fixed number of slots, each with its own length.

    `keys`, `values`: (layers, slots, G, length + 1, K); padding is written to the last position.
    `lengths` (slots,) are the tokens in each slot. `previous` (slots, D) is the last token's embedding, which the smear needs.
    """

    def __init__(self, config: GPTConfig, slots: int, length: int, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32):
        shape = (config.depth, slots, config.n_kv_head, length + 1, config.head_dim)
        self.keys = torch.zeros(shape, device=device, dtype=dtype)
        self.values = torch.zeros(shape, device=device, dtype=dtype)
        self.lengths = torch.zeros(slots, device=device, dtype=torch.int64)
        self.previous = torch.zeros(slots, config.dim, device=device, dtype=dtype)
        self.length = length

    def slots(self, first: int, last: int) -> "KVCache":
        """A cache that is a view of the slots from `first` to before `last`."""
        view = object.__new__(KVCache)
        part = slice(first, last)
        view.keys, view.values, view.length = self.keys[:, part], self.values[:, part], self.length
        view.lengths, view.previous = self.lengths[part], self.previous[part]
        return view

    def swap(self, a: int, b: int, positions: int) -> None:
        """Exchange the first `positions` positions of slots `a` and `b`."""
        keys, values = (x[:, :, :, :positions].transpose(0, 1) for x in (self.keys, self.values))
        for tensor in (keys, values, self.lengths, self.previous):
            held = tensor[a].clone()
            tensor[a] = tensor[b]  # without lists of indices, for whose copy to a GPU the host would wait
            tensor[b] = held


class Append:
    """The positions of a forward pass in a cache: where its B x T new tokens are stored, and the keys that each of them attends to."""

    def __init__(self, cache: KVCache, tokens: int):
        self.cache = cache
        device = cache.lengths.device
        positions = cache.lengths[:, None] + torch.arange(tokens, device=device)
        self.positions = positions.clamp(max=cache.length)  # (B, T); padding beyond the cache is written to the scratch position
        self.span = min(int(cache.lengths.max()) + tokens, cache.length + 1)
        self.rows = torch.arange(len(cache.lengths), device=device)[:, None]
        self.key_positions = torch.arange(self.span, device=device)
        self.masks: dict[int, Tensor] = {}

    def mask(self, window: int) -> Tensor:
        """(B, 1, T, S) bool: a query attends to at most `window` keys, up to its own position."""
        if window not in self.masks:
            behind = self.positions[:, None, :, None] - self.key_positions
            self.masks[window] = (behind >= 0) & (behind < window)
        return self.masks[window]

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, window: int) -> Tensor:
        """Store k, v (B, T, G, K) and attend with q (B, T, H, K) to all tokens in the slots -> (B, T, H, K)."""
        keys, values = self.cache.keys[layer], self.cache.values[layer]  # (B, G, length + 1, K)
        keys[self.rows, :, self.positions] = k.to(keys.dtype)
        values[self.rows, :, self.positions] = v.to(values.dtype)
        out = F.scaled_dot_product_attention(
            q.transpose(1, 2),
            keys[:, :, : self.span].to(q.dtype),
            values[:, :, : self.span].to(q.dtype),
            attn_mask=self.mask(window),
            enable_gqa=q.size(2) != k.size(2),
        )
        return out.transpose(1, 2)


def causal_attention(operations: Operations, q: Tensor, k: Tensor, v: Tensor, window: int) -> Tensor:
    """Causal attention over the last `window` positions: q (B, T, H, K), k and v (B, T, G, K) -> (B, T, H, K).

    If the window is shorter than the row, the row is split into blocks of `window` queries that attend to their own block of keys and
    the one before it. This is exact, and unlike a dense mask it computes no scores outside of these blocks.
    """
    q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)  # (B, H, T, K)
    length = q.size(2)
    if window >= length:
        return operations.causal_attention(q, k, v).transpose(1, 2)
    gqa = q.size(1) != k.size(1)
    blocks = -(-length // window)
    padding = blocks * window - length
    q = F.pad(q, (0, 0, 0, padding)).unflatten(2, (blocks, window)).transpose(1, 2).flatten(0, 1)  # (B * blocks, H, W, K)
    k, v = (
        F.pad(x, (0, 0, window, padding)).unfold(2, 2 * window, window).movedim(-1, -2).transpose(1, 2).flatten(0, 1) for x in (k, v)
    )  # (B * blocks, G, 2W, K): the block before, then the block itself
    query = torch.arange(window, device=q.device)[:, None] + window
    behind = query - torch.arange(2 * window, device=q.device)
    mask = ((behind >= 0) & (behind < window)).expand(blocks, 1, window, 2 * window).clone()
    mask[0, :, :, :window] = False  # before the first block there is only padding
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask.repeat(q.size(0) // blocks, 1, 1, 1), enable_gqa=gqa)
    return out.unflatten(0, (-1, blocks)).transpose(1, 2).flatten(2, 3)[:, :, :length].transpose(1, 2)


class Attention(Layer):
    """Multi-head attention and its projections; the architecture decides how q and k are normalised."""

    def __init__(self, config: GPTConfig, layer: int):
        super().__init__()
        self.layer, self.head_dim = layer, config.head_dim
        self.window = config.window(layer)
        width, kv_width = config.n_head * config.head_dim, config.n_kv_head * config.head_dim
        self.q = Linear(config.dim, width)
        self.k = Linear(config.dim, kv_width)
        self.v = Linear(config.dim, kv_width)
        self.o = Linear(width, config.dim)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x (B, T, D) -> q (B, T, H, K), k and v (B, T, G, K)."""
        q, k, v = self.operations.linear(x, self.q.weight, self.k.weight, self.v.weight)
        return self.heads(q), self.heads(k), self.heads(v)

    def heads(self, x: Tensor) -> Tensor:
        """x (B, T, H * K) -> (B, T, H, K)."""
        return x.unflatten(-1, (-1, self.head_dim))

    def attend(self, q: Tensor, k: Tensor, v: Tensor, append: Append | None) -> Tensor:
        """q (B, T, H, K), k and v (B, T, G, K), stored in the cache if there is one -> (B, T, D)."""
        if append is not None:
            return self.o(append.attend(self.layer, q, k, v, self.window).flatten(2))
        return self.o(causal_attention(self.operations, q, k, v, self.window).flatten(2))
