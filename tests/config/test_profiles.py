"""Profiles become one config, with the user's flags on top."""

import pytest

from nanochat.config import PROFILE_NAMES, build_config, load_profile, parse_flags, profile_name
from nanochat.errors import UsageError


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
