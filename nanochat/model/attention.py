"""Causal self-attention: rotary positions, QK norm, value embeddings, optional windows, and the KV cache.

Shapes: B rows, T positions, S cached positions, H query heads, G key/value heads, K width of a head, D model width.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nanochat.kernels import fused
from nanochat.model.scaling import PRODUCTS_LENGTH, VALUE_GATE_CHANNELS, GPTConfig

ROPE_BASE = 100_000.0
QK_SCALE = 1.2  # sharpens attention after the QK norm, on q and on k


class Linear(nn.Linear):
    """A bias-free linear layer whose fp32 master weight is cast to the activations' type at use."""

    def __init__(self, in_features: int, out_features: int):
        super().__init__(in_features, out_features, bias=False)

    def forward(self, x: Tensor) -> Tensor:  # (..., in) -> (..., out)
        return fused.linear(x, self.weight)[0] if fused.usable(x) else F.linear(x, self.weight.to(x.dtype))


RMS_EPS = torch.finfo(torch.float32).eps


def rms_norm(x: Tensor) -> Tensor:
    """RMSNorm over the last axis, without learned gains (Zhang & Sennrich, 2019)."""
    if fused.usable(x):
        return fused.rms_norm(x, RMS_EPS)
    return F.rms_norm(x, (x.size(-1),))


class RMSNorm(nn.Module):
    """RMSNorm with a learned gain for each channel."""

    def __init__(self, width: int):
        super().__init__()
        self.gain = nn.Parameter(torch.empty(width))

    def forward(self, x: Tensor) -> Tensor:  # (..., width) -> (..., width)
        return rms_norm(x) * self.gain.to(x.dtype)


def rotary_table(length: int, head_dim: int, device: torch.device | str | None = None) -> tuple[Tensor, Tensor]:
    """cos and sin of the rotary angles (Su et al., 2021), each (length, head_dim / 2), float32."""
    frequencies = ROPE_BASE ** (-torch.arange(0, head_dim, 2, device=device, dtype=torch.float32) / head_dim)
    angles = torch.arange(length, device=device, dtype=torch.float32)[:, None] * frequencies
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the halves of each head: x (B, T, H, K), cos and sin (T, K/2) or (B, T, K/2) -> (B, T, H, K)."""
    cos, sin = cos.unsqueeze(-2).to(x.dtype), sin.unsqueeze(-2).to(x.dtype)
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos + second * sin, second * cos - first * sin), dim=-1)


class KVCache:
    """Keys and values of every layer for a fixed number of slots, each with its own length.

    `keys`, `values`: (layers, slots, G, length + 1, K), the last position being scratch for padding;
    `lengths`: (slots,) tokens held; `previous`: (slots, D), the last token's embedding, which the smear needs.
    """

    def __init__(self, config: GPTConfig, slots: int, length: int, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32):
        shape = (config.depth, slots, config.n_kv_head, length + 1, config.head_dim)
        self.keys = torch.zeros(shape, device=device, dtype=dtype)
        self.values = torch.zeros(shape, device=device, dtype=dtype)
        self.lengths = torch.zeros(slots, device=device, dtype=torch.int64)
        self.previous = torch.zeros(slots, config.dim, device=device, dtype=dtype)
        self.length = length

    def slots(self, first: int, last: int) -> "KVCache":
        """A view of the slots from `first` to before `last` as a cache of its own; what is written to it lands here."""
        view = object.__new__(KVCache)
        part = slice(first, last)
        view.keys, view.values, view.length = self.keys[:, part], self.values[:, part], self.length
        view.lengths, view.previous = self.lengths[part], self.previous[part]
        return view

    def swap(self, a: int, b: int, positions: int) -> None:
        """Exchange what slots `a` and `b` hold, in so many positions from the first on."""
        there, here = [a, b], [b, a]
        for tensor in (self.keys[:, :, :, :positions], self.values[:, :, :, :positions]):
            tensor[:, there] = tensor[:, here]
        for tensor in (self.lengths, self.previous):
            tensor[there] = tensor[here]


class Append:
    """One forward pass's place in a cache: where its B x T new tokens go and which keys each of them sees."""

    def __init__(self, cache: KVCache, tokens: int):
        self.cache = cache
        device = cache.lengths.device
        positions = cache.lengths[:, None] + torch.arange(tokens, device=device)
        self.positions = positions.clamp(max=cache.length)  # (B, T); padding beyond the cache falls on the scratch position
        self.span = min(int(cache.lengths.max()) + tokens, cache.length + 1)
        self.rows = torch.arange(len(cache.lengths), device=device)[:, None]
        self.key_positions = torch.arange(self.span, device=device)
        self.masks: dict[int, Tensor] = {}

    def mask(self, window: int) -> Tensor:
        """(B, 1, T, S) bool: a query sees the keys at and before its own position, `window` of them at most."""
        if window not in self.masks:
            behind = self.positions[:, None, :, None] - self.key_positions
            self.masks[window] = (behind >= 0) & (behind < window)
        return self.masks[window]

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, window: int) -> Tensor:
        """Store k, v (B, T, G, K) and attend with q (B, T, H, K) over all that the slots hold -> (B, T, H, K)."""
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


def causal_attention(q: Tensor, k: Tensor, v: Tensor, window: int) -> Tensor:
    """Causal attention over the last `window` positions: q (B, T, H, K), k and v (B, T, G, K) -> (B, T, H, K).

    A window shorter than the row is cut into blocks of `window` queries that see their own block of keys and
    the one before it: exact, and unlike a dense mask it skips the work outside.
    """
    q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)  # (B, H, T, K)
    gqa = q.size(1) != k.size(1)
    length = q.size(2)
    if window >= length:
        if length <= PRODUCTS_LENGTH and not gqa and fused.usable(q):
            return fused.causal_attention(q, k, v).transpose(1, 2)
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=gqa).transpose(1, 2)
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


class Attention(nn.Module):
    """Multi-head causal attention with rotary positions, QK norm (with gains in a Qwen3), and a gated value embedding on some layers."""

    def __init__(self, config: GPTConfig, layer: int):
        super().__init__()
        self.layer, self.head_dim = layer, config.head_dim
        self.window = config.window(layer)
        width, kv_width = config.n_head * config.head_dim, config.n_kv_head * config.head_dim
        self.q = Linear(config.dim, width)
        self.k = Linear(config.dim, kv_width)
        self.v = Linear(config.dim, kv_width)
        self.o = Linear(width, config.dim)
        self.ve_gate = Linear(VALUE_GATE_CHANNELS, config.n_kv_head) if config.has_value_embedding(layer) else None
        self.q_norm = RMSNorm(config.head_dim) if config.qwen3 else None
        self.k_norm = RMSNorm(config.head_dim) if config.qwen3 else None

    def forward(self, x: Tensor, ve: Tensor | None, cos: Tensor, sin: Tensor, append: Append | None) -> Tensor:
        """x (B, T, D), ve (B, T, G * K) or None, cos and sin of the positions -> (B, T, D)."""
        layers = (self.q, self.k, self.v)
        wide = fused.linear(x, *(f.weight for f in layers)) if fused.usable(x) else [f(x) for f in layers]
        q, k, v = (y.unflatten(-1, (-1, self.head_dim)) for y in wide)  # (B, T, H or G, K)
        if self.ve_gate is not None and ve is not None:
            gate, ve = self.ve_gate(x[..., :VALUE_GATE_CHANNELS]), ve.unflatten(-1, (-1, self.head_dim))  # (B, T, G), (B, T, G, K)
            v = fused.add_gated(v, gate, ve) if fused.usable(v) else v + (3 * torch.sigmoid(gate)).unsqueeze(-1) * ve
        if self.q_norm is not None and self.k_norm is not None:
            q, k = rotate(self.q_norm(q), cos, sin), rotate(self.k_norm(k), cos, sin)
        elif fused.usable(q) and cos.dim() == 2:
            q, k = (fused.rotary_norm(y, cos, sin, QK_SCALE, RMS_EPS) for y in (q, k))
        else:
            q, k = (rms_norm(rotate(y, cos, sin)) * QK_SCALE for y in (q, k))
        out = causal_attention(q, k, v, self.window) if append is None else append.attend(self.layer, q, k, v, self.window)
        return self.o(out.flatten(2))
