"""Layers shared by the architectures, which compute with the operations chosen for the whole model."""

import torch
from torch import Tensor, nn

from nanochat.kernels.operations import Operations
from nanochat.model.scaling import NORM_EPS, ROPE_BASE


class Layer(nn.Module):
    """Base of all layers. `Transformer.use` sets the `operations` of every layer of a model."""

    operations = Operations(torch.float32)


class Linear(nn.Linear, Layer):
    """A linear layer without bias, whose fp32 master weight is cast to the activations' type at use."""

    def __init__(self, in_features: int, out_features: int):
        super().__init__(in_features, out_features, bias=False)

    def forward(self, x: Tensor) -> Tensor:  # (..., in) -> (..., out)
        return self.operations.linear(x, self.weight)[0]


class RMSNorm(Layer):
    """RMSNorm with a learned gain for each channel; `eps` is added to the mean of the squares."""

    def __init__(self, width: int, eps: float = NORM_EPS):
        super().__init__()
        self.eps = None if eps == NORM_EPS else eps
        self.gain = nn.Parameter(torch.empty(width))

    def forward(self, x: Tensor) -> Tensor:  # (..., width) -> (..., width)
        return self.operations.rms_norm(x, self.eps) * self.gain.to(x.dtype)


def rotary_table(length: int, head_dim: int, device: torch.device | str | None = None, base: float = ROPE_BASE) -> tuple[Tensor, Tensor]:
    """cos and sin of the rotary angles (Su et al., 2021), each (length, head_dim / 2), float32."""
    frequencies = base ** (-torch.arange(0, head_dim, 2, device=device, dtype=torch.float32) / head_dim)
    angles = torch.arange(length, device=device, dtype=torch.float32)[:, None] * frequencies
    return angles.cos(), angles.sin()


class Initializer:
    """Initial weights of a model of width `dim` from a seed; drawn on the CPU, so that all devices get equal weights."""

    def __init__(self, seed: int, dim: int):
        self._generator = torch.Generator().manual_seed(seed)
        self._bound = (3 / dim) ** 0.5  # a uniform distribution of standard deviation dim ** -0.5

    def normal(self, weight: Tensor, std: float) -> None:
        """Fill `weight` from a normal distribution."""
        weight.copy_(torch.empty(weight.shape).normal_(0, std, generator=self._generator))

    def uniform(self, weight: Tensor, low: float, high: float) -> None:
        """Fill `weight` from a uniform distribution."""
        weight.copy_(torch.empty(weight.shape).uniform_(low, high, generator=self._generator))

    def projection(self, weight: Tensor, scale: float = 1.0) -> None:
        """Fill `weight` from a uniform distribution of standard deviation scale / sqrt(dim)."""
        self.uniform(weight, -scale * self._bound, scale * self._bound)
