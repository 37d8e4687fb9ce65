"""The products of products.c against float64: shapes, strides, batches, halves, any number of threads, NaN, and a whole training step."""

import os
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from nanochat.distributed.ranks import single
from nanochat.kernels import build as kernels
from nanochat.kernels import products, selection
from nanochat.kernels.products import HALVES, SMALLEST, product
from nanochat.model.build import build_model
from nanochat.model.loss import cross_entropy_sum
from nanochat.model.optim import LearningRates, MuonAdamW, orthogonalize
from nanochat.model.scaling import GPTConfig

FOLDER = Path(os.environ["TORCHINDUCTOR_CACHE_DIR"])
SIZES = st.sampled_from([SMALLEST, 33, 47, 96, 130, 257, 300])


@pytest.fixture(autouse=True)
def loaded(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Products.c in this process, for one test, if this processor has AVX2 and FMA, also where torch's would be used."""
    monkeypatch.setattr(products, "WIDE", 1)
    if not kernels.can_have_products():
        pytest.skip("no AVX2 and FMA here")
    assert kernels.load_products("float32", FOLDER) == ""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def laid_out(x: Tensor, how: str) -> Tensor:
    """The same numbers, elsewhere in memory."""
    if how == "columns":
        return x.mT.contiguous().mT
    if how == "rows of a wider one":
        return torch.cat((x, x), dim=-1)[..., : x.size(-1)]
    if how == "every second":
        return x.repeat_interleave(2, dim=-1)[..., ::2]
    return x


LAYOUTS = st.sampled_from(["rows", "columns", "rows of a wider one", "every second"])


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(m=SIZES, n=SIZES, k=SIZES, count=st.sampled_from([0, 1, 3]), left=LAYOUTS, right=LAYOUTS, add=st.sampled_from(["", "new", "same"]))
def test_any_shape_and_strides(m: int, n: int, k: int, count: int, left: str, right: str, add: str) -> None:
    generator = torch.Generator().manual_seed(m + n + k)
    side = (count,) if count else ()
    a, b, old = (torch.randn(*side, *shape, generator=generator) for shape in ((m, k), (k, n), (m, n)))
    wanted = 0.5 * (a.double() @ b.double()) - (2 * old.double() if add else 0)
    a, b, old = laid_out(a, left), laid_out(b, right), laid_out(old, "rows of a wider one")
    kept = old.clone()
    found = product(a, b, old if add else None, alpha=0.5, beta=-2.0, out=old if add == "same" else None)
    assert found.shape == wanted.shape
    assert (found.double() - wanted).norm() < 1e-6 * wanted.norm()
    assert (found is old) if add == "same" else torch.equal(old, kept)


@pytest.mark.parametrize("half", [half for half in HALVES if half])
@pytest.mark.parametrize("size", [SMALLEST, 100, 256, 301, 700])
def test_halves(half: str, size: int) -> None:
    """Above all that rows and columns meet where one task ends and another begins."""
    generator = torch.Generator().manual_seed(size)
    a, b = (torch.randn(2, size, size, generator=generator) for _ in range(2))
    keep = {"lower left": torch.tril, "upper left": torch.triu}.get(half, lambda x: x)
    a = keep(a)
    if half == "symmetric":
        b = a.mT
    wanted = a.double() @ b.double()
    found = product(a, b, half=half)
    if half == "lower result":
        found, wanted = found.tril(), wanted.tril()
    assert (found.double() - wanted).norm() < 1e-6 * wanted.norm()
    assert half != "symmetric" or torch.equal(found, found.mT)


def equal_products(a: Tensor, b: Tensor, low_precision: bool = False) -> Tensor:
    """What 1, 2 and 5 threads make of them, which must be the same."""
    made = []
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        made.append(product(a, b, low_precision=low_precision))
    assert all(torch.equal(made[0], each) for each in made)
    return made[0]


@pytest.mark.parametrize(("m", "n", "k"), [(64, 8200, 256), (100, 300, 8192), (1100, 40, 700)])
def test_equal_with_any_number_of_threads(m: int, n: int, k: int) -> None:
    """Wide ones are packed in several parts, deep ones summed in several."""
    a, b = torch.randn(m, k), torch.randn(k, n)
    torch.testing.assert_close(equal_products(a, b), a @ b, rtol=1e-5, atol=2e-3)


def test_nan_is_not_lost() -> None:
    a, b = torch.randn(40, 40), torch.randn(40, 40)
    a[3, 5] = torch.nan
    found = product(a, b, torch.full((40, 40), torch.nan), beta=1.0)
    assert found.isnan().all()
    assert product(a, b)[3].isnan().all()
    assert not product(a, b)[4].isnan().any()
    b[:] = torch.inf
    assert product(a, torch.zeros_like(b)).isnan().sum() == 40


def test_what_it_leaves_to_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    library = Mock()
    library.product.return_value = 0
    monkeypatch.setattr(products, "_libraries", {"float32": library})
    monkeypatch.setattr(products, "WIDE", 64)
    wide = torch.randn(64, 64)
    assert torch.equal(product(wide, wide[:, :60].contiguous()), wide @ wide[:, :60])
    for a, b in [(wide.double(), wide.double()), (wide.bfloat16(), wide.bfloat16()), (wide[:8], wide), (wide, wide[:, :8])]:
        assert torch.equal(product(a, b), a @ b)
    assert torch.equal(product(wide, wide, out=torch.empty(64, 64).T), wide @ wide)
    assert not library.product.called
    product(wide, wide)
    assert library.product.called


def test_no_memory_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    library = Mock()
    library.product.return_value = 1
    monkeypatch.setattr(products, "_libraries", {"float32": library})
    with pytest.raises(MemoryError, match=r"\(64, 64\)"):
        product(torch.ones(64, 64), torch.ones(64, 64))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    m=SIZES,
    n=SIZES,
    k=st.sampled_from([SMALLEST, 33, 47, 256, 301, 700]),
    left=LAYOUTS,
    right=LAYOUTS,
    size=st.sampled_from([1e-9, 1.0, 1e6]),
)
def test_16_bit_integers(m: int, n: int, k: int, left: str, right: str, size: float) -> None:
    """What is rounded away is 1e-4 of the factors, of rows that are small beside others as well."""
    assert kernels.load_products("int16", FOLDER) == ""
    generator = torch.Generator().manual_seed(m + n + k)
    a, b = (torch.randn(shape, generator=generator) for shape in ((m, k), (k, n)))
    a *= torch.logspace(-3, 3, m)[:, None] * size
    exact = a.double() @ b.double()
    found = product(laid_out(a, left), laid_out(b, right), low_precision=True)
    assert not torch.equal(found, product(a, b)), "they were not used"
    assert ((found.double() - exact).norm(dim=1) < 4e-4 * exact.norm(dim=1)).all()


def test_16_bit_integers_hold_what_is_hardest_for_them() -> None:
    """Sums at the edge of 32 bits, a term that outweighs all others, zeros, numbers that are too small or not finite."""
    assert kernels.load_products("int16", FOLDER) == ""
    a, b = torch.ones(40, 512), torch.ones(512, 48)
    assert (product(a, b, low_precision=True) - 512).abs().max() < 0.05  # each block's sum is the largest that there can be
    assert (product(a, -b, low_precision=True) + 512).abs().max() < 0.05
    alternating = torch.tensor([1.0, -1.0]).repeat(256)
    assert product(a * alternating, b, low_precision=True).abs().max() < 0.05
    a[:, 3] = 1e4
    assert (product(a, b, low_precision=True) - 10511).abs().max() < 10511 * 5e-3  # the ones beside it are kept to a tenth
    a[:, 3] = 1.0
    a[0], a[1], a[2, 5], a[3, 6] = 0.0, 1e-30, torch.nan, torch.inf
    found = product(a, b, low_precision=True)
    assert not found[:2].any()
    assert found[2].isnan().all() and not found[3].isfinite().any()
    assert (found[4:] - 512).abs().max() < 0.05
    assert not product(torch.zeros(40, 64), torch.zeros(64, 40), low_precision=True).any()


def test_16_bit_integers_are_equal_with_any_number_of_threads() -> None:
    assert kernels.load_products("int16", FOLDER) == ""
    a, b = torch.randn(100, 600).T, torch.randn(100, 700)
    equal_products(a, b, low_precision=True)


def test_orthogonalize() -> None:
    """A wide, a tall and a square one: nearly orthogonal rows or columns, and what torch's products give."""
    for shape in ((3, 40, 160), (2, 160, 40), (2, 96, 96)):
        updates = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        assert kernels.load_products("float32", FOLDER) == ""
        ours = orthogonalize(updates)
        products.forget()
        assert (ours - orthogonalize(updates)).norm() < 1e-4 * ours.norm()


@pytest.mark.usefixtures("fused_operations")
def test_three_steps_of_training() -> None:
    """Losses and weights as with torch's products."""
    config = GPTConfig(depth=2, dim=64, n_head=2, n_kv_head=2, head_dim=32, vocab_size=300, max_seq_len=64)
    ids = torch.randint(0, 300, (3, 64), generator=torch.Generator().manual_seed(1))

    def train() -> tuple[list[float], Tensor]:
        model = build_model(config)
        optimizer, losses = MuonAdamW(model, LearningRates(), 192, single()), []
        for _ in range(3):
            for row in (ids[:2], ids[2:]):  # the second adds to gradients that are there
                loss = cross_entropy_sum(model, model(row[:, :-1]), row[:, 1:]) / 190
                loss.backward()  # type: ignore[no-untyped-call]
                losses.append(loss.item())
            optimizer.step()
            optimizer.zero_grad()
        return losses, torch.cat([weight.detach().flatten() for weight in model.parameters()])

    assert products.loaded("float32")
    losses, weights = train()
    products.forget()
    assert selection.loaded(torch.float32)
    expected, other = train()
    torch.testing.assert_close(losses, expected, rtol=1e-5, atol=0)
    assert (weights - other).norm() < 1e-4 * other.norm()
