"""Muon for the matrices and AdamW for the rest, on one rank or several.

With several ranks, gradients are averaged and each rank updates its own part (Rajbhandari et al., 2020, stage 2): an equal number of
the matrices of each shape, and a slice of rows of each large table. The updated weights are then gathered. `Communicator` is the
interface for these exchanges.
"""

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from nanochat.kernels.products import product
from nanochat.model.scaling import batch_lr_scale, width_lr_scale
from nanochat.model.transformer import Transformer

# Polar Express (Amsel et al., 2025, arXiv 2505.16932): five steps, safety 2e-2, cushion 2.
POLAR_EXPRESS = (
    (8.156554524902461, -22.48329292557795, 15.878769915207462),
    (4.042929935166739, -2.808917465908714, 0.5000178451051316),
    (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
    (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
    (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
)
NORMUON_BETA2 = 0.9
ADAM_EPS = 1e-10
ROUNDED_ELEMENTS = 2**21  # of a bfloat16 table, cast at once: 8 MB for each of some five float32 tensors
SCALAR_EPS = 1e-8  # a new model's scalars have gradients that are only rounding errors (1e-10); Adam would make full steps of them


class Communicator(Protocol):
    """The optimizer's interface to the ranks, implemented by nanochat/distributed/ranks.py."""

    @property
    def rank(self) -> int:
        """This process's rank, from 0."""
        ...

    @property
    def world_size(self) -> int:
        """The number of processes."""
        ...

    def all_reduce_mean(self, tensor: Tensor) -> Tensor:
        """The mean over the ranks, in place."""
        ...

    def reduce_scatter_mean(self, tensor: Tensor) -> Tensor:
        """This rank's equal share, along the first axis, of the mean over the ranks."""
        ...

    def all_gather(self, share: Tensor) -> Tensor:
        """The ranks' shares, concatenated along the first axis."""
        ...


@dataclass(frozen=True)
class LearningRates:
    """Peak learning rates of the groups, before the scaling by batch and width."""

    matrix: float = 0.02
    embedding: float = 0.3
    value_embedding: float = 0.15
    unembedding: float = 0.008
    scalar: float = 0.5


def orthogonalize(updates: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """The approximately nearest semi-orthogonal matrices: (n, rows, columns) -> same shape, Frobenius norm sqrt(min(rows, columns)).

    Rows are first scaled to equal length, then five Polar Express steps follow, all in `dtype`: bfloat16 suffices if the device has fast
    units for it. A matrix of zeros stays zero.
    """
    x = updates if dtype == torch.float16 else updates.to(dtype)  # float16 has no exponents for gradients, but for rows of length 1
    x = (x / x.norm(dim=-1, keepdim=True).clamp_min(1e-10)).to(dtype)
    wide = x.size(-2) <= x.size(-1)
    if not wide:
        x = x.mT
    x = x / (x.norm(dim=(-2, -1), keepdim=True) * 1.01 + 1e-6)
    for a, b, c in POLAR_EXPRESS:
        gram = product(x, x.mT, half="symmetric", low_precision=True)
        # a x + (b gram + c gram^2) x. The products add the other terms before rounding, which cuts bfloat16's error to a third.
        x = product(product(gram, gram, gram, beta=b, alpha=c, half="symmetric", low_precision=True), x, x, beta=a, low_precision=True)
    if not wide:
        x = x.mT
    x = x.float()
    size = min(x.size(-2), x.size(-1)) ** 0.5
    return x.mul_(size / x.norm(dim=(-2, -1), keepdim=True).clamp_min(1e-10))


def muon_update(
    weights: Tensor,
    grads: Tensor,
    momentum: Tensor,
    variance: Tensor,
    *,
    lr: float,
    beta: float,
    weight_decay: float,
    dtype: torch.dtype = torch.float32,
) -> None:
    """One Muon step on stacked matrices, in place: weights, grads, momentum (n, R, C), variance (n, R, 1) or (n, 1, C).

    Nesterov momentum as a running mean, orthogonalisation in `dtype`, NorMuon's variance (Li et al., 2025) with one
    value for each index of the longer side, and weight decay only where the update and the weight have the same sign.
    The arithmetic is float32; a bfloat16 momentum is rounded to the nearest.
    """
    mean = momentum.float().lerp_(grads, 1 - beta)  # the momentum itself if it is float32
    momentum.copy_(mean)
    update = orthogonalize(grads.lerp(mean, beta), dtype)
    del mean  # the memory of a copy
    shorter = -1 if variance.size(-1) == 1 else -2
    square = update.square().mean(dim=shorter, keepdim=True)
    variance.lerp_(square, 1 - NORMUON_BETA2)
    scale = variance.clamp_min(1e-10).rsqrt()
    before = square.sum(dim=(-2, -1), keepdim=True).sqrt()
    after = (square * scale.square()).sum(dim=(-2, -1), keepdim=True).sqrt()
    update *= scale * (before / after.clamp_min(1e-10))
    if weight_decay:
        update.add_(weights.masked_fill(update * weights < 0, 0.0), alpha=weight_decay)
    weights.add_(update, alpha=-lr * max(1.0, weights.size(-2) / weights.size(-1)) ** 0.5)


def round_stochastically(values: Tensor, generator: torch.Generator) -> Tensor:
    """`values` (float32, overwritten) with bfloat16's digits: one of the two nearest such numbers, each as likely as the other is far."""
    bits = values.view(torch.int32)
    bits += torch.empty_like(bits).random_(0, 2**16, generator=generator)
    bits &= -(2**16)
    return values


class _MatrixGroup:
    """Matrices of one shape under Muon, whose momentum is `stored`; this rank owns `names[first:first + len(momentum)]`."""

    def __init__(self, names: list[str], weights: list[Tensor], ranks: Communicator, dtype: torch.dtype, stored: torch.dtype):
        self.names, self.weights, self.ranks, self.dtype = names, weights, ranks, dtype
        self.share = -(-len(weights) // ranks.world_size)  # matrices that each rank owns, the last ones padding
        self.first = min(self.share * ranks.rank, len(weights))
        owned = weights[self.first : self.first + self.share]
        rows, columns = weights[0].shape
        device = weights[0].device
        self.momentum = torch.zeros(len(owned), rows, columns, device=device, dtype=stored)
        self.variance = torch.zeros((len(owned), rows, 1) if rows >= columns else (len(owned), 1, columns), device=device)

    def step(self, lr: float, beta: float, weight_decay: float) -> None:
        grads = torch.stack([_gradient(weight) for weight in self.weights])
        owned = self.weights[self.first : self.first + self.share]
        if self.ranks.world_size > 1:
            padding = self.share * self.ranks.world_size - len(grads)
            grads = self.ranks.reduce_scatter_mean(torch.cat((grads, grads.new_zeros(padding, *grads.shape[1:]))))
        updated = torch.empty_like(grads)
        own = updated[: len(owned)]
        updated[len(owned) :].zero_()  # padding
        if owned:
            torch.stack(list(owned), out=own)
            options = {"lr": lr, "beta": beta, "weight_decay": weight_decay}
            muon_update(own, grads[: len(owned)], self.momentum, self.variance, dtype=self.dtype, **options)
        if self.ranks.world_size > 1:
            updated = self.ranks.all_gather(updated)
        for weight, value in zip(self.weights, updated, strict=False):
            weight.copy_(value)

    def state(self) -> Iterable[tuple[str, str, int, Tensor]]:
        for index in range(len(self.momentum)):
            name = self.names[self.first + index]
            yield name, "momentum", 0, self.momentum[index]
            yield name, "variance", 0, self.variance[index]


class _TensorGroup:
    """One tensor under AdamW. Each rank owns a slice of rows of a large table, and all of any other tensor.

    The moments have the weight's type, and the arithmetic is float32: of a bfloat16 table a few rows at a time are cast, updated, and
    rounded stochastically, so that updates smaller than bfloat16's digits add up (Zamirai et al., 2020, arXiv 2010.06192).
    """

    def __init__(self, name: str, weight: Tensor, ranks: Communicator, lr: float, betas: tuple[float, float], weight_decay: float):
        self.name, self.weight, self.ranks = name, weight, ranks
        self.lr, self.betas, self.weight_decay = lr, betas, weight_decay
        self.eps = SCALAR_EPS if weight.dim() == 1 else ADAM_EPS
        self.sliced = ranks.world_size > 1 and weight.dim() == 2 and len(weight) % ranks.world_size == 0
        share = len(weight) // ranks.world_size if self.sliced else len(weight)
        self.first = share * ranks.rank if self.sliced else 0
        self.own = slice(self.first, self.first + share)
        self.mean, self.square = torch.zeros_like(weight[self.own]), torch.zeros_like(weight[self.own])

    def step(self, step: int, factor: float) -> None:
        grad = _gradient(self.weight)
        if self.sliced:
            grad = self.ranks.reduce_scatter_mean(grad)
        elif self.ranks.world_size > 1:
            grad = self.ranks.all_reduce_mean(grad)
        own = self.weight[self.own]
        if own.dtype == torch.float32:
            self._adamw(own, grad, self.mean, self.square, step, factor)
        else:
            self._rounded_adamw(own, grad, step, factor)
        if self.sliced:
            self.weight.copy_(self.ranks.all_gather(own.contiguous()))

    def _adamw(self, weight: Tensor, grad: Tensor, mean: Tensor, square: Tensor, step: int, factor: float) -> None:
        adamw(  # Loshchilov & Hutter, 2019; fused: one pass over weight, gradient and state
            [weight],
            [grad],
            [mean],
            [square],
            [],
            [weight.new_full((), step - 1.0)],  # filled on the device: a copy from the host would synchronise
            fused=True,
            amsgrad=False,
            beta1=self.betas[0],
            beta2=self.betas[1],
            lr=self.lr * factor,
            weight_decay=self.weight_decay,
            eps=self.eps,
            maximize=False,
        )

    def _rounded_adamw(self, own: Tensor, grad: Tensor, step: int, factor: float) -> None:
        """AdamW's step for a bfloat16 table. The rounding depends on the step, the table and its first row, so that resume is exact."""
        seed = int.from_bytes(hashlib.blake2b(f"{self.name}|{self.first}|{step}".encode(), digest_size=6).digest(), "big")
        generator = torch.Generator(own.device).manual_seed(seed)
        rows = max(ROUNDED_ELEMENTS // own.size(1), 1)
        stored = (own, self.mean, self.square)
        for parts in zip(*(tensor.split(rows) for tensor in (*stored, grad)), strict=True):
            weight, mean, square = (part.float() for part in parts[:3])
            self._adamw(weight, parts[3], mean, square, step, factor)
            for part, value in zip(parts, (weight, mean, square), strict=False):
                part.copy_(round_stochastically(value, generator))

    def state(self) -> Iterable[tuple[str, str, int, Tensor]]:
        if self.sliced or self.ranks.rank == 0:
            yield self.name, "mean", self.first, self.mean
            yield self.name, "square", self.first, self.square


def _gradient(weight: Tensor) -> Tensor:
    """The gradient, or zeros for a weight without one, because every rank takes part in the exchange."""
    return weight.grad if weight.grad is not None else torch.zeros_like(weight, dtype=torch.float32)


class MuonAdamW:
    """The optimizer of a model. `batch` is the tokens per step; it scales all learning rates by sqrt(batch / 2^19)."""

    def __init__(self, model: Transformer, rates: LearningRates, batch: int, ranks: Communicator):
        self.model = model
        self.steps = 0
        scale = batch_lr_scale(batch)
        table_scale = scale * width_lr_scale(model.config.dim)
        self.matrix_lr = rates.matrix * scale
        adam = {  # learning rate, betas, weight decay
            "head": (rates.unembedding * table_scale, (0.8, 0.96), 0.01),
            "embed": (rates.embedding * table_scale, (0.8, 0.995), 0.001),
            "value_embeds": (rates.value_embedding * table_scale, (0.8, 0.995), 0.01),
            "resid_lambdas": (rates.scalar * 0.01 * scale, (0.8, 0.95), 0.05),
            "x0_lambdas": (rates.scalar * scale, (0.96, 0.95), 0.0),
            "smear_gate": (rates.scalar * 0.4, (0.8, 0.95), 0.0),
            "smear_lambda": (rates.scalar * 0.4, (0.8, 0.95), 0.0),
            "backout_lambda": (rates.scalar * 0.4, (0.8, 0.95), 0.0),
            "gains": (rates.scalar * 0.01 * scale, (0.8, 0.95), 0.0),
        }
        shapes: dict[torch.Size, list[str]] = {}
        self.tensors: list[_TensorGroup] = []
        parameters = dict(model.named_parameters())
        for name, weight in parameters.items():
            group = "gains" if name.endswith(".gain") else name.split(".")[0]
            if group == "blocks":
                shapes.setdefault(weight.shape, []).append(name)
            else:
                self.tensors.append(_TensorGroup(name, weight, ranks, *adam[group]))
        types = model.compute_dtype, model.embed.weight.dtype  # momentum is stored like the tables
        self.matrices = [_MatrixGroup(names, [parameters[name] for name in names], ranks, *types) for names in shapes.values()]

    @torch.no_grad()
    def step(self, *, lr: float = 1.0, beta: float = 0.95, weight_decay: float = 0.0) -> None:
        """Update every weight from its gradient; `lr` multiplies all learning rates, `beta` and `weight_decay` are Muon's."""
        self.steps += 1
        for tensor in self.tensors:
            tensor.step(self.steps, lr)
        for group in self.matrices:
            group.step(self.matrix_lr * lr, beta, weight_decay)

    def zero_grad(self) -> None:
        """Drop the gradients."""
        self.model.zero_grad(set_to_none=True)

    def state_tensors(self) -> dict[str, Tensor]:
        """This rank's state, "name|state|first row" -> tensor, in a form that is independent of the number of ranks."""
        groups: list[_TensorGroup | _MatrixGroup] = [*self.tensors, *self.matrices]
        return {f"{name}|{kind}|{first}": tensor for group in groups for name, kind, first, tensor in group.state()}

    def load_state(self, read: Callable[[str, str], Tensor], steps: int) -> None:
        """Load a saved state; `read(name, state)` returns the whole tensor of all ranks."""
        self.steps = steps
        for tensor in self.tensors:
            tensor.mean.copy_(read(tensor.name, "mean")[tensor.own])
            tensor.square.copy_(read(tensor.name, "square")[tensor.own])
        for group in self.matrices:
            for name, kind, _, state in group.state():
                state.copy_(read(name, kind))
