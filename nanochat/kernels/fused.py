"""A CPU's fused operations: the operations between matrix products, each in one pass over memory (fused.c), with gradients.

Eager torch takes a pass over memory for each elementwise operation. torch.compile fuses them too, but needs 20 s and more to compile;
fused.c compiles in 1 s (nanochat/kernels/build.py).
Shapes: N rows of any kind, D width, B rows of tokens, T positions, H query heads, G key/value heads, K width of a head, V vocabulary.
"""

from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from nanochat.kernels.library import BLOCK, Library
from nanochat.kernels.operations import RMS_EPS, Operations
from nanochat.kernels.products import product

PRODUCTS_LENGTH = 512  # most positions for the backward pass by whole products: with more, the scores exceed a CPU's cache


class FusedOperations(Operations):
    """The operations of a compiled library, for float32 or bfloat16 activations on a CPU in eager mode; the rest are torch's."""

    fused = True

    def __init__(self, library: Library):
        super().__init__(library.dtype)
        self.library = library

    def embed(self, ids: Tensor, table: Tensor) -> Tensor:
        """Look up ids, as `Operations.embed`. Raises IndexError for an id outside of the table."""
        return _Embed.apply(self.library, ids, table)

    def linear(self, x: Tensor, *weights: Tensor) -> tuple[Tensor, ...]:
        return _Linear.apply(self.library, x, *weights)

    def rms_norm(self, x: Tensor, eps: float | None = None) -> Tensor:
        return _RMSNorm.apply(self.library, x, RMS_EPS if eps is None else eps)

    def rotary_norm(self, x: Tensor, cos: Tensor, sin: Tensor, gain: float) -> Tensor:
        if cos.dim() == 3:  # each row has its own positions, as with a cache
            return super().rotary_norm(x, cos, sin, gain)
        return _RotaryNorm.apply(self.library, x, cos, sin, gain)

    def mix(self, a: Tensor, x: Tensor, b: Tensor, first: Tensor) -> Tensor:
        return _Mix.apply(self.library, a, x, b, first)

    def relu_square(self, x: Tensor) -> Tensor:
        return _ReluSquare.apply(self.library, x)

    def add_gated(self, v: Tensor, gate: Tensor, embedding: Tensor) -> Tensor:
        return _AddGated.apply(self.library, v, gate, embedding)

    def causal_attention(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if q.size(2) > PRODUCTS_LENGTH or q.size(1) != k.size(1):
            return super().causal_attention(q, k, v)
        return _Attention.apply(self.library, q, k, v)

    def cross_entropy_sum(
        self, hidden: Tensor, weight: Tensor, targets: Tensor, counts: Tensor, *, vocab: int, cap: float, rows: int, scale: float = 1.0
    ) -> Tensor:
        """Cross-entropy, as `Operations.cross_entropy_sum`. Raises IndexError for a counted target outside of the vocabulary."""
        return _CrossEntropySum.apply(self.library, hidden, weight, targets, counts, vocab, cap, rows)


_casts = WeakTensorKeyDictionary()  # weight that accumulates a gradient -> (its version, its copy in another type)


def _cast(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """`weight` in another type, cast once for all micro-batches of a step.

    In a step's first micro-batch the weight has no gradient, so the copy is renewed. The version alone does not suffice: torch's fused
    AdamW changes a weight without changing its version.
    """
    if weight.dtype == dtype:
        return weight.detach()
    version, made = _casts.get(weight, (-1, weight))
    if weight.grad is None or version != weight._version or made.dtype != dtype:
        made = weight.detach().to(dtype)
        if weight.requires_grad and not torch.is_inference_mode_enabled():
            _casts[weight] = weight._version, made
    return made


def _accumulate(library: Library, weight: Tensor, part: Tensor, factor: float = 1.0) -> Tensor | None:
    """Add `factor` times a part of the gradient to the first rows of `weight.grad`; without a gradient, return it for autograd.

    Autograd would write the part in float32 first and read it again. For this reason `torch.autograd.grad` cannot return the gradient
    of a weight that already has one.
    """
    if weight.grad is None:
        whole = torch.zeros_like(weight)
        torch.mul(part, factor, out=whole[: len(part)])
        return whole
    rows = weight.grad[: len(part)]
    if part.dtype == torch.float32 or rows.dtype != torch.float32:
        rows.add_(part, alpha=factor)
    else:
        library.call("accumulate", part.numel(), factor, part.contiguous(), rows)
    return None


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, library: Library, x: Tensor, *weights: Tensor) -> tuple[Tensor, ...]:
        ctx.library = library
        made = [_cast(weight, x.dtype) for weight in weights]
        ctx.save_for_backward(x, *made)
        ctx.weights = weights
        return tuple(product(x.flatten(0, -2), each.T, low_precision=True).view(*x.shape[:-1], -1) for each in made)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, *made = ctx.saved_tensors
        flat, grad_x = x.flatten(0, -2), None
        grad_weights: list[Tensor | None] = []
        for weight, each, grad in zip(ctx.weights, made, grads, strict=True):
            rows = grad.flatten(0, -2)
            grad_x = product(rows, each, grad_x, out=grad_x, low_precision=True)
            if flat.dtype == torch.float32 and weight.grad is not None:
                product(rows.T, flat, weight.grad, out=weight.grad, low_precision=True)
                grad_weights.append(None)
            else:
                grad_weights.append(_accumulate(ctx.library, weight, product(rows.T, flat, low_precision=True)))
        assert grad_x is not None
        return None, grad_x.view(x.shape), *grad_weights


class _Embed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, library: Library, ids: Tensor, table: Tensor) -> Tensor:
        ctx.library = library
        ids = ids.long().contiguous()
        out = torch.empty(*ids.shape, table.size(1), dtype=library.dtype)
        if library.call("embed", ids.numel(), *table.shape, ids, table, out):
            raise IndexError(f"an id is outside of the table's {len(table)} rows")
        ctx.ids, ctx.table = ids, table
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, None, Tensor | None]:
        table = ctx.table
        total = torch.zeros_like(table) if table.grad is None else table.grad
        ctx.library.call("embed_backward", ctx.ids.numel(), table.size(1), ctx.ids, grads[0].contiguous(), total)
        return None, None, total if table.grad is None else None


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, library: Library, x: Tensor, eps: float) -> Tensor:
        ctx.library = library
        x = x.contiguous()
        y, scale = torch.empty_like(x), torch.empty(x.shape[:-1])
        library.call("rms_norm", scale.numel(), x.size(-1), eps, x, y, scale)
        ctx.save_for_backward(y, scale)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, Tensor, None]:
        y, scale = ctx.saved_tensors
        out = torch.empty_like(y)
        ctx.library.call("rms_norm_backward", scale.numel(), y.size(-1), y, scale, grads[0].contiguous(), out)
        return None, out, None


class _RotaryNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, library: Library, x: Tensor, cos: Tensor, sin: Tensor, gain: float) -> Tensor:
        ctx.library = library
        y, scale = torch.empty(x.shape, dtype=x.dtype), torch.empty(x.shape[:-1])
        cos, sin = cos.contiguous(), sin.contiguous()
        library.call("rotary_norm", *x.shape, *x.stride()[:-1], RMS_EPS, gain, x, cos, sin, y, scale)
        ctx.save_for_backward(y, cos, sin, scale)
        ctx.gain = gain
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        y, cos, sin, scale = ctx.saved_tensors
        grad = grads[0] if grads[0].stride(-1) == 1 else grads[0].contiguous()
        out = torch.empty_like(y)
        ctx.library.call("rotary_norm_backward", *y.shape, *grad.stride()[:-1], ctx.gain, y, cos, sin, scale, grad, out)
        return None, out, None, None, None


class _Mix(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, library: Library, a: Tensor, x: Tensor, b: Tensor, first: Tensor) -> Tensor:
        ctx.library = library
        x, first = x.contiguous(), first.contiguous()
        out = torch.empty_like(x)
        ctx.factors = a.item(), b.item()
        library.call("mix", x.numel(), *ctx.factors, x, first, out)
        ctx.save_for_backward(x, first)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, first = ctx.saved_tensors
        grad_x, grad_first, rows = torch.empty_like(x), torch.empty_like(first), x.numel() // x.size(-1)
        sums = torch.empty(-(-rows // BLOCK), 2)
        ctx.library.call("mix_backward", rows, x.size(-1), *ctx.factors, x, first, grads[0].contiguous(), grad_x, grad_first, sums)
        grad_a, grad_b = sums.sum(dim=0)
        return None, grad_a, grad_x, grad_b, grad_first


class _ReluSquare(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, library: Library, x: Tensor) -> Tensor:
        ctx.library = library
        x = x.contiguous()
        y = torch.empty_like(x)
        library.call("relu_square", x.numel(), x, y)
        ctx.save_for_backward(x)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, Tensor]:
        (x,) = ctx.saved_tensors
        out = torch.empty_like(x)
        ctx.library.call("relu_square_backward", x.numel(), x, grads[0].contiguous(), out)
        return None, out


class _AddGated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, library: Library, v: Tensor, gate: Tensor, embedding: Tensor) -> Tensor:
        ctx.library = library
        v, gate, embedding = v.contiguous(), gate.contiguous(), embedding.contiguous()
        out = torch.empty_like(v)
        library.call("add_gated", gate.numel(), v.size(-1), v, gate, embedding, out)
        ctx.save_for_backward(gate, embedding)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        gate, embedding = ctx.saved_tensors
        grad, grad_gate, grad_embedding = grads[0].contiguous(), torch.empty_like(gate), torch.empty_like(embedding)
        ctx.library.call("add_gated_backward", gate.numel(), grad.size(-1), gate, embedding, grad, grad_gate, grad_embedding)
        return None, grad, grad_gate, grad_embedding


class _Attention(torch.autograd.Function):
    """Attention whose backward pass is five products over whole rows (Dao et al., 2022, appendix B.2, without tiles).

    Products of this size use a CPU's matrix units fully; torch's own backward pass does not.
    """

    @staticmethod
    def forward(ctx: Any, library: Library, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        ctx.library = library
        out, logsumexp = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, is_causal=True)
        ctx.save_for_backward(q, k, v, out, logsumexp)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, Tensor, Tensor, Tensor]:
        logsumexp, shape = ctx.saved_tensors[4].contiguous(), grads[0].shape
        q, k, v, out, grad = (x.contiguous().flatten(0, 1) for x in (*ctx.saved_tensors[:4], *grads))  # (B * H, T, K)
        along = torch.linalg.vecdot(grad.float(), out.float())  # (B * H, T)
        weights, grad_weights = (product(x, y.mT, half="lower result") for x, y in ((q, k), (grad, v)))  # (B * H, T, T), still scores
        ctx.library.call("attention_backward", len(q), q.size(1), q.size(2) ** -0.5, logsumexp, along, weights, grad_weights)
        grad_q = product(grad_weights, k, half="lower left")
        grad_k, grad_v = (product(x.mT, y, half="upper left") for x, y in ((grad_weights, q), (weights, grad)))
        return None, grad_q.view(shape), grad_k.view(shape), grad_v.view(shape)


class _CrossEntropySum(torch.autograd.Function):
    """Cross-entropy whose gradients are computed in the forward pass, chunk by chunk: logits are overwritten, the weights' added up."""

    @staticmethod
    def forward(
        ctx: Any, library: Library, hidden: Tensor, weight: Tensor, targets: Tensor, counts: Tensor, vocab: int, cap: float, rows: int
    ) -> Tensor:
        cast = _cast(weight, hidden.dtype)[:vocab]
        total, grad_hidden, grad_weight = torch.zeros(()), torch.empty_like(hidden), None
        for start in range(0, len(hidden), rows):
            chosen = slice(start, start + rows)
            part = hidden[chosen]
            logits = product(part, cast.T, low_precision=True)
            total += cross_entropy(library, logits, targets[chosen], counts[chosen], cap).sum()
            product(logits, cast, out=grad_hidden[chosen], low_precision=True)
            if grad_weight is None or hidden.dtype == torch.float32:
                grad_weight = product(logits.T, part, grad_weight, out=grad_weight, low_precision=True)
            else:
                grad_weight = grad_weight.float().add_(product(logits.T, part, low_precision=True))
        assert grad_weight is not None
        ctx.save_for_backward(grad_hidden, grad_weight)
        ctx.library, ctx.weight = library, weight
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        grad_hidden, grad_weight = ctx.saved_tensors
        added = _accumulate(ctx.library, ctx.weight, grad_weight, grads[0].item())
        return None, grad_hidden.mul_(grads[0].to(grad_hidden.dtype)), added, *[None] * 5


def cross_entropy(library: Library, logits: Tensor, targets: Tensor, counts: Tensor, cap: float) -> Tensor:
    """Loss of each row in nats, times its count; `logits` are overwritten with the gradient of the sum.

    logits (N, V) before the softcap, contiguous; targets (N,) int64, ignored if their count is 0, and counts (N,) -> (N,) float32.
    Raises MemoryError if a row of float32 cannot be allocated, IndexError for a counted target outside of the vocabulary.
    """
    nats, counts = torch.empty(len(logits)), counts.float().contiguous()
    targets = torch.where(counts == 0, 0, targets.long()).contiguous()
    failed = library.call("cross_entropy", *logits.shape, cap, logits, targets, counts, nats)
    if failed == 1:
        raise MemoryError(f"cannot allocate a row of {logits.size(1)} logits")
    if failed:
        raise IndexError(f"a target is outside of the {logits.size(1)} logits")
    return nats
