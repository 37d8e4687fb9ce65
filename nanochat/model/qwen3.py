"""Qwen3's architecture (`--architecture portable`), which other inference engines run: forward pass and initial weights.

A transformer with learned norm gains, QK norm before the rotation, SwiGLU and plain logits.
Shapes: B rows, T positions, D width.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from nanochat.kernels.operations import rotate
from nanochat.model.attention import Append, Attention, KVCache
from nanochat.model.layers import Initializer, Layer, Linear, RMSNorm
from nanochat.model.scaling import GPTConfig
from nanochat.model.transformer import Transformer

QK_GAIN = 1.2  # initial gain of the QK norm; sharpens attention


class Qwen3Attention(Attention):
    """Attention with rotary positions and QK norm with gains."""

    def __init__(self, config: GPTConfig, layer: int):
        super().__init__(config, layer)
        self.q_norm = RMSNorm(config.head_dim, config.norm_eps)
        self.k_norm = RMSNorm(config.head_dim, config.norm_eps)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, append: Append | None) -> Tensor:
        """x (B, T, D), cos and sin of the positions -> (B, T, D)."""
        q, k, v = self.project(x)
        q, k = rotate(self.q_norm(q), cos, sin), rotate(self.k_norm(k), cos, sin)
        return self.attend(q, k, v, append)


class SwiGLU(Layer):
    """Gated MLP with SiLU (Shazeer, 2020)."""

    def __init__(self, config: GPTConfig):
        super().__init__()
        self.gate = Linear(config.dim, config.mlp_dim)
        self.up = Linear(config.dim, config.mlp_dim)
        self.down = Linear(config.mlp_dim, config.dim)

    def forward(self, x: Tensor) -> Tensor:  # (B, T, D) -> (B, T, D)
        return self.down(F.silu(self.gate(x)) * self.up(x))


class Qwen3Block(Layer):
    """Pre-norm residual block: attention, then the MLP."""

    def __init__(self, config: GPTConfig, layer: int):
        super().__init__()
        self.attn = Qwen3Attention(config, layer)
        self.mlp = SwiGLU(config)
        self.attn_norm, self.mlp_norm = RMSNorm(config.dim, config.norm_eps), RMSNorm(config.dim, config.norm_eps)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, append: Append | None) -> Tensor:
        """x (B, T, D) -> (B, T, D)."""
        x = x + self.attn(self.attn_norm(x), cos, sin, append)
        return x + self.mlp(self.mlp_norm(x))


class Qwen3(Transformer):
    """Qwen3's model."""

    def __init__(self, config: GPTConfig):
        super().__init__(config, Qwen3Block)
        self.norm = RMSNorm(config.dim, config.norm_eps)

    def forward(self, ids: Tensor, cache: KVCache | None = None, counts: Tensor | None = None) -> Tensor:
        """Hidden states before the head; see `Transformer.forward`."""
        cos, sin, append = self.positions(ids, cache)
        x = self.embedded(ids)
        for block in self.blocks:
            x = block(x, cos, sin, append)
        if cache is not None:
            cache.lengths += ids.size(1) if counts is None else counts
        return self.norm(x)

    def embedded(self, ids: Tensor) -> Tensor:
        """The embeddings, which are the first layer's input: ids (...) -> (..., D)."""
        return self.operations.embed(ids, self.embed.weight)

    @torch.no_grad()
    def init_weights(self, seed: int) -> None:
        """Initialise all weights. The head is near zero, so the first loss is ln V; every block is the identity."""
        draw = Initializer(seed, self.config.dim)
        draw.normal(self.embed.weight, 0.8)
        draw.normal(self.head.weight, 0.001)
        for block in self.blocks:
            assert isinstance(block, Qwen3Block)
            for layer in (block.attn.q, block.attn.k, block.attn.v, block.mlp.gate, block.mlp.up):
                draw.projection(layer.weight)
            for layer in (block.attn.o, block.mlp.down):
                layer.weight.zero_()
            for norm in (block.attn_norm, block.mlp_norm):
                norm.gain.fill_(1.0)
            for norm in (block.attn.q_norm, block.attn.k_norm):
                norm.gain.fill_(QK_GAIN)
        self.norm.gain.fill_(1.0)
