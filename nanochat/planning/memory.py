"""The memory of training on one device by part, computed before the first step, and the largest micro-batch that fits.

On a GPU every part is a tensor that the code allocates, counted by torch's own allocator on a GPU that computes nothing (tests/nullgpu):
the peak is within 3% of it at the settings of tests/nullgpu/settings.py. On a CPU the figures were measured (docs/experiments/log.md),
within 11%.
"""

from collections import Counter
from dataclasses import dataclass
from typing import Any

from nanochat.model.scaling import CHEAP_BUDGET, GPTConfig, count_parameters, loss_rows

SAMPLE_SLOTS = 8  # batch size of samples and evaluations
RESERVED = 1.03  # memory that a GPU's allocator reserves, by what is allocated, if its segments expand


@dataclass(frozen=True)
class Kept:
    """Bytes that the forward pass keeps for the backward pass, per token and width."""

    layer: float
    window: float  # more in a layer with a window, whose keys and values are stored twice
    model: float  # of the model as a whole: embeddings, the last norm, hidden states and their gradient


# By architecture, compilation and bytes of a number on a GPU. Eager operations keep the inputs of norms and casts; the compiled ones
# compute their gradients from their outputs.
KEPT = {
    ("nanochat", "eager", 2): Kept(31.6, 6.0, 10.0),
    ("nanochat", "eager", 4): Kept(62.7, 12.0, 20.0),
    ("nanochat", "compiled", 2): Kept(22.0, 8.0, 11.0),
    ("nanochat", "compiled", 4): Kept(46.0, 16.0, 22.0),
    ("qwen3", "eager", 2): Kept(50.2, 0.0, 10.0),
    ("qwen3", "eager", 4): Kept(100.0, 0.0, 20.0),
    ("qwen3", "compiled", 2): Kept(36.0, 0.0, 11.0),
    ("qwen3", "compiled", 4): Kept(72.0, 0.0, 22.0),
}
LOGIT_BYTES = {("eager", 2): 12, ("eager", 4): 8, ("compiled", 2): 4, ("compiled", 4): 8}  # of a chunk of the loss on a GPU
# Temporary bytes of Muon's step on a GPU per parameter of a group, and for its matrices' products with themselves, which are square.
STEP_BYTES, GRAM_BYTES = {2: 19, 4: 24}, {2: 5, 4: 8}
ROUNDING_BYTES = 55_000_000  # temporary bytes of AdamW's step for bfloat16 tables, a few rows at a time

# On a CPU with fused operations a layer keeps 32, the rest is fragmentation of the C library's heap; twice as much of float32.
CPU_KEPT = Kept(56.0, 10.0, 54.0)
CPU_STEP_BYTES = {2: 26, 4: 24}  # temporary bytes of Muon's step per matrix parameter
BF16_CPU_BYTES = 48_000_000  # fixed workspace of a CPU's library for bfloat16 products


def memory_bytes(
    gpt: GPTConfig,
    rows: int,
    *,
    processes: int = 1,
    dtype: str = "bfloat16",
    compiled: bool = True,
    budget: float = 1.0,
    device: str = "cuda",
) -> dict[str, int]:
    """Bytes of training on one device with a micro-batch of `rows` sequences of max_seq_len tokens, by part, and their `total`.

    weights: float32, a GPU's embedding tables in bfloat16 if `dtype`, that of the activations, is, and copies of 16 bits for them, kept
    until the backward pass.
    gradients: float32.
    optimizer: Muon's momentum of each matrix, in the tables' type, and AdamW's two moments of the rest, in the weights', divided by
    `processes`.
    activations: kept for the backward pass, or the optimizer step's temporaries if these are more than activations and
    logits together, because the two are never in memory at the same time. A step compiled for a GPU keeps the fraction `budget` and
    recomputes the rest; from CHEAP_BUDGET to below 1 it makes only the matrices' copies again.
    logits: the chunked loss.
    cache: keys and values of the samples.
    """
    parts, number, cpu = count_parameters(gpt), number_bytes(dtype), device == "cpu"
    tables = parts["embedding"] + parts["value_embeddings"]
    table = 2 if dtype == "bfloat16" and not cpu else 4
    cheap = compiled and not cpu and CHEAP_BUDGET <= budget < 1  # the matrices' copies are made again
    copies = 2 * (parts["head"] + (0 if cheap else parts["matrices"])) if number == 2 else 0
    tokens = rows * gpt.max_seq_len
    kept, logits, stepping = (_on_cpu if cpu else _on_gpu)(gpt, tokens, parts, number, compiled, budget, processes)
    bytes_of = {
        "weights": 4 * (parts["total"] - tables) + table * tables + copies,
        "gradients": 4 * parts["total"],
        "optimizer": (table * parts["matrices"] + 8 * (parts["head"] + parts["scalars"]) + 2 * table * tables) // processes,
        "activations": max(kept, stepping - logits - (0 if cpu else copies)),
        "logits": logits,
        "cache": cache_bytes(gpt, SAMPLE_SLOTS, gpt.max_seq_len, number),
    }
    training = bytes_of["gradients"] + bytes_of["activations"] + bytes_of["logits"]
    return bytes_of | {"total": bytes_of["weights"] + bytes_of["optimizer"] + max(training, bytes_of["cache"])}


def _on_gpu(
    gpt: GPTConfig, tokens: int, parts: dict[str, int], number: int, compiled: bool, budget: float, processes: int
) -> tuple[int, int, int]:
    """(activations, the loss, temporaries of the optimizer's step) in bytes, by torch's allocator."""
    mode = "compiled" if compiled else "eager"
    fraction = budget if compiled and budget < CHEAP_BUDGET else 1
    activations = _activations(gpt, tokens, KEPT[gpt.architecture, mode, number]) * fraction
    rows = min(tokens, loss_rows(tokens, gpt.vocab_size, "cuda"))
    logits = LOGIT_BYTES[mode, number] * rows * gpt.vocab_size
    stepping = 0
    for (tall, wide), size in _groups(gpt).items():
        own = (STEP_BYTES[number] + GRAM_BYTES[number] * min(tall, wide) / max(tall, wide)) * size / processes
        stacked = 8 * size if processes > 1 else 0  # the gradients of all ranks, and with padding
        stepping = max(stepping, int(own) + stacked)
    return int(activations), logits, max(stepping, ROUNDING_BYTES if number == 2 else 0)


def _on_cpu(
    gpt: GPTConfig, tokens: int, parts: dict[str, int], number: int, compiled: bool, budget: float, processes: int
) -> tuple[int, int, int]:
    """(activations, the loss, temporaries of the optimizer's step) in bytes, as measured of whole processes."""
    kept = _activations(gpt, tokens, CPU_KEPT) * number / 2 + (BF16_CPU_BYTES if number == 2 else 0)
    rows = min(tokens, loss_rows(tokens, gpt.padded_vocab, "cpu", fused=True))
    # Gradients overwrite the logits; with several chunks the head's gradient exists in float32 as well.
    logits = number * rows * gpt.padded_vocab + (number + (4 if rows < tokens else 0)) * parts["head"]
    stepping = CPU_STEP_BYTES[number] * parts["matrices"] // processes
    if processes > 1:  # buffers of the gathered weights
        stepping += 4 * parts["matrices"]
    return int(kept), logits, stepping


def _activations(gpt: GPTConfig, tokens: int, kept: Kept) -> float:
    windows = sum(gpt.window(layer) < gpt.max_seq_len for layer in range(gpt.depth))
    return (kept.layer * gpt.depth + kept.window * windows + kept.model) * tokens * gpt.dim


def _groups(gpt: GPTConfig) -> Counter[tuple[int, int]]:
    """Parameters of the matrices of each shape, which Muon updates together."""
    groups: Counter[tuple[int, int]] = Counter()
    wide = 2 if gpt.architecture == "qwen3" else 1  # SwiGLU has a gate
    for shape, count in (((gpt.dim, gpt.dim), 2), ((gpt.kv_dim, gpt.dim), 2), ((gpt.mlp_dim, gpt.dim), wide), ((gpt.dim, gpt.mlp_dim), 1)):
        groups[shape] += gpt.depth * count * shape[0] * shape[1]
    return groups


def number_bytes(dtype: str) -> int:
    """Bytes of a number of the activations; int16 is only a type of products."""
    return 2 if dtype in ("bfloat16", "float16") else 4


def cache_bytes(gpt: GPTConfig, slots: int, length: int, number: int = 2) -> int:
    """Bytes of the keys and values of `slots` conversations of `length` tokens, of `number` bytes each."""
    return slots * 2 * gpt.depth * gpt.kv_dim * length * number


def reserved_bytes(total: int, device: str) -> int:
    """Bytes that training with a peak of `total` takes of a device: the GPU's limit is for memory that is reserved, not allocated."""
    return int(RESERVED * total) if device == "cuda" else total


def max_rows(gpt: GPTConfig, usable: int, **shape: Any) -> int:
    """The largest micro-batch, in rows, that fits into `usable` bytes; 0 if one row does not. `shape`: see `memory_bytes`."""

    def fits(rows: int) -> bool:
        return reserved_bytes(memory_bytes(gpt, rows, **shape)["total"], shape.get("device", "cuda")) <= usable

    low, high = 0, 1  # low fits or is 0; high does not fit after the loop
    while fits(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low
