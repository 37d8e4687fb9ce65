"""A run's record on disk, what a second call inherits from it, and which model answers."""

import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nanochat import paths
from nanochat.config import FIELDS, RL_FIELDS, Config, build_config
from nanochat.errors import DataError, UsageError
from nanochat.planning.rules import resolve
from nanochat.runs import record as runs
from nanochat.runs.record import CONVERSATION_FIELDS, Record, inherit, newest_run, open_model, read_record


def record(**changes: Any) -> Record:
    config = resolve(build_config("cpu", overrides={"run": "one", "deterministic": True} | changes))
    return Record(config, "embedded", ("shard_00000.parquet", "shard_00001.parquet"), "0123456789ab")


def test_a_record_is_read_as_it_was_written(base: Path) -> None:
    assert read_record("one") is None
    record().write()
    assert read_record("one") == record()


@pytest.mark.parametrize(
    "damage", ["", "depth = ", "depth = 4\n", 'depth = "x"\n[frozen]\n', "[frozen]\ndataset = 1\n", "frozen = 3\n", "\xff"]
)
def test_a_damaged_record_is_an_error_that_names_the_file(base: Path, damage: str) -> None:
    paths.run_dir("one").mkdir(parents=True)
    (paths.run_dir("one") / "config.toml").write_bytes(damage.encode("latin-1"))
    with pytest.raises((DataError, UsageError)) as raised:
        read_record("one")
    assert raised.value.hint


def test_what_is_left_to_the_rule_is_inherited() -> None:
    begun = record()
    asked = build_config("cpu", overrides={"run": "one", "deterministic": True})
    assert inherit(asked, begun) == begun.config
    assert inherit(asked.replace(device_batch_size=2), begun) == begun.config.replace(device_batch_size=2)


other = {bool: lambda old: not old, int: lambda old: old + 2, float: lambda old: old + 0.25, str: lambda old: old + "x"}


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(sorted(set(FIELDS) - {"run"})))
def test_each_field_either_keeps_the_losses_or_is_refused(name: str) -> None:
    begun = record(total_batch_size=-1)
    old = getattr(begun.config, name)
    choices = [choice for choice in FIELDS[name].metadata["choices"] if choice not in (old, "auto")]
    if name == "window_pattern":
        choices = ["SL"]
    try:
        changed = begun.config.replace(**{name: choices[0] if choices else other[type(old)](old)})
    except UsageError:  # a batch that does not divide
        return
    if FIELDS[name].metadata["keeps_losses"]:
        assert inherit(changed, begun) == changed
    elif name in RL_FIELDS:  # of no matter to other stages, and free until reinforcement learning has begun
        assert inherit(changed, begun) == begun.config
        assert inherit(changed, begun, reinforced=True) == changed
    elif name in CONVERSATION_FIELDS:  # free until fine-tuning has a checkpoint
        assert inherit(changed, begun) == changed
    else:
        with pytest.raises(UsageError, match=f"{name} was .*, now ") as raised:
            inherit(changed, begun)
        assert "--run NEW" in raised.value.hint


def test_there_is_no_model_yet(base: Path) -> None:
    with pytest.raises(DataError, match="no trained model yet") as raised:
        newest_run()
    assert "quickstart" in raised.value.hint
    with pytest.raises(DataError, match="there is no run 'nobody'") as raised:
        open_model("nobody")
    assert "train one" in raised.value.hint
    record().write()
    with pytest.raises(DataError, match="there is no run 'nobody'") as raised:
        open_model("nobody")
    assert "runs: one" in raised.value.hint
    with pytest.raises(DataError, match="has no complete checkpoint yet"):
        open_model("one")


def test_the_newest_run_has_the_newest_checkpoint(base: Path) -> None:
    for age, (run, stage, step) in enumerate([("b", "sft", 3), ("a", "base", 9), ("c", "base", 1)]):
        manifest = paths.run_dir(run) / stage / f"step_{step:06d}" / "manifest.json"
        paths.atomic_write(manifest, "{}")
        os.utime(manifest, (10**9 - age, 10**9 - age))
    paths.run_dir("d").mkdir()  # begun, but nothing saved
    assert newest_run() == "b"


def test_sameness(base: Path) -> None:
    runs.require_same("text", ("a", 1), ("a", 1), "one")
    with pytest.raises(UsageError, match="the text has changed since the run 'one' began"):
        runs.require_same("text", ("a", 1), ("a", 2), "one")


def test_a_config_survives_its_file(base: Path) -> None:
    config = Config(run="one", data='/a "quoted"\\path\n文', weight_decay=1e-7, num_iterations=2**40)
    Record(config, "x", (), "y").write()
    found = read_record("one")
    assert found and found.config == config
