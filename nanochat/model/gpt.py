"""nanochat's architecture: forward pass and initial weights.

A transformer with value embeddings, a smear of the previous token, scalars that mix the first layer's input into each later one, and
softcapped logits.
Shapes: B rows, T positions, D width, H query heads, G key/value heads, K width of a head, V vocabulary.
"""

import torch
from torch import Tensor, nn

from nanochat.model.attention import Append, Attention, KVCache
from nanochat.model.layers import Initializer, Layer, Linear
from nanochat.model.scaling import SMEAR_GATE_CHANNELS, SOFTCAP, VALUE_GATE_CHANNELS, GPTConfig
from nanochat.model.transformer import Transformer

QK_SCALE = 1.2  # sharpens attention after the QK norm, on q and on k


class GPTAttention(Attention):
    """Attention with rotary positions, QK norm without gains, and in some layers a gated value embedding."""

    def __init__(self, config: GPTConfig, layer: int):
        super().__init__(config, layer)
        self.ve_gate = Linear(VALUE_GATE_CHANNELS, config.n_kv_head) if config.has_value_embedding(layer) else None

    def forward(self, x: Tensor, ve: Tensor | None, cos: Tensor, sin: Tensor, append: Append | None) -> Tensor:
        """x (B, T, D), ve (B, T, G * K) or None, cos and sin of the positions -> (B, T, D)."""
        q, k, v = self.project(x)
        if self.ve_gate is not None and ve is not None:
            gate = self.ve_gate(x[..., :VALUE_GATE_CHANNELS])  # (B, T, G)
            v = self.operations.add_gated(v, gate, self.heads(ve))
        q, k = (self.operations.rotary_norm(y, cos, sin, QK_SCALE) for y in (q, k))
        return self.attend(q, k, v, append)


class MLP(Layer):
    """Four times the width, ReLU squared (So et al., 2021)."""

    def __init__(self, config: GPTConfig):
        super().__init__()
        self.fc = Linear(config.dim, config.mlp_dim)
        self.proj = Linear(config.mlp_dim, config.dim)

    def forward(self, x: Tensor) -> Tensor:  # (B, T, D) -> (B, T, D)
        return self.proj(self.operations.relu_square(self.fc(x)))


class GPTBlock(Layer):
    """Pre-norm residual block: attention, then the MLP."""

    def __init__(self, config: GPTConfig, layer: int):
        super().__init__()
        self.attn = GPTAttention(config, layer)
        self.mlp = MLP(config)

    def forward(self, x: Tensor, ve: Tensor | None, cos: Tensor, sin: Tensor, append: Append | None) -> Tensor:
        """x (B, T, D) -> (B, T, D)."""
        x = x + self.attn(self.operations.rms_norm(x), ve, cos, sin, append)
        return x + self.mlp(self.operations.rms_norm(x))


class GPT(Transformer):
    """nanochat's model."""

    softcap = SOFTCAP

    def __init__(self, config: GPTConfig):
        super().__init__(config, GPTBlock)
        tables = [layer for layer in range(config.depth) if config.has_value_embedding(layer)]
        self.value_embeds = nn.ModuleDict({str(layer): nn.Embedding(config.padded_vocab, config.kv_dim) for layer in tables})
        self.resid_lambdas = nn.Parameter(torch.empty(config.depth))
        self.x0_lambdas = nn.Parameter(torch.empty(config.depth))
        self.smear_gate = Linear(SMEAR_GATE_CHANNELS, 1)
        self.smear_lambda = nn.Parameter(torch.empty(1))
        self.backout_lambda = nn.Parameter(torch.empty(1))

    def forward(self, ids: Tensor, cache: KVCache | None = None, counts: Tensor | None = None) -> Tensor:
        """Hidden states before the head; see `Transformer.forward`."""
        cos, sin, append = self.positions(ids, cache)
        first = middle = x = self._smear(self.embedded(ids), cache, counts)
        for layer, block in enumerate(self.blocks):
            x = self.operations.mix(self.resid_lambdas[layer], x, self.x0_lambdas[layer], first)
            ve = self.operations.embed(ids, self.value_table(layer)) if self.config.has_value_embedding(layer) else None
            x = block(x, ve, cos, sin, append)
            if layer == self.halfway:
                middle = x
        x = x - self.backout_lambda.to(x.dtype) * middle
        if cache is not None:
            cache.lengths += ids.size(1) if counts is None else counts
        return self.operations.rms_norm(x)

    @property
    def halfway(self) -> int:
        """The layer whose output is subtracted at the end. Never the last one, because the norm would cancel the subtraction."""
        return min(self.config.depth // 2, self.config.depth - 2)

    def embedded(self, ids: Tensor) -> Tensor:
        """Embeddings before the smear, the first layer's input: ids (...) -> (..., D)."""
        return self.operations.rms_norm(self.operations.embed(ids, self.embed.weight))

    def value_table(self, layer: int) -> Tensor:
        """The value embeddings (V, G * K) of a layer that has them."""
        weight = self.value_embeds[str(layer)].weight
        assert isinstance(weight, Tensor)
        return weight

    def tables(self) -> list[Tensor]:
        """The tables of token and value embeddings."""
        return [self.embed.weight, *self.value_embeds.parameters()]

    def _smear(self, x: Tensor, cache: KVCache | None, counts: Tensor | None) -> Tensor:
        """Add the previous position's embedding through a learned gate: x (B, T, D) -> (B, T, D)."""
        before = x.new_zeros(x.size(0), 1, x.size(2)) if cache is None else cache.previous[:, None].to(x.dtype)
        shifted = torch.cat((before, x[:, :-1]), dim=1)
        gate = self.smear_lambda.to(x.dtype) * torch.sigmoid(self.smear_gate(x[..., :SMEAR_GATE_CHANNELS]))
        if cache is not None:
            last = torch.full_like(cache.lengths, x.size(1)) if counts is None else counts
            held = torch.cat((before, x), dim=1)[torch.arange(x.size(0), device=x.device), last]
            cache.previous.copy_(held)
        return x + gate * shifted

    @torch.no_grad()
    def init_weights(self, seed: int) -> None:
        """Initialise all weights. The head is near zero, so the first loss is ln V; every block is the identity."""
        draw, depth = Initializer(seed, self.config.dim), self.config.depth
        draw.normal(self.embed.weight, 0.8)
        draw.normal(self.head.weight, 0.001)
        for block in self.blocks:
            assert isinstance(block, GPTBlock)
            for layer in (block.attn.q, block.attn.k, block.attn.v):
                draw.projection(layer.weight)
            block.attn.o.weight.zero_()
            draw.projection(block.mlp.fc.weight, 0.4)
            block.mlp.proj.weight.zero_()
            if block.attn.ve_gate is not None:
                draw.uniform(block.attn.ve_gate.weight, 0.0, 0.02)
        for table in self.value_embeds.parameters():
            draw.projection(table)
        self.resid_lambdas.copy_(torch.linspace(1.15, 1.05, depth))
        self.x0_lambdas.copy_(torch.linspace(0.20, 0.05, depth))
        draw.uniform(self.smear_gate.weight, 0.0, 0.02)
        self.smear_lambda.zero_()
        self.backout_lambda.fill_(0.2)
