"""A training step's operations between its matrix products on a CPU, each in one pass over memory (fused.c), with their gradients.

Eager torch takes a pass for every sum and product of them; torch.compile joins them too, but takes 20 s and more for it. fused.c is
compiled in one (nanochat/kernels/build.py). Without it, and for tensors that it does not know, the callers go on with torch's operations.
Shapes: N rows of any kind, D width, B rows of tokens, T positions, H heads, K width of a head, V vocabulary.
"""

import ctypes
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from nanochat.kernels import products
from nanochat.kernels.products import product

LETTERS = {"n": ctypes.c_ssize_t, "f": ctypes.c_float, "p": ctypes.c_void_p}
FUNCTIONS = {  # arguments of each: n a size or stride, f a number, p a tensor
    "accumulate": "nfpp",
    "embed": "nnnppp",
    "embed_backward": "nnppp",
    "rms_norm": "nnfppp",
    "rms_norm_backward": "nnpppp",
    "rotary_norm": "nnnnnnnffppppp",
    "rotary_norm_backward": "nnnnnnnfpppppp",
    "mix": "nffppp",
    "mix_backward": "nnffpppppp",
    "relu_square": "npp",
    "relu_square_backward": "nppp",
    "add_gated": "nnpppp",
    "add_gated_backward": "nnppppp",
    "cross_entropy": "nnfpppp",
    "attention_backward": "nnfpppp",
}
BLOCK = 64  # rows whose sums `mix_backward` gives at once; fused.c is compiled with it
_libraries: dict[torch.dtype, ctypes.CDLL] = {}


def use(dtype: torch.dtype, path: str) -> None:
    """Make the operations usable for tensors of `dtype`, of the library at `path`. Raises OSError where that is none."""
    library = ctypes.CDLL(path)
    for name, letters in FUNCTIONS.items():
        getattr(library, name).argtypes = [LETTERS[letter] for letter in letters]
    _libraries[dtype] = library


def loaded(dtype: torch.dtype) -> bool:
    """Whether they are."""
    return dtype in _libraries


def forget() -> None:
    """Leave everything to torch's operations again."""
    _libraries.clear()
    products.forget()


def usable(x: Tensor, dtype: torch.dtype | None = None) -> bool:
    """Whether the operations know such a tensor: on the CPU, in eager mode, of a loaded type, its last axis contiguous.

    With `dtype`, which then must be loaded, for a float32 weight.
    """
    known = dtype in _libraries and x.dtype == torch.float32 if dtype else x.dtype in _libraries
    return known and x.device.type == "cpu" and not torch.compiler.is_compiling() and x.stride(-1) == 1


def _call(x: Tensor, name: str, *arguments: Any) -> int:
    """Call the function for x's type; tensors as their addresses."""
    found = getattr(_libraries[x.dtype], name)(*(each.data_ptr() if isinstance(each, Tensor) else each for each in arguments))
    return int(found)


_casts = WeakTensorKeyDictionary()  # of each weight that is gathering a gradient: its version, and what it was in another type


def cast(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """`weight` in another type, made once for all micro-batches of a step.

    A step's first one finds no gradient yet. The version alone would not do: torch's fused AdamW changes a weight and not its version.
    """
    if weight.dtype == dtype:
        return weight.detach()
    version, made = _casts.get(weight, (-1, weight))
    if weight.grad is None or version != weight._version or made.dtype != dtype:
        made = weight.detach().to(dtype)
        if weight.requires_grad and not torch.is_inference_mode_enabled():
            _casts[weight] = weight._version, made
    return made


def accumulate(weight: Tensor, product: Tensor, factor: float = 1.0) -> Tensor | None:
    """Add `factor` times a part of the gradient to the first rows of what `weight` has of it, or return it where it has none, for autograd.

    Autograd would first write the part in float32, then read it again. So `torch.autograd.grad` is no way to ask for the gradient of a
    weight that has one.
    """
    if weight.grad is None:
        whole = torch.zeros_like(weight)
        torch.mul(product, factor, out=whole[: len(product)])
        return whole
    rows = weight.grad[: len(product)]
    if product.dtype == torch.float32 or rows.dtype != torch.float32:
        rows.add_(product, alpha=factor)
    else:
        _call(product, "accumulate", product.numel(), factor, product.contiguous(), rows)
    return None


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, *weights: Tensor) -> tuple[Tensor, ...]:
        made = [cast(weight, x.dtype) for weight in weights]
        ctx.save_for_backward(x, *made)
        ctx.weights = weights
        return tuple(product(x.flatten(0, -2), each.T, rough=True).view(*x.shape[:-1], -1) for each in made)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, *made = ctx.saved_tensors
        flat, grad_x = x.flatten(0, -2), None
        grad_weights: list[Tensor | None] = []
        for weight, each, grad in zip(ctx.weights, made, grads, strict=True):
            rows = grad.flatten(0, -2)
            grad_x = product(rows, each, grad_x, out=grad_x, rough=True)
            if flat.dtype == torch.float32 and weight.grad is not None:
                product(rows.T, flat, weight.grad, out=weight.grad, rough=True)
                grad_weights.append(None)
            else:
                grad_weights.append(accumulate(weight, product(rows.T, flat, rough=True)))
        assert grad_x is not None
        return grad_x.view(x.shape), *grad_weights


def linear(x: Tensor, *weights: Tensor) -> tuple[Tensor, ...]:
    """Products of one input with several float32 weights (outs, D): x (..., D) -> for each (..., outs)."""
    return _Linear.apply(x, *weights)


class _Embed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, ids: Tensor, table: Tensor, dtype: torch.dtype) -> Tensor:
        ids = ids.long().contiguous()
        out = torch.empty(*ids.shape, table.size(1), dtype=dtype)
        if _call(out, "embed", ids.numel(), *table.shape, ids, table, out):
            raise IndexError(f"an id is outside of the table's {len(table)} rows")
        ctx.ids, ctx.table = ids, table
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, Tensor | None, None]:
        table = ctx.table
        total = torch.zeros_like(table) if table.grad is None else table.grad
        _call(grads[0], "embed_backward", ctx.ids.numel(), table.size(1), ctx.ids, grads[0].contiguous(), total)
        return None, total if table.grad is None else None, None


def embed(ids: Tensor, table: Tensor, dtype: torch.dtype) -> Tensor:
    """Rows of a contiguous float32 table (V, D): ids (...) int64 -> (..., D) of `dtype`. Raises IndexError for an id that is no row."""
    return _Embed.apply(ids, table, dtype)


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, eps: float) -> Tensor:
        x = x.contiguous()
        y, scale = torch.empty_like(x), torch.empty(x.shape[:-1])
        _call(x, "rms_norm", scale.numel(), x.size(-1), eps, x, y, scale)
        ctx.save_for_backward(y, scale)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        y, scale = ctx.saved_tensors
        out = torch.empty_like(y)
        _call(y, "rms_norm_backward", scale.numel(), y.size(-1), y, scale, grads[0].contiguous(), out)
        return out, None


def rms_norm(x: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean(x^2) + eps) over the last axis (Zhang & Sennrich, 2019): (..., D) -> (..., D)."""
    return _RMSNorm.apply(x, eps)


class _RotaryNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor, gain: float, eps: float) -> Tensor:
        y, scale = torch.empty(x.shape, dtype=x.dtype), torch.empty(x.shape[:-1])
        cos, sin = cos.contiguous(), sin.contiguous()
        _call(x, "rotary_norm", *x.shape, *x.stride()[:-1], eps, gain, x, cos, sin, y, scale)
        ctx.save_for_backward(y, cos, sin, scale)
        ctx.gain = gain
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        y, cos, sin, scale = ctx.saved_tensors
        grad = grads[0] if grads[0].stride(-1) == 1 else grads[0].contiguous()
        out = torch.empty_like(y)
        _call(y, "rotary_norm_backward", *y.shape, *grad.stride()[:-1], ctx.gain, y, cos, sin, scale, grad, out)
        return out, None, None, None, None


def rotary_norm(x: Tensor, cos: Tensor, sin: Tensor, gain: float, eps: float) -> Tensor:
    """`gain` times the norm of what the rotary angles turn: x (B, T, H, K), cos and sin (T, K/2) float32 -> (B, T, H, K)."""
    return _RotaryNorm.apply(x, cos, sin, gain, eps)


class _Mix(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, a: Tensor, x: Tensor, b: Tensor, first: Tensor) -> Tensor:
        x, first = x.contiguous(), first.contiguous()
        out = torch.empty_like(x)
        ctx.factors = a.item(), b.item()
        _call(x, "mix", x.numel(), *ctx.factors, x, first, out)
        ctx.save_for_backward(x, first)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, ...]:
        x, first = ctx.saved_tensors
        grad_x, grad_first, rows = torch.empty_like(x), torch.empty_like(first), x.numel() // x.size(-1)
        sums = torch.empty(-(-rows // BLOCK), 2)
        _call(x, "mix_backward", rows, x.size(-1), *ctx.factors, x, first, grads[0].contiguous(), grad_x, grad_first, sums)
        grad_a, grad_b = sums.sum(dim=0)
        return grad_a, grad_x, grad_b, grad_first


def mix(a: Tensor, x: Tensor, b: Tensor, first: Tensor) -> Tensor:
    """a * x + b * first, with a and b float32 scalars: x and first (..., D) -> (..., D)."""
    return _Mix.apply(a, x, b, first)


class _ReluSquare(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        x = x.contiguous()
        y = torch.empty_like(x)
        _call(x, "relu_square", x.numel(), x, y)
        ctx.save_for_backward(x)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        out = torch.empty_like(x)
        _call(x, "relu_square_backward", x.numel(), x, grads[0].contiguous(), out)
        return out


def relu_square(x: Tensor) -> Tensor:
    """max(x, 0)^2 (So et al., 2021), of any shape."""
    return _ReluSquare.apply(x)


class _AddGated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, v: Tensor, gate: Tensor, embedding: Tensor) -> Tensor:
        v, gate, embedding = v.contiguous(), gate.contiguous(), embedding.contiguous()
        out = torch.empty_like(v)
        _call(v, "add_gated", gate.numel(), v.size(-1), v, gate, embedding, out)
        ctx.save_for_backward(gate, embedding)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, ...]:
        gate, embedding = ctx.saved_tensors
        grad, grad_gate, grad_embedding = grads[0].contiguous(), torch.empty_like(gate), torch.empty_like(embedding)
        _call(grad, "add_gated_backward", gate.numel(), grad.size(-1), gate, embedding, grad, grad_gate, grad_embedding)
        return grad, grad_gate, grad_embedding


def add_gated(v: Tensor, gate: Tensor, embedding: Tensor) -> Tensor:
    """v + 3 sigmoid(gate) * embedding: v and embedding (..., K), gate (...) -> (..., K)."""
    return _AddGated.apply(v, gate, embedding)


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out, logsumexp = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, is_causal=True)
        ctx.save_for_backward(q, k, v, out, logsumexp)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        logsumexp, shape = ctx.saved_tensors[4].contiguous(), grads[0].shape
        q, k, v, out, grad = (x.contiguous().flatten(0, 1) for x in (*ctx.saved_tensors[:4], *grads))  # (B * H, T, K)
        along = torch.linalg.vecdot(grad.float(), out.float())  # (B * H, T)
        weights, grad_weights = (product(x, y.mT, half="lower result") for x, y in ((q, k), (grad, v)))  # (B * H, T, T), still scores
        _call(q, "attention_backward", len(q), q.size(1), q.size(2) ** -0.5, logsumexp, along, weights, grad_weights)
        grad_q = product(grad_weights, k, half="lower left")
        grad_k, grad_v = (product(x.mT, y, half="upper left") for x, y in ((grad_weights, q), (weights, grad)))
        return grad_q.view(shape), grad_k.view(shape), grad_v.view(shape)


def causal_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Causal attention, each (B, H, T, K). Backward it is five products over whole rows (Dao et al., 2022, appendix B.2, without tiles).

    A CPU's matrix units are fed by products of this size, and not by torch's own backward pass.
    """
    return _Attention.apply(q, k, v)


def cross_entropy(logits: Tensor, targets: Tensor, counts: Tensor, cap: float) -> Tensor:
    """The nats of each row, times its count; `logits` become the sum's gradient in them.

    logits (N, V) before the softcap, contiguous; targets (N,) int64, of a count of 0 any; counts (N,) -> (N,) float32.
    Raises MemoryError where a row of float32 finds no room, IndexError for a target that counts and has no logit.
    """
    nats, counts = torch.empty(len(logits)), counts.float().contiguous()
    targets = torch.where(counts == 0, 0, targets.long()).contiguous()
    failed = _call(logits, "cross_entropy", *logits.shape, cap, logits, targets, counts, nats)
    if failed == 1:
        raise MemoryError(f"no room for a row of {logits.size(1)} logits")
    if failed:
        raise IndexError(f"a target is outside of the {logits.size(1)} logits")
    return nats
