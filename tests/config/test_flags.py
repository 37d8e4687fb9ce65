"""Flags become values of the config's fields; every mistake is told with what to do about it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanochat.config import FIELDS, convert, parse_flags
from nanochat.errors import UsageError


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


@given(st.data())
def test_a_value_is_itself_again_after_its_text(data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(sorted(FIELDS)))
    numbers = {int: st.integers(-(2**50), 2**50), float: st.floats(allow_nan=False), bool: st.booleans(), str: st.text()}
    value = data.draw(numbers[FIELDS[name].type])  # type: ignore[index]
    assert convert(name, str(value)) == value == convert(name, value)
