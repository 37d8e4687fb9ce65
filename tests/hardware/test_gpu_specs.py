"""The table of cards: each figure has a source, and people's and drivers' names find the right row."""

import pytest

from nanochat.errors import UsageError
from nanochat.hardware import gpu_specs as cards
from nanochat.hardware.gpu_specs import CARDS, known, named


def test_each_figure_has_a_source() -> None:
    for card in CARDS:
        assert "published" in card.source or card.source.startswith("estimate"), card
        assert 0.1 * card.peak < card.flops < 0.9 * card.peak, card
        assert card.memory % cards.GIB == 0
    assert set(cards.PROFILE_CARDS.values()) <= {card.name for card in CARDS}


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("NVIDIA H100 80GB HBM3", "NVIDIA H100 80GB HBM3"),
        ("NVIDIA H100 PCIe", "NVIDIA H100 80GB HBM3"),
        ("NVIDIA GeForce RTX 4060 Laptop GPU", "NVIDIA GeForce RTX 4060 Laptop GPU"),
        ("NVIDIA GeForce RTX 4060", "NVIDIA GeForce RTX 4060"),
        ("NVIDIA A100-SXM4-40GB", "NVIDIA A100-SXM4-40GB"),
        ("4070", "NVIDIA GeForce RTX 4070"),
        ("rtx 4090", "NVIDIA GeForce RTX 4090"),
        ("h100", "NVIDIA H100 80GB HBM3"),
        ("RTX4050", "NVIDIA GeForce RTX 4050 Laptop GPU"),
    ],
)
def test_names(name: str, found: str) -> None:
    assert named(name).name == found


@pytest.mark.parametrize("name", ["GeForce GTX 1080", "nothing", "", "NVIDIA"])
def test_unknown_names(name: str) -> None:
    assert known(name) is None
    with pytest.raises(UsageError, match="no card") as raised:
        named(name)
    assert "RTX 4070" in raised.value.hint
