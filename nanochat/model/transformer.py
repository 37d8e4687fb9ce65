"""Base class of the architectures: a decoder-only transformer.

Shapes: B rows, T positions, D width, K width of a head, V vocabulary.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from nanochat.kernels.selection import operations_for
from nanochat.model.attention import Append, KVCache
from nanochat.model.layers import Layer, Linear, rotary_table
from nanochat.model.scaling import GPTConfig


class Transformer(Layer):
    """A language model: nanochat's architecture (gpt.py) or Qwen3's (qwen3.py), built by nanochat/model/build.py.

    Weights are float32, cast at use to the activations' type; embedding tables may be bfloat16 on a GPU. Gradients are float32. Ranks,
    files and printing are the callers' business.
    """

    softcap = 0.0  # of the logits; 0 for none

    def __init__(self, config: GPTConfig, block: Callable[[GPTConfig, int], nn.Module]):
        super().__init__()
        self.config = config
        self.embed = nn.Embedding(config.padded_vocab, config.dim)
        self.blocks = nn.ModuleList(block(config, layer) for layer in range(config.depth))
        self.head = Linear(config.dim, config.padded_vocab)
        self.tie()
        cos, sin = rotary_table(config.max_seq_len, config.head_dim, base=config.rope_base)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    def forward(self, ids: Tensor, cache: KVCache | None = None, counts: Tensor | None = None) -> Tensor:
        """Hidden states before the head: ids (B, T) -> (B, T, D).

        With `cache`, row b's tokens are appended to slot b; `counts` (B,) is the number of real tokens in each row, the rest
        being padding on the right.
        """
        raise NotImplementedError

    def embedded(self, ids: Tensor) -> Tensor:
        """The first layer's input before any mixing of positions: ids (...) -> (..., D)."""
        raise NotImplementedError

    def init_weights(self, seed: int) -> None:
        """Initialise all weights; the same seed gives the same weights everywhere."""
        raise NotImplementedError

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits in float32: hidden (..., D) -> (..., V)."""
        raw = self.head(hidden)[..., : self.config.vocab_size].float()
        return softcapped(raw, self.softcap)

    @property
    def compute_dtype(self) -> torch.dtype:
        """The type of the activations."""
        return self.operations.dtype

    def tables(self) -> list[Tensor]:
        """The embedding tables, each (V, ...)."""
        return [self.embed.weight]

    def use(self, dtype: torch.dtype, *, compiled: bool = False) -> None:
        """Compute with activations of `dtype` from now on, by the fastest operations that are loaded for it.

        With `compiled` torch.compile traces the whole forward pass; head and loss are outside.
        """
        device = self.embed.weight.device
        outside = operations_for(device, dtype, compiled=compiled)
        inside = operations_for(device, dtype, traced=True) if compiled else outside
        for part in self.modules():
            if isinstance(part, Layer):
                part.operations = inside
        self.head.operations = outside
        for table in self.tables():
            table.data = table.data.to(outside.table_dtype)
            table.grad_dtype = torch.float32

    def init_buffers(self) -> None:
        """Fill the buffers, which are computed and not learned."""
        config = self.config
        self.cos, self.sin = rotary_table(config.max_seq_len, config.head_dim, self.embed.weight.device, config.rope_base)

    def tie(self) -> None:
        """Make the head's weight the embedding's, if the config has them tied: one parameter, under the embedding's name."""
        if self.config.tied:
            self.head.weight = self.embed.weight

    def positions(self, ids: Tensor, cache: KVCache | None) -> tuple[Tensor, Tensor, Append | None]:
        """cos and sin for ids (B, T), as (T, K/2) or with a cache (B, T, K/2), and their positions in the cache."""
        if cache is None:
            return self.cos[: ids.size(1)], self.sin[: ids.size(1)], None
        append = Append(cache, ids.size(1))
        rows = append.positions.clamp(max=self.config.max_seq_len - 1)
        return self.cos[rows], self.sin[rows], append


def softcapped(raw: Tensor, cap: float) -> Tensor:
    """cap * tanh(raw / cap): keeps logits within +-cap (Gemma Team, 2024); 0 switches it off."""
    return cap * torch.tanh(raw / cap) if cap else raw
