"""The plan's memory against torch's allocator on the null GPU: within 3% at every setting, and what the limit must hold against it."""

import pytest

from nanochat.config import Config
from nanochat.model.scaling import count_parameters, gpt_config
from nanochat.planning.memory import RESERVED
from tests.nullgpu.machine import steps
from tests.nullgpu.settings import SETTINGS, other

WITHIN = 0.03
SMALL = ("rtx4050 trial", "d6 eager, float32")  # seconds each


def compare(name: str) -> None:
    card, request = SETTINGS[name]
    found = steps(card, timeout=3000, **request)
    print(f"{name}: planned {found['plan']['total'] / 1e9:.3f}, peak {found['peak'] / 1e9:.3f}, reserved {found['reserved'] / 1e9:.3f} GB")
    assert found["plan"]["total"] == pytest.approx(found["peak"], rel=WITHIN)
    assert found["peak"] <= found["reserved"] <= RESERVED * found["peak"] + (64 << 20)
    assert found["reserved"] <= found["cap"], "the plan says that it fits"


@pytest.mark.long
@pytest.mark.parametrize("name", SMALL)
def test_the_plans_memory_is_what_the_allocator_takes(name: str) -> None:
    compare(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in SETTINGS if name not in SMALL])
def test_the_plans_memory_at_every_setting(name: str) -> None:
    compare(name)


@pytest.mark.slow
def test_a_budget_just_below_1_recomputes_only_what_is_cheap() -> None:
    """torch's own choice below 1 moves 5% more here, and at depth 12 the peak is higher than without recomputation."""
    card, request = "h100", other(4, 16, 1024, True)
    whole, cheap = (steps(card, config=request["config"] | {"activation_memory_budget": budget}) for budget in (1.0, 0.9))
    copies = 2 * count_parameters(gpt_config(Config(**whole["config"])))["matrices"]
    assert whole["peak"] - cheap["peak"] >= 0.9 * copies
    assert cheap["triton_bytes"] <= 1.03 * whole["triton_bytes"]
