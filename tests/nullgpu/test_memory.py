"""The plan's memory against torch's allocator on the null GPU: within 3% at every setting, and what the limit must hold against it."""

import pytest

from nanochat.planning.memory import RESERVED
from tests.nullgpu.machine import steps
from tests.nullgpu.settings import SETTINGS

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
