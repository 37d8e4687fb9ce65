"""Muon against a slow reference, matrix by matrix in float64, written from the recipe; AdamW against torch's."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from nanochat.distributed.ranks import single
from nanochat.model.build import build_model
from nanochat.model.loss import cross_entropy_sum
from nanochat.model.optim import POLAR_EXPRESS, LearningRates, MuonAdamW, orthogonalize, round_stochastically
from nanochat.model.scaling import GPTConfig
from nanochat.model.transformer import Transformer

BATCH = 2**17  # half of every learning rate
ROOT = math.sqrt(BATCH / 2**19)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def tiny_model(**changes: Any) -> Transformer:
    """Every shape of matrix: square, tall (the MLP's fc), wide (its proj and, with one KV head, k and v), and the tiny gates."""
    shape = {"depth": 3, "dim": 32, "n_head": 2, "n_kv_head": 1, "head_dim": 16, "vocab_size": 70, "max_seq_len": 32}
    model = build_model(GPTConfig(**shape | changes))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(torch.randn(weight.shape, generator=generator) * 0.3)
    return model


def backward(model: Transformer, step: int) -> None:
    ids = torch.randint(0, 70, (2, 33), generator=torch.Generator().manual_seed(step))
    (cross_entropy_sum(model, model(ids[:, :-1]), ids[:, 1:]) / 64).backward()


class SlowMuon:
    """Section 2 of the recipe, in its order, for one matrix, with one vector at a time where that is clearer."""

    def __init__(self, weight: Tensor):
        self.weight = weight.detach().double().clone()
        self.momentum = torch.zeros_like(self.weight)
        self.variance = torch.zeros(max(weight.shape), dtype=torch.float64)

    def step(self, gradient: Tensor, lr: float, beta: float, weight_decay: float) -> None:
        rows, columns = self.weight.shape
        # momentum as a running mean, Nesterov
        self.momentum = beta * self.momentum + (1 - beta) * gradient.double()
        x = (1 - beta) * gradient.double() + beta * self.momentum
        # rows of equal length (one that no gradient reached stays zero), then a Frobenius norm of 1 / 1.01
        x = torch.stack([row / row.norm() if row.any() else row for row in x])
        x = x / (1.01 * x.norm())
        # Polar Express, and a Frobenius norm of sqrt(min(rows, columns))
        for a, b, c in POLAR_EXPRESS:
            gram = x @ x.T
            x = a * x + b * gram @ x + c * gram @ gram @ x
        x = x * math.sqrt(min(rows, columns)) / x.norm()
        # one variance for each vector along the longer side; the norm stays what it was
        vectors = x if rows >= columns else x.T
        self.variance = 0.9 * self.variance + 0.1 * torch.stack([vector.square().mean() for vector in vectors])
        scaled = torch.stack([vector / max(variance, 1e-10) ** 0.5 for vector, variance in zip(vectors, self.variance, strict=True)])
        scaled = scaled * x.norm() / scaled.norm()
        update = scaled if rows >= columns else scaled.T
        # decay only where the update already shrinks the weight
        lr = lr * math.sqrt(max(1, rows / columns))
        agree = update * self.weight >= 0
        self.weight = self.weight - lr * update - lr * weight_decay * torch.where(agree, self.weight, 0.0)


@pytest.mark.usefixtures("fused_operations")
def test_muon_equals_a_slow_reference() -> None:
    model = tiny_model()
    optimizer = MuonAdamW(model, LearningRates(), BATCH, single())
    slow = {name: SlowMuon(weight) for name, weight in model.named_parameters() if name.startswith("blocks")}
    assert {tuple(one.weight.shape) for one in slow.values()} == {(32, 32), (16, 32), (128, 32), (32, 128), (1, 12)}
    for step in range(4):
        backward(model, step)
        lr, beta, weight_decay = 1.0 - 0.1 * step, 0.85 + 0.02 * step, 0.3
        for name, weight in model.named_parameters():
            if name in slow:
                assert weight.grad is not None
                slow[name].step(weight.grad, 0.02 * ROOT * lr, beta, weight_decay)
        optimizer.step(lr=lr, beta=beta, weight_decay=weight_decay)
        optimizer.zero_grad()
    for name, weight in model.named_parameters():
        if name in slow:
            torch.testing.assert_close(
                weight.detach().double(), slow[name].weight, rtol=1e-4, atol=1e-5, msg=lambda text, n=name: f"{n}: {text}"
            )


def test_adamw_equals_torchs() -> None:
    """Each group with the recipe's learning rate, betas and weight decay."""
    model, width = tiny_model(), (32 / 768) ** -0.5
    recipe = {
        "head": (0.008 * width * ROOT, (0.8, 0.96), 0.01),
        "embed": (0.3 * width * ROOT, (0.8, 0.995), 0.001),
        "value_embeds": (0.15 * width * ROOT, (0.8, 0.995), 0.01),
        "resid_lambdas": (0.005 * ROOT, (0.8, 0.95), 0.05),
        "x0_lambdas": (0.5 * ROOT, (0.96, 0.95), 0.0),
        "smear_gate": (0.2, (0.8, 0.95), 0.0),
        "smear_lambda": (0.2, (0.8, 0.95), 0.0),
        "backout_lambda": (0.2, (0.8, 0.95), 0.0),
    }
    copies = {name: weight.detach().clone() for name, weight in model.named_parameters() if not name.startswith("blocks")}
    groups = [
        {
            "params": [copy],
            "lr": rate,
            "betas": betas,
            "weight_decay": decay,
            "eps": 1e-8 if name.endswith(("lambda", "lambdas")) else 1e-10,
        }
        for name, copy in copies.items()
        for rate, betas, decay in [recipe[name.split(".")[0]]]
    ]
    reference = torch.optim.AdamW(groups)
    peaks = [group["lr"] for group in reference.param_groups]
    optimizer = MuonAdamW(model, LearningRates(), BATCH, single())
    for step in range(5):
        backward(model, step)
        for name, weight in model.named_parameters():
            if name in copies:
                copies[name].grad = weight.grad.clone()  # type: ignore[union-attr]
        factor = 1 - 0.15 * step
        for group, peak in zip(reference.param_groups, peaks, strict=True):
            group["lr"] = peak * factor
        reference.step()
        optimizer.step(lr=factor)
        optimizer.zero_grad()
    for name, weight in model.named_parameters():
        if name in copies:
            torch.testing.assert_close(weight.detach(), copies[name], rtol=1e-4, atol=1e-5)


def test_rounding_does_not_move_a_new_models_scalars() -> None:
    """Its blocks add nothing yet and the norm undoes any scale, so these gradients are rounding: other device batches, other signs."""
    model = build_model(tiny_model().config)
    optimizer = MuonAdamW(model, LearningRates(), 2**19, single())
    backward(model, 0)
    scalars = {name: weight for name, weight in model.named_parameters() if name in ("resid_lambdas", "x0_lambdas", "backout_lambda")}
    before = {name: weight.detach().clone() for name, weight in scalars.items()}
    optimizer.step()
    for (name, weight), rate in zip(scalars.items(), (0.005, 0.5, 0.2), strict=True):
        assert (weight - before[name]).abs().max() < 0.1 * rate, name


SHAPES = [(48, 48), (192, 48), (48, 192), (1, 12), (3, 12), (12, 1), (2, 2), (1, 1)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_orthogonalize_gives_singular_values_near_one(shape: tuple[int, int]) -> None:
    x = torch.randn(5, *shape, generator=torch.Generator().manual_seed(2)) * 1e-4
    out = orthogonalize(x)
    values = torch.linalg.svdvals(out)
    assert out.shape == x.shape and out.dtype == torch.float32
    assert (values > 0.6).float().mean() > 0.95 and values.max() < 1.25  # a random square matrix has a value or two near zero
    assert values.square().mean(-1) == pytest.approx(torch.ones(5), rel=1e-4)
    assert ((out * x).sum((-2, -1)) > 0).all()  # it still points where the gradient did


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("size", [0.0, 1e-38, 1e-25, 1e-12, 1.0, 1e15])
def test_orthogonalize_is_finite_for_any_size(shape: tuple[int, int], size: float) -> None:
    x = torch.randn(2, *shape, generator=torch.Generator().manual_seed(3)) * size
    for dtype in (torch.float32, torch.bfloat16):
        out = orthogonalize(x, dtype)
        assert out.isfinite().all() and out.dtype == torch.float32
        assert size or not out.any()


def test_orthogonalize_of_a_singular_matrix_is_finite() -> None:
    x = torch.randn(1, 24, 1) @ torch.randn(1, 1, 24)
    x[0, 5] = 0  # a row that got no gradient
    out = orthogonalize(x)
    assert out.isfinite().all() and not out[0, 5].any()


def test_bfloat16_orthogonalization_stays_close() -> None:
    """The polynomial's terms are added inside its products, before they are rounded; added after, the error is two to three times this."""
    x = torch.randn(4, 256, 128, generator=torch.Generator().manual_seed(4))
    exact, rough = orthogonalize(x), orthogonalize(x, torch.bfloat16)
    assert (rough - exact).norm() < 0.025 * exact.norm()


def test_zero_gradients_change_nothing_and_break_nothing() -> None:
    """A value embedding's gate with no input, or a whole step without a target: zeros, or no gradient at all."""
    model = tiny_model()
    optimizer = MuonAdamW(model, LearningRates(), BATCH, single())
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    for step in range(2):
        for index, weight in enumerate(model.parameters()):
            weight.grad = torch.zeros_like(weight) if (index + step) % 2 else None
        optimizer.step(weight_decay=0.0)
    for name, weight in model.named_parameters():
        if name.startswith("blocks"):
            assert torch.equal(weight, before[name]), name
        else:  # AdamW's own weight decay, tiny as it is
            torch.testing.assert_close(weight.detach(), before[name], rtol=0.02, atol=1e-6)
    backward(model, 0)
    optimizer.step(weight_decay=0.1)
    assert all(weight.isfinite().all() for weight in model.parameters())


def test_a_saved_state_goes_on_exactly() -> None:
    def train(model: Transformer, optimizer: MuonAdamW, steps: range) -> None:
        for step in steps:
            backward(model, step)
            optimizer.step(weight_decay=0.1)
            optimizer.zero_grad()

    straight, stopped = tiny_model(), tiny_model()
    train(straight, MuonAdamW(straight, LearningRates(), BATCH, single()), range(6))
    first = MuonAdamW(stopped, LearningRates(), BATCH, single())
    train(stopped, first, range(3))
    saved = {key: value.clone() for key, value in first.state_tensors().items()}
    second = MuonAdamW(stopped, LearningRates(), BATCH, single())
    second.load_state(lambda name, kind: saved[f"{name}|{kind}|0"], first.steps)
    train(stopped, second, range(3, 6))
    for one, other in zip(straight.parameters(), stopped.parameters(), strict=True):
        assert torch.equal(one, other)


def test_rounding_is_unbiased_and_to_a_neighbour() -> None:
    generator = torch.Generator().manual_seed(0)
    value = 1 + 2**-7 / 4  # a quarter of the way from 1 to the next bfloat16
    rounded = round_stochastically(torch.full((100_000,), value), generator)
    assert set(rounded.tolist()) == {1.0, 1 + 2**-7}
    assert rounded.mean().item() == pytest.approx(value, abs=5e-5)
    exact = torch.tensor([0.0, -1.5, torch.inf, -torch.inf, 2.0**-120])
    assert torch.equal(round_stochastically(exact.clone(), generator), exact)


def table_model() -> tuple[Transformer, MuonAdamW]:
    """A model whose tables are bfloat16, as on a GPU."""
    model = tiny_model()
    for table in model.tables():
        table.data = table.data.bfloat16()
        table.grad_dtype = torch.float32
    return model, MuonAdamW(model, LearningRates(), BATCH, single())


def test_a_bfloat16_tables_step_is_adamws_in_float32() -> None:
    (model, optimizer), exact = table_model(), tiny_model()
    reference = MuonAdamW(exact, LearningRates(), BATCH, single())
    with torch.no_grad():
        for ours, wanted in zip(model.tables(), exact.tables(), strict=True):
            wanted.copy_(ours)
    for step in range(3):
        for ours, wanted in zip(model.parameters(), exact.parameters(), strict=True):
            wanted.grad = torch.randn(wanted.shape, generator=torch.Generator().manual_seed(step))
            ours.grad = wanted.grad.clone()
        optimizer.step(lr=0.1)
        reference.step(lr=0.1)
    for ours, wanted in zip(model.tables(), exact.tables(), strict=True):
        assert ours.dtype == torch.bfloat16
        assert (ours.float() - wanted).norm() <= 2**-7 * wanted.norm()
    assert {state.dtype for name, state in optimizer.state_tensors().items() if name.startswith("embed")} == {torch.bfloat16}


def test_the_momentum_has_the_tables_type_and_its_arithmetic_is_float32() -> None:
    """Twenty steps: the bfloat16 momentum stays as near to a float64 mean as its digits allow."""
    model, optimizer = table_model()
    means = {name: torch.zeros_like(weight, dtype=torch.float64) for name, weight in model.named_parameters() if name.startswith("blocks")}
    for step in range(20):
        for index, (name, weight) in enumerate(model.named_parameters()):
            generator = torch.Generator().manual_seed(1000 * index + step)
            weight.grad = 1 + 0.1 * torch.randn(weight.shape, generator=generator)
            if name in means:
                means[name].lerp_(weight.grad.double(), 0.05)
        optimizer.step(lr=0.01, beta=0.95)
    states = {name.split("|")[0]: state for name, state in optimizer.state_tensors().items() if "|momentum|" in name}
    assert set(states) == set(means) and {state.dtype for state in states.values()} == {torch.bfloat16}
    for name, mean in means.items():
        assert (states[name].double() - mean).norm() < 2**-7 * mean.norm()
    exact = MuonAdamW(tiny_model(), LearningRates(), BATCH, single())
    assert {state.dtype for state in exact.state_tensors().values()} == {torch.float32}


def test_updates_below_bfloat16s_digits_add_up() -> None:
    """A hundred steps of a thousandth each: to the nearest, none of them would move a weight of 1."""
    model, optimizer = table_model()
    table = model.embed.weight
    with torch.no_grad():
        table.fill_(1.0)
    for _ in range(100):
        model.zero_grad()
        table.grad = torch.ones_like(table, dtype=torch.float32)
        optimizer.step(lr=0.001 / (0.3 * ROOT * (32 / 768) ** -0.5))
    assert table.float().mean().item() == pytest.approx(0.9, abs=0.01)


def test_resume_of_bfloat16_tables_is_exact_and_reads_float32_states() -> None:
    def steps(model: Transformer, optimizer: MuonAdamW, first: int, last: int) -> None:
        for step in range(first, last):
            for weight in model.parameters():
                weight.grad = torch.randn(weight.shape, generator=torch.Generator().manual_seed(step))
            optimizer.step()

    whole, optimizer = table_model()
    steps(whole, optimizer, 0, 2)
    saved = {name: state.clone().float() for name, state in optimizer.state_tensors().items()}  # as an old run's, in float32
    (again, resumed), weights = table_model(), {name: weight.detach().float() for name, weight in whole.named_parameters()}
    with torch.no_grad():
        for name, weight in again.named_parameters():
            weight.copy_(weights[name])
    resumed.load_state(lambda name, kind: saved[f"{name}|{kind}|0"], 2)
    steps(whole, optimizer, 2, 4)
    steps(again, resumed, 2, 4)
    for ours, wanted in zip(again.parameters(), whole.parameters(), strict=True):
        assert torch.equal(ours, wanted)
