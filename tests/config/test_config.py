"""One validated Config, flat and in groups; every mistake is told with what to do about it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanochat.config import Config, ModelConfig, OptimizerConfig, differences
from nanochat.errors import UsageError


@pytest.mark.parametrize(
    "values",
    [
        {"depth": 0},
        {"device": "tpu"},
        {"compile": "perhaps"},
        {"architecture": "bert"},
        {"head_dim": 33},
        {"window_pattern": ""},
        {"window_pattern": "SXL"},
        {"vocab_size": 100},
        {"num_iterations": 0},
        {"save_every": -2},
        {"seed": -1},
        {"seed": 2**70},
        {"matrix_lr": float("nan")},
        {"weight_decay": float("inf")},
        {"num_iterations": 10**20},
        {"run": ""},
        {"run": "a/b"},
        {"run": ".."},
        {"keep_last": 0},
        {"rl_iterations": 0},
        {"rl_examples_per_step": 0},
        {"rl_num_samples": 1},
        {"rl_max_new_tokens": 0},
        {"rl_temperature": 0.0},
        {"rl_temperature": float("nan")},
        {"rl_top_k": -1},
        {"rl_lr_frac": 0.0},
        {"rl_eval_examples": 0},
    ],
    ids=str,
)
def test_values_that_cannot_be(values: dict[str, object]) -> None:
    with pytest.raises(UsageError) as raised:
        Config(**values)  # type: ignore[arg-type]
    assert next(iter(values)) in raised.value.message and raised.value.hint


@pytest.mark.parametrize("device", ["mps", "xpu", "hip"])
def test_a_device_of_torch_that_is_not_used_says_so(device: str) -> None:
    with pytest.raises(UsageError, match=f"--device={device} is not supported: ") as raised:
        Config(device=device)
    assert "--device=cpu" in raised.value.hint


@given(st.integers(1, 64), st.integers(1, 9), st.integers(1, 3), st.integers(1, 200_000))
def test_the_hint_for_a_batch_that_does_not_divide_names_ones_that_do(rows: int, length: int, processes: int, total: int) -> None:
    values = {"max_seq_len": length, "nproc_per_node": processes}
    if total % (rows * length * processes) == 0:
        assert Config(device_batch_size=rows, total_batch_size=total, **values)
        return
    with pytest.raises(UsageError, match=str(total)) as raised:
        Config(device_batch_size=rows, total_batch_size=total, **values)
    message, hint = raised.value.message, raised.value.hint
    totals = [int(word) for word in hint.rpartition("--total_batch_size=")[2].split(" or ")]
    if "does not divide" in message:
        assert all(Config(device_batch_size=rows, total_batch_size=fitting, **values) for fitting in totals)
        before = hint.partition("; or ")[0]
        fitting_rows = before.removeprefix("--device_batch_size may be ").split(", ") if "may be" in before else []
        assert all(Config(device_batch_size=int(n), total_batch_size=total, **values) for n in fitting_rows)
    else:
        assert all(fitting % length == 0 for fitting in totals)


def test_differences_leave_out_what_keeps_the_losses() -> None:
    one = Config()
    assert differences(one, one.replace(device_batch_size=1, save_every=3, nproc_per_node=2, run="x")) == {}
    assert differences(one, one.replace(depth=3, seed=1)) == {"depth": (20, 3), "seed": (42, 1)}


def test_a_config_is_frozen() -> None:
    with pytest.raises(AttributeError):
        Config().depth = 3  # type: ignore[misc]


def test_a_group_is_checked_alone() -> None:
    assert ModelConfig(depth=3).depth == 3 and isinstance(Config(), OptimizerConfig)
    with pytest.raises(UsageError, match="--head_dim=33 is odd"):
        ModelConfig(head_dim=33)
    with pytest.raises(UsageError, match="unknown value in --architecture=bert"):
        ModelConfig(architecture="bert")


def test_fields_keep_their_order() -> None:
    """Of config.toml, of the help, of trackers: run, data, model, pretraining, its optimizer, the other stages, the rest."""
    order = list(Config().to_dict())
    firsts = ("run", "dataset", "vocab_size", "device_batch_size", "embedding_lr", "warmup_steps", "sft_iterations", "rl_iterations")
    firsts += ("eval_every", "save_every", "skip_bad_batches")
    assert [name for name in order if name in firsts] == list(firsts) and (order[0], order[-1]) == ("run", "threads")
