"""The arithmetic of the memory model, and its inverse; tests/nullgpu/test_memory.py compares it with the allocator of torch."""

from hypothesis import given
from hypothesis import strategies as st

from nanochat.config import Config
from nanochat.model.scaling import GPTConfig, count_parameters, gpt_config
from nanochat.planning.memory import RESERVED, max_rows, memory_bytes


def shape(depth: int, **more: object) -> GPTConfig:
    return gpt_config(Config(depth=depth, vocab_size=32768, **more))  # type: ignore[arg-type]


@given(st.integers(1, 12), st.integers(1, 64), st.sampled_from(("bfloat16", "float16", "float32")), st.booleans(), st.integers(1, 8))
def test_memory_grows_with_rows_and_its_inverse_agrees(depth: int, rows: int, dtype: str, compiled: bool, processes: int) -> None:
    gpt = gpt_config(Config(depth=depth, vocab_size=4096, max_seq_len=512))
    kind = {"dtype": dtype, "compiled": compiled, "processes": processes}
    parts = memory_bytes(gpt, rows, **kind)
    training = parts["gradients"] + parts["activations"] + parts["logits"]
    assert parts["total"] == parts["weights"] + parts["optimizer"] + max(training, parts["cache"])
    most = max_rows(gpt, int(parts["total"] * RESERVED) + 1, **kind)  # the limit is for reserved memory
    assert most >= rows
    assert memory_bytes(gpt, most, **kind)["total"] <= parts["total"] + 1
    assert memory_bytes(gpt, most + 1, **kind)["total"] > parts["total"]


def test_nothing_fits_into_no_memory() -> None:
    assert max_rows(shape(12), 10**8) == 0


def test_the_parts_that_follow_from_the_weights() -> None:
    """Tables in bfloat16 with their moments and the matrices' momentum, all gradients in float32, the optimizer divided among the ranks."""
    gpt = shape(12)
    count = count_parameters(gpt)
    tables = count["embedding"] + count["value_embeddings"]
    parts, exact = memory_bytes(gpt, 1), memory_bytes(gpt, 1, dtype="float32")
    assert exact["weights"] == exact["gradients"] == parts["gradients"] == 4 * count["total"]
    copies = 2 * (count["matrices"] + count["head"])
    assert parts["weights"] == exact["weights"] - 2 * tables + copies
    assert exact["optimizer"] == 4 * count["matrices"] + 8 * (count["total"] - count["matrices"])
    assert parts["optimizer"] == exact["optimizer"] - 4 * tables - 2 * count["matrices"]
    half = memory_bytes(gpt, 1, dtype="float16")  # tables as in float32, activations as in bfloat16
    assert (half["weights"], half["optimizer"]) == (exact["weights"] + copies, exact["optimizer"])
    assert (half["cache"], half["logits"]) == (parts["cache"], parts["logits"])
    assert memory_bytes(gpt, 1, processes=8)["optimizer"] == parts["optimizer"] // 8
    cpu = memory_bytes(gpt, 1, device="cpu")
    assert cpu["weights"] == exact["weights"] + copies and cpu["optimizer"] == exact["optimizer"]


def test_a_budget_recomputes_a_part_of_a_compiled_step() -> None:
    whole, half = (memory_bytes(shape(8), 16, budget=budget)["activations"] for budget in (1.0, 0.5))
    assert half < whole
    assert memory_bytes(shape(8), 16, compiled=False, budget=0.5) == memory_bytes(shape(8), 16, compiled=False)


def test_a_budget_just_below_1_makes_the_matrices_copies_again() -> None:
    gpt = shape(20, max_seq_len=2048)
    whole, cheap = memory_bytes(gpt, 8), memory_bytes(gpt, 8, budget=0.9)
    assert whole["total"] - cheap["total"] == 2 * count_parameters(gpt)["matrices"]
    assert memory_bytes(gpt, 8, budget=0.99) == cheap, "what is cheap is one amount, not a fraction"
