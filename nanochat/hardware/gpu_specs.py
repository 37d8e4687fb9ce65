"""What cards can do, with where each figure comes from: for a plan on a card that is not in this machine."""

import dataclasses
import re

from nanochat.errors import UsageError

GB = 10**9
GIB = 2**30
ESTIMATE = "estimate: 0.37 of the data sheet's peak"
EXPECTED = 0.37  # of the peak that training achieves, where nobody has published what it does
PLANNED = 0.75  # of a published figure: those runs' kernels are tuned to the card


@dataclasses.dataclass(frozen=True)
class CardType:
    """A card: bytes of memory; operations a second (bfloat16, dense), the data sheet's peak and what is planned with; dollars an hour."""

    name: str
    memory: int
    peak: float
    flops: float
    source: str  # of `flops`
    dollars: float | None = None  # about, where it is rented out; prices change
    bf16: bool = True


def _card(name: str, gibibytes: int, peak: float, published: float = 0.0, source: str = "", dollars: float | None = None) -> CardType:
    flops = PLANNED * published if published else EXPECTED * peak
    return CardType(name, gibibytes * GIB, peak, flops, f"three quarters of {source}" if published else ESTIMATE, dollars)


# Peaks are the vendor's data sheets' (with 32-bit accumulation on GeForce). Published figures are tokens a second times the
# operations of a token of that run.
CARDS = (
    CardType(
        "NVIDIA GeForce RTX 4050 Laptop GPU",
        6 * GIB,
        35e12,
        9.8e12,
        "estimate: a guess, d8 at 28K and d12 at 11K tokens/s; nobody published any",
    ),
    _card("NVIDIA GeForce RTX 3060", 12, 25e12),
    _card("NVIDIA GeForce RTX 4060", 8, 30e12),
    _card("NVIDIA GeForce RTX 4060 Laptop GPU", 8, 28e12),
    _card("NVIDIA GeForce RTX 4070", 12, 58e12, 49e12, "a published d12 at 55.7K tokens/s"),
    _card("NVIDIA GeForce RTX 4080", 16, 97e12),
    _card("NVIDIA GeForce RTX 3090", 24, 71e12, 34e12, "a published d12 at 40K tokens/s", 0.45),
    _card("NVIDIA GeForce RTX 4090", 24, 165e12, 107e12, "a published GPT-2 small at 130K tokens/s", 0.7),
    _card("NVIDIA GeForce RTX 5090", 32, 209e12, dollars=0.9),
    _card("NVIDIA L4", 24, 121e12, dollars=0.45),
    _card("NVIDIA L40S", 48, 362e12, dollars=0.9),
    _card("NVIDIA A100-SXM4-40GB", 40, 312e12, 230e12, "published runs of eight at 315K tokens/s", 1.5),
    _card("NVIDIA A100-SXM4-80GB", 80, 312e12, 230e12, "published runs of eight at 315K tokens/s", 1.8),
    _card("NVIDIA H100 80GB HBM3", 80, 989e12, 470e12, "a published d26 on eight at 630K tokens/s", 3.0),
    _card("NVIDIA H200", 141, 989e12, 470e12, "what is published of the H100, whose chip it has", 3.6),
)
PROFILE_CARDS = {"rtx4050": CARDS[0].name, "rtx4090": "NVIDIA GeForce RTX 4090", "h100x8": "NVIDIA H100 80GB HBM3"}


def usable_bytes(memory: int) -> int:
    """What a card of `memory` bytes leaves to training: 5.2 of 6 GiB, 22.5 of 24, 76 of 80 (in 1e9 bytes)."""
    return int(0.9 * memory - 0.6e9)


def _words(text: str) -> list[str]:
    """The words with a number in them, the model's first: ["h100", "80gb", "hbm3"]."""
    return re.findall(r"[a-z]*\d+[a-z]*", text.lower().replace("rtx", " "))


def known(name: str) -> CardType | None:
    """The card of the table that a driver's `name` stands for; of the same model, the one with the most words in common."""
    wanted = _words(name)
    fitting = [card for card in CARDS if wanted and _words(card.name)[0] == wanted[0]]
    laptop = "laptop" in name.lower()
    distance = {card: (len({*_words(card.name)} ^ {*wanted}), ("laptop" in card.name.lower()) != laptop) for card in fitting}
    return min(fitting, key=distance.__getitem__, default=None)


def named(name: str) -> CardType:
    """The card that a user calls `name` (4070, h100, rtx 4090). Raises UsageError that lists them."""
    found = known(name)
    if found is None:
        listed = ", ".join(card.name.removeprefix("NVIDIA ").removeprefix("GeForce ") for card in CARDS)
        raise UsageError(f"no card {name!r} in the table", f"one of: {listed}")
    return found
