"""The operations between a model's matrix products, in torch, for any device and for torch.compile.

All layers of a model share one such object, which nanochat/kernels/selection.py chooses: this one, or a CPU's fused operations
(fused.py) with the same methods.
Shapes: N rows of any kind, D width, B rows of tokens, T positions, H query heads, G key/value heads, K width of a head, V vocabulary.
"""

import functools
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from nanochat.kernels.accumulation import add_product, total_of

RMS_EPS = torch.finfo(torch.float32).eps
Chunk = Callable[[Tensor, Tensor, Tensor, float], tuple[Tensor, Tensor]]


class Operations:
    """torch's own operations for activations of `dtype`; with `compiled` the loss, which is outside of the forward pass, is compiled."""

    fused = False

    def __init__(self, dtype: torch.dtype, *, compiled: bool = False):
        self.dtype = dtype
        self._compiled = compiled

    @property
    def table_dtype(self) -> torch.dtype:
        """The type in which embedding tables are stored."""
        return torch.float32

    def start_gradients(self, weights: Iterable[Tensor]) -> None:
        """Prepare the gradients of `weights` before a step's first micro-batch, if these operations add to them in place."""

    def finish_gradients(self, weights: Iterable[Tensor]) -> None:
        """Set `grad` of `weights` after a step's last micro-batch, if `start_gradients` prepared it."""

    def embed(self, ids: Tensor, table: Tensor) -> Tensor:
        """Rows of a table (V, D) in the activations' type: ids (...) int64 -> (..., D)."""
        return F.embedding(ids, table).to(self.dtype)

    def linear(self, x: Tensor, *weights: Tensor) -> tuple[Tensor, ...]:
        """x (..., in) times each float32 weight (out, in), cast to x's type -> (..., out) each."""
        return tuple(F.linear(x, weight.to(x.dtype)) for weight in weights)

    def rms_norm(self, x: Tensor, eps: float | None = None) -> Tensor:
        """x / sqrt(mean(x^2) + eps) over the last axis, without learned gains (Zhang & Sennrich, 2019): (..., D) -> (..., D).

        Without `eps` the machine's precision.
        """
        return F.rms_norm(x, (x.size(-1),), eps=eps)

    def rotary_norm(self, x: Tensor, cos: Tensor, sin: Tensor, gain: float) -> Tensor:
        """`gain` times the norm of the rotated heads: x (B, T, H, K), cos and sin (T, K/2) or (B, T, K/2) float32 -> (B, T, H, K)."""
        return self.rms_norm(rotate(x, cos, sin)) * gain

    def mix(self, a: Tensor, x: Tensor, b: Tensor, first: Tensor) -> Tensor:
        """a * x + b * first, with a and b float32 scalars: x and first (..., D) -> (..., D)."""
        return a.to(x.dtype) * x + b.to(x.dtype) * first

    def relu_square(self, x: Tensor) -> Tensor:
        """max(x, 0)^2 (So et al., 2021), of any shape."""
        return F.relu(x).square()

    def add_gated(self, v: Tensor, gate: Tensor, embedding: Tensor) -> Tensor:
        """v + 3 sigmoid(gate) * embedding: v and embedding (..., K), gate (...) -> (..., K)."""
        return v + (3 * torch.sigmoid(gate)).unsqueeze(-1) * embedding

    def causal_attention(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Causal attention: q (B, H, T, K), k and v (B, G, T, K) -> (B, H, T, K)."""
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=q.size(1) != k.size(1))

    def cross_entropy_sum(
        self, hidden: Tensor, weight: Tensor, targets: Tensor, counts: Tensor, *, vocab: int, cap: float, rows: int, scale: float = 1.0
    ) -> Tensor:
        """Sum of the loss in nats, with the softcapped logits of only `rows` tokens in memory -> scalar, float32, differentiable.

        hidden (N, D), weight (at least `vocab`, D) float32, targets (N,), counts (N,): the factor of each target in the sum, 0 to
        ignore it; `cap` is the softcap, 0 for none. `scale` is the gradient that the sum will receive: between `start_gradients` and
        `finish_gradients` the weight's gradient is added in the forward pass, times `scale`.
        """
        chunk = _compiled_chunk() if self._compiled else _chunk
        return _CrossEntropySum.apply(hidden, weight, targets, counts, vocab, cap, rows, chunk, scale)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the halves of each head (Su et al., 2021): x (B, T, H, K), cos and sin (T, K/2) or (B, T, K/2) -> (B, T, H, K)."""
    cos, sin = cos.unsqueeze(-2).to(x.dtype), sin.unsqueeze(-2).to(x.dtype)
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos + second * sin, second * cos - first * sin), dim=-1)


def _chunk(raw: Tensor, targets: Tensor, counts: Tensor, cap: float) -> tuple[Tensor, Tensor]:
    """Raw logits (n, V), overwritten if float32, targets and counts (n,) -> (sum in nats, its gradient in the logits (n, V)).

    The gradient has the logits' type; intermediate values are float32.
    """
    kind, raw = raw.dtype, raw.float()
    index, counts = targets.clamp(min=0)[:, None], counts[:, None].float()
    if cap:
        # cap * tanh(x / cap) = 2 cap * half, half = sigmoid(2x / cap) - 1/2: one exponential, a third of tanh's time. It is within
        # 1e-6 of the capped logit, which the logarithm of the sum rounds to anyway.
        half = raw.mul_(2 / cap).sigmoid_().sub_(0.5)
        weights = torch.mul(half, 2 * cap).exp_()  # no overflow within +-cap, so the maximum need not be subtracted
        wanted = 2 * cap * half.gather(1, index)
    else:
        raw.sub_(raw.amax(dim=-1, keepdim=True))
        weights, wanted = raw.exp(), raw.gather(1, index)
    sums = weights.sum(dim=-1, keepdim=True)
    nats = ((sums.log() - wanted) * counts).sum()
    grad = weights.mul_(counts / sums)
    if torch.compiler.is_compiling():  # a scatter would split the kernel and write the logits once more
        grad = torch.where(torch.arange(raw.size(-1), device=raw.device) == index, grad - counts, grad)
    else:
        grad.scatter_add_(1, index, -counts)
    return nats, (grad.mul_(half.square_().mul_(-4).add_(1)) if cap else grad).to(kind)


@functools.cache
def _compiled_chunk() -> Chunk:
    return torch.compile(_chunk, dynamic=False)


class _CrossEntropySum(torch.autograd.Function):
    """Cross-entropy whose gradient is computed in the forward pass, chunk by chunk, while a chunk's logits are in memory."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        counts: Tensor,
        vocab: int,
        cap: float,
        rows: int,
        chunk: Chunk,
        scale: float,
    ) -> Tensor:
        cast = weight[:vocab].to(hidden.dtype)
        nats = hidden.new_zeros((), dtype=torch.float32)
        grad_hidden = torch.empty_like(hidden)
        total = total_of(weight)
        sums = torch.zeros_like(weight, dtype=torch.float32) if total is None else total
        ctx.scale = 1.0 if total is None else scale
        counts = counts * ctx.scale
        logits = hidden.new_empty(min(rows, len(hidden)), vocab)
        for start in range(0, len(hidden), rows):
            chosen = slice(start, start + rows)
            part = hidden[chosen]
            raw = torch.mm(part, cast.T, out=logits[: len(part)])
            part_nats, grad = chunk(raw, targets[chosen], counts[chosen], cap)
            nats += part_nats
            torch.mm(grad, cast, out=grad_hidden[chosen])
            add_product(sums[:vocab], grad, part)
            del grad  # before the next chunk's exists
        ctx.save_for_backward(grad_hidden, *([sums] if total is None else []))
        return nats / ctx.scale

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Scale the stored gradients, in place: both are linear in the incoming one."""
        grad_hidden, *sums = ctx.saved_tensors
        grad_weight = sums[0].mul_(grads[0]) if sums else None
        return grad_hidden.mul_((grads[0] / ctx.scale).to(grad_hidden.dtype)), grad_weight, *[None] * 7
