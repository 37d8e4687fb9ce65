"""The GPT: what it computes, and how its weights begin. It knows nothing of ranks, files or printing.

Shapes: B rows, T positions, D width, V vocabulary.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nanochat.kernels import fused
from nanochat.model.attention import QK_SCALE, Append, Attention, KVCache, Linear, RMSNorm, rms_norm, rotary_table
from nanochat.model.scaling import SMEAR_GATE_CHANNELS, GPTConfig


class MLP(nn.Module):
    """Four times the width, ReLU squared (So et al., 2021)."""

    def __init__(self, config: GPTConfig):
        super().__init__()
        self.fc = Linear(config.dim, config.mlp_dim)
        self.proj = Linear(config.mlp_dim, config.dim)

    def forward(self, x: Tensor) -> Tensor:  # (B, T, D) -> (B, T, D)
        x = self.fc(x)
        return self.proj(fused.relu_square(x) if fused.usable(x) else F.relu(x).square())


class SwiGLU(nn.Module):
    """Two projections, one the other's gate (Shazeer, 2020)."""

    def __init__(self, config: GPTConfig):
        super().__init__()
        self.gate = Linear(config.dim, config.mlp_dim)
        self.up = Linear(config.dim, config.mlp_dim)
        self.down = Linear(config.mlp_dim, config.dim)

    def forward(self, x: Tensor) -> Tensor:  # (B, T, D) -> (B, T, D)
        return self.down(F.silu(self.gate(x)) * self.up(x))


def _norm(config: GPTConfig) -> Callable[[Tensor], Tensor]:
    """The norm of the residual stream, with gains in a Qwen3."""
    return RMSNorm(config.dim) if config.qwen3 else rms_norm


class Block(nn.Module):
    """Attention, then the MLP, each reading the normalised stream and adding to it."""

    def __init__(self, config: GPTConfig, layer: int):
        super().__init__()
        self.attn = Attention(config, layer)
        self.mlp: MLP | SwiGLU = SwiGLU(config) if config.qwen3 else MLP(config)
        self.attn_norm, self.mlp_norm = _norm(config), _norm(config)

    def forward(self, x: Tensor, ve: Tensor | None, cos: Tensor, sin: Tensor, append: Append | None) -> Tensor:
        """x (B, T, D) -> (B, T, D)."""
        x = x + self.attn(self.attn_norm(x), ve, cos, sin, append)
        return x + self.mlp(self.mlp_norm(x))


class GPT(nn.Module):
    """A decoder-only transformer with the switches of `GPTConfig`.

    `compute_dtype` is the type of the activations; weights stay float32 and are cast at use. `compiled` has the loss compiled.
    """

    def __init__(self, config: GPTConfig):
        super().__init__()
        self.config = config
        self.compute_dtype = torch.float32
        self.compiled = False
        self.embed = nn.Embedding(config.padded_vocab, config.dim)
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.depth))
        self.head = Linear(config.dim, config.padded_vocab)
        kv_width = config.n_kv_head * config.head_dim
        self.value_embeds = nn.ModuleDict(
            {str(i): nn.Embedding(config.padded_vocab, kv_width) for i in range(config.depth) if config.has_value_embedding(i)}
        )
        if config.residual_scalars:
            self.resid_lambdas = nn.Parameter(torch.empty(config.depth))
            self.x0_lambdas = nn.Parameter(torch.empty(config.depth))
        if config.smear:
            self.smear_gate = Linear(SMEAR_GATE_CHANNELS, 1)
            self.smear_lambda = nn.Parameter(torch.empty(1))
        if config.backout:
            self.backout_lambda = nn.Parameter(torch.empty(1))
        self.norm = _norm(config)
        cos, sin = rotary_table(config.max_seq_len, config.head_dim)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    @staticmethod
    def build(config: GPTConfig, device: torch.device | str = "cpu", seed: int = 42) -> "GPT":
        """A model with initial weights, allocated once, on `device`; the same seed gives the same weights everywhere."""
        with torch.device("meta"):
            model = GPT(config)
        model.to_empty(device=device)
        model.init_weights(seed)
        return model

    @torch.no_grad()
    def init_weights(self, seed: int = 42) -> None:
        """Fill every weight and buffer. The head begins near zero, so the first loss is ln V; every block begins as identity."""
        generator = torch.Generator().manual_seed(seed)  # on the CPU: equal weights whatever the device

        def normal(weight: Tensor, std: float) -> None:
            weight.copy_(torch.empty(weight.shape).normal_(0, std, generator=generator))

        def uniform(weight: Tensor, low: float, high: float) -> None:
            weight.copy_(torch.empty(weight.shape).uniform_(low, high, generator=generator))

        dim, depth = self.config.dim, self.config.depth
        bound = (3 / dim) ** 0.5  # a uniform distribution of standard deviation dim ** -0.5
        normal(self.embed.weight, 0.8)
        normal(self.head.weight, 0.001)
        for block in self.blocks:
            assert isinstance(block, Block)
            for layer in (block.attn.q, block.attn.k, block.attn.v):
                uniform(layer.weight, -bound, bound)
            block.attn.o.weight.zero_()
            if isinstance(block.mlp, SwiGLU):
                uniform(block.mlp.gate.weight, -bound, bound)
                uniform(block.mlp.up.weight, -bound, bound)
                block.mlp.down.weight.zero_()
            else:
                uniform(block.mlp.fc.weight, -0.4 * bound, 0.4 * bound)
                block.mlp.proj.weight.zero_()
            if block.attn.ve_gate is not None:
                uniform(block.attn.ve_gate.weight, 0.0, 0.02)
        for name, module in self.named_modules():
            if isinstance(module, RMSNorm):
                module.gain.fill_(QK_SCALE if name.endswith(("q_norm", "k_norm")) else 1.0)
        for table in self.value_embeds.values():
            uniform(table.weight, -bound, bound)  # type: ignore[arg-type]
        if self.config.residual_scalars:
            self.resid_lambdas.copy_(torch.linspace(1.15, 1.05, depth))
            self.x0_lambdas.copy_(torch.linspace(0.20, 0.05, depth))
        if self.config.smear:
            uniform(self.smear_gate.weight, 0.0, 0.02)
            self.smear_lambda.zero_()
        if self.config.backout:
            self.backout_lambda.fill_(0.2)
        self.init_buffers()

    def init_buffers(self) -> None:
        """Fill what is computed rather than learned; enough before weights are loaded."""
        self.cos, self.sin = rotary_table(self.config.max_seq_len, self.config.head_dim, self.embed.weight.device)

    def forward(self, ids: Tensor, cache: KVCache | None = None, counts: Tensor | None = None) -> Tensor:
        """Hidden states before the head: ids (B, T) -> (B, T, D).

        With `cache`, row b's tokens follow what slot b holds and are added to it; `counts` (B,) says how many of each
        row's T tokens are real, the rest being padding on the right.
        """
        config = self.config
        append = Append(cache, ids.size(1)) if cache is not None else None
        if append is None:
            cos, sin = self.cos[: ids.size(1)], self.sin[: ids.size(1)]  # (T, K/2)
        else:
            rows = append.positions.clamp(max=config.max_seq_len - 1)
            cos, sin = self.cos[rows], self.sin[rows]  # (B, T, K/2)
        x = self.embedded(ids)
        if config.smear:
            x = self._smear(x, cache, counts)
        first, middle = x, x
        halfway = min(config.depth // 2, config.depth - 2)  # never the last layer: the norm would cancel what is subtracted
        for layer, block in enumerate(self.blocks):
            if config.residual_scalars:
                x = self._mix(layer, x, first)
            ve = self._rows(self.value_embeds[str(layer)], ids) if config.has_value_embedding(layer) else None
            x = block(x, ve, cos, sin, append)
            if layer == halfway:
                middle = x
        if config.backout:
            x = x - self.backout_lambda.to(x.dtype) * middle
        if cache is not None:
            cache.lengths += ids.size(1) if counts is None else counts
        return self.norm(x)

    def embedded(self, ids: Tensor) -> Tensor:
        """What the first layer's input begins as: ids (...) -> (..., D)."""
        x = self._rows(self.embed, ids)
        return x if self.config.qwen3 else rms_norm(x)

    def _rows(self, table: nn.Module, ids: Tensor) -> Tensor:
        """Rows of an embedding in the activations' type: ids (...) -> (..., D)."""
        weight, dtype = table.weight, self.compute_dtype
        assert isinstance(weight, Tensor)
        return fused.embed(ids, weight, dtype) if fused.usable(weight, dtype) else F.embedding(ids, weight).to(dtype)

    def _mix(self, layer: int, x: Tensor, first: Tensor) -> Tensor:
        """What a layer reads: of the stream and of the first layer's input as much as it has learned to, (B, T, D) -> (B, T, D)."""
        a, b = self.resid_lambdas[layer], self.x0_lambdas[layer]
        return fused.mix(a, x, b, first) if fused.usable(x) else a.to(x.dtype) * x + b.to(x.dtype) * first

    def _smear(self, x: Tensor, cache: KVCache | None, counts: Tensor | None) -> Tensor:
        """Let each position see the embedding before it, through a learned gate: x (B, T, D) -> (B, T, D)."""
        before = x.new_zeros(x.size(0), 1, x.size(2)) if cache is None else cache.previous[:, None].to(x.dtype)
        shifted = torch.cat((before, x[:, :-1]), dim=1)
        gate = self.smear_lambda.to(x.dtype) * torch.sigmoid(self.smear_gate(x[..., :SMEAR_GATE_CHANNELS]))
        if cache is not None:
            last = torch.full_like(cache.lengths, x.size(1)) if counts is None else counts
            held = torch.cat((before, x), dim=1)[torch.arange(x.size(0), device=x.device), last]
            cache.previous.copy_(held)
        return x + gate * shifted

    def logits(self, hidden: Tensor) -> Tensor:
        """Softcapped logits in float32: hidden (..., D) -> (..., V)."""
        raw = self.head(hidden)[..., : self.config.vocab_size].float()
        return softcap(raw, self.config.softcap)


def softcap(raw: Tensor, cap: float) -> Tensor:
    """cap * tanh(raw / cap): keeps logits within +-cap (Gemma Team, 2024); 0 switches it off."""
    return cap * torch.tanh(raw / cap) if cap else raw
