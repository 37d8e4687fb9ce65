"""Flags and profiles become one validated Config; every mistake is told with what to do about it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanochat.config import FIELDS, PROFILE_NAMES, Config, build_config, convert, differences, load_profile, parse_flags, profile_name
from nanochat.errors import UsageError

# The guide's plans, number by number.
PLAN_A = {"depth": 4, "device_batch_size": 1, "max_seq_len": 256, "total_batch_size": 512, "num_iterations": 100, "sample_every": 20}
PLAN_B = {"depth": 12, "device_batch_size": 4, "max_seq_len": 512, "total_batch_size": 4096, "num_iterations": 100, "sample_every": 50}
TRIALS = {
    "rtx4050": PLAN_A | {"compile": "off", "shards": 2, "nproc_per_node": 1},
    "rtx4090": PLAN_B | {"compile": "auto", "shards": 2, "nproc_per_node": 1},
    "h100x8": {"depth": 32, "device_batch_size": 8, "max_seq_len": 2048, "total_batch_size": -1, "num_iterations": 100, "sample_every": -1}
    | {"compile": "auto", "shards": 8, "nproc_per_node": 8},
}


@pytest.mark.parametrize("name", TRIALS)
def test_a_trial_is_the_guides_plan(name: str) -> None:
    config = build_config(name, trial=True)
    assert {key: getattr(config, key) for key in TRIALS[name]} == TRIALS[name]
    assert config.run == f"{name}-trial" and config.trial


def test_plan_c_is_the_full_profile() -> None:
    config = build_config("h100x8")
    assert (config.depth, config.device_batch_size, config.shards, config.nproc_per_node) == (32, 8, 800, 8)
    assert config.run == "h100x8" and (config.total_batch_size, config.num_iterations) == (-1, -1)


@pytest.mark.parametrize(
    ("alias", "name"), [("4050", "rtx4050"), ("4090", "rtx4090"), ("3090", "rtx4090"), ("RTX3090", "rtx4090"), ("CPU", "cpu")]
)
def test_aliases(alias: str, name: str) -> None:
    assert profile_name(alias) == name
    assert load_profile(alias)["profile"] == name


def test_an_unknown_profile_lists_the_known() -> None:
    with pytest.raises(UsageError, match="unknown profile 'rtx9999'") as raised:
        build_config("rtx9999")
    assert all(name in raised.value.hint for name in (*PROFILE_NAMES, "auto"))


def test_flags_win_over_the_profile() -> None:
    config = build_config("cpu", overrides=parse_flags(["--depth=7", "--run", "mine"]))
    assert (config.depth, config.run, config.profile) == (7, "mine", "cpu")


@pytest.mark.parametrize("dash", ["-", "_"])
@pytest.mark.parametrize("equals", ["=", " "])
def test_flags_take_dashes_and_underscores(dash: str, equals: str) -> None:
    arguments = f"--device{dash}batch{dash}size{equals}3 --weight{dash}decay{equals}-1 --total_batch_size{equals}1e3".split()
    assert parse_flags(arguments) == {"device_batch_size": 3, "weight_decay": -1.0, "total_batch_size": 1000}


def test_flags_of_yes_and_no() -> None:
    assert parse_flags(["--deterministic", "--trial=false"]) == {"deterministic": True, "trial": False}


@pytest.mark.parametrize(
    ("arguments", "message", "hint"),
    [
        ("--model_dim=512", "unknown config key model_dim", "--depth"),
        ("--n-layer=5", "unknown config key n_layer", "--depth"),
        ("--dept=5", "unknown config key dept", "--depth"),
        ("--zzzzzz=5", "unknown config key zzzzzz", "--help"),
        ("--depth=four", "not a whole number", "--depth="),
        ("--depth=4.5", "not a whole number", "--depth="),
        ("--depth=inf", "not a whole number", "--depth="),
        ("--matrix_lr=fast", "not a number", "--matrix_lr="),
        ("--deterministic=perhaps", "not true or false", "--deterministic"),
        ("--depth", "--depth needs a value", "--depth="),
        ("--depth --run=x", "--depth needs a value", "--depth="),
        ("depth=4", "unexpected argument 'depth=4'", "--"),
        ("-d 4", "unexpected argument '-d'", "--"),
        ("--", "unexpected argument '--'", "--"),
    ],
)
def test_mistaken_flags(arguments: str, message: str, hint: str) -> None:
    with pytest.raises(UsageError) as raised:
        parse_flags(arguments.split())
    assert message in raised.value.message and hint in raised.value.hint


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


@given(st.integers(1, 64), st.integers(1, 9), st.integers(1, 3), st.integers(1, 200_000))
def test_the_hint_for_a_batch_that_does_not_divide_names_ones_that_do(rows: int, length: int, processes: int, total: int) -> None:
    values = {"max_seq_len": length, "nproc_per_node": processes}
    if total % (rows * length * processes) == 0:
        assert Config(device_batch_size=rows, total_batch_size=total, **values)
        return
    with pytest.raises(UsageError, match=str(total)) as raised:
        Config(device_batch_size=rows, total_batch_size=total, **values)
    message, hint = raised.value.message, raised.value.hint
    totals = [int(word) for word in hint.rpartition("--total_batch_size=")[2].replace(" would do", "").split(" or ")]
    if "does not divide" in message:
        assert all(Config(device_batch_size=rows, total_batch_size=fitting, **values) for fitting in totals)
        before = hint.partition("; or ")[0]
        fitting_rows = before.removeprefix("--device_batch_size may be ").split(", ") if "may be" in before else []
        assert all(Config(device_batch_size=int(n), total_batch_size=total, **values) for n in fitting_rows)
    else:
        assert all(fitting % length == 0 for fitting in totals)


@given(st.data())
def test_a_value_is_itself_again_after_its_text(data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(sorted(FIELDS)))
    numbers = {int: st.integers(-(2**50), 2**50), float: st.floats(allow_nan=False), bool: st.booleans(), str: st.text()}
    value = data.draw(numbers[FIELDS[name].type])  # type: ignore[index]
    assert convert(name, str(value)) == value == convert(name, value)


def test_differences_leave_out_what_keeps_the_losses() -> None:
    one = Config()
    assert differences(one, one.replace(device_batch_size=1, save_every=3, nproc_per_node=2, run="x")) == {}
    assert differences(one, one.replace(depth=3, seed=1)) == {"depth": (20, 3), "seed": (42, 1)}


def test_a_config_is_frozen() -> None:
    with pytest.raises(AttributeError):
        Config().depth = 3  # type: ignore[misc]
