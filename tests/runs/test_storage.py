"""Disk space by part, and pruning: what can be made again is made again, and nothing else is ever removed."""

import dataclasses
import json
import os
import shutil
import time
from pathlib import Path

import pytest

from nanochat import paths
from nanochat.cli.app import app, exit_code, invoke
from nanochat.data.shards import read_manifest, write_dataset, write_manifest
from nanochat.pipeline.train import train
from nanochat.runs import lock
from nanochat.runs.storage import list_storage, prunable, prune
from tests import tiny
from tests.runs.test_archive import content


@pytest.fixture
def full(base: Path, tmp_path: Path) -> Path:
    """A data directory with a trained run on a user's text, the embedded text, a downloaded dataset and caches."""
    assert train(tiny.config(tiny.sentences(tmp_path / "text.txt"))) == 0
    tmp_path.joinpath("text.txt").unlink()
    write_dataset(paths.dataset_dir("embedded"), name="embedded", source="x", licence="MIT", training=["text"] * 9, validation=["text"])
    folder = paths.dataset_dir("climbmix")
    write_dataset(folder, name="climbmix", source="x", licence="x", training=["text"] * 9, validation=["text"])
    shutil.copyfile(folder / "shard_00000.parquet", folder / "shard_00001.parquet")
    found = read_manifest(folder)
    (shard,) = found.training
    hand = dataclasses.replace(shard, path=folder / "shard_00001.parquet")
    write_manifest(dataclasses.replace(found, training=(dataclasses.replace(shard, downloaded=True), hand)))
    (base / "cache" / "cpu-x").mkdir(parents=True)
    (base / "cache" / "cpu-x" / "kernel.so").write_bytes(b"x" * 1000)
    for name, age in (("old", 2 * paths.STALE_SECONDS), ("new", 0)):
        path = base / "data" / f"{paths.TEMPORARY}{name}"
        path.write_text("x" * 10)
        os.utime(path, (time.time() - age, time.time() - age))
    return base


def sizes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def test_every_part_is_listed_with_its_size(full: Path) -> None:
    found = {(item.part, item.name): item for item in list_storage()}
    (user,) = (name for part, name in found if name.startswith("user-"))
    (tokenizer,) = (name for part, name in found if part == "tokenizer")
    assert found.keys() >= {
        ("data", user), ("data", "embedded"), ("data", "climbmix"), ("tokens", tokenizer), ("runs", "tiny"), ("cache", "cpu-x"),
        ("other", "unfinished files"),
    }  # fmt: skip
    for part, folder in (("data", "data"), ("tokens", "tokens"), ("runs", "runs"), ("tokenizer", "tokenizer"), ("cache", "cache")):
        loose = sum(path.stat().st_size for path in (full / folder).iterdir() if path.is_file() and part == "data")
        assert sum(item.bytes for item in found.values() if item.part == part) == sizes(full / folder) - loose
    assert found["data", user].runs == found["tokens", tokenizer].runs == ("tiny",)
    assert found["data", user].again == found["runs", "tiny"].again == found["tokenizer", tokenizer].again == ""


def test_pruning_removes_only_what_is_made_again(full: Path, tmp_path: Path) -> None:
    before = content(full)
    items = prunable(list_storage(), downloads=False)
    assert prune(items) == sum(item.frees for item in items) > 0
    after = content(full)
    gone = before.keys() - after.keys()
    assert all(before[name] == after[name] for name in after)
    assert {name.split("/")[0] for name in gone} == {"tokens", "cache", "data"}
    assert all(name.endswith(".bin") or name.startswith(("cache/", "data/embedded/", "data/.tmp-old")) for name in gone)
    assert prunable(list_storage(), downloads=False) == []
    # Everything is made again: the same run with more steps has the same losses as one that nothing was removed from.
    config = tiny.config(tmp_path / "text.txt", run="again")
    assert train(config) == 0
    assert [loss for _, _, loss in tiny.losses(full, "again")] == [loss for _, _, loss in tiny.losses(full)]


def test_downloads_are_removed_only_if_asked_and_never_those_put_there_by_hand(full: Path) -> None:
    folder = paths.dataset_dir("climbmix")
    shards = ["shard_00000.parquet", "shard_00001.parquet"]
    assert sorted(path.name for path in folder.glob("shard_*")) == shards
    tasks = paths.dataset_dir("tasks")
    for name in ("gsm8k", "by-hand"):
        (tasks / name).mkdir(parents=True)
        (tasks / name / "a.parquet").write_bytes(b"x" * 10)
    (tasks / "gsm8k" / "files.json").write_text(json.dumps({"files": {"a.parquet": {"bytes": 10, "sha256": "0" * 64}}}))
    (tasks / "gsm8k" / "own.parquet").write_bytes(b"x")
    prune(prunable(list_storage(), downloads=True))
    assert sorted(path.name for path in folder.glob("shard_*")) == shards[1:]
    assert sorted(str(path.relative_to(tasks)) for path in tasks.rglob("*.parquet")) == ["by-hand/a.parquet", "gsm8k/own.parquet"]


def test_what_a_run_in_training_uses_is_left(full: Path) -> None:
    before, items = content(full), prunable(list_storage(), downloads=True)
    with lock.hold("tiny", lock.TRAINING):
        assert prune(items) == 10  # the unfinished file alone: it began after `items` were listed
        assert all(item.in_use for item in list_storage() if item.part in ("tokens", "cache") or item.name in ("embedded", "climbmix"))
    assert content(full).keys() == before.keys() - {f"data/{paths.TEMPORARY}old"}


def test_links_are_not_followed(base: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious.bin").write_bytes(b"x" * 100)
    for place in ("data", "tokens", "cache", "runs", "tokenizer"):
        (base / place).mkdir(parents=True)
        (base / place / "link").symlink_to(outside)
    (base / "tokens" / "abc").mkdir()
    (base / "tokens" / "abc" / "T32-v1").symlink_to(outside)
    prune(prunable(list_storage(), downloads=True))
    assert (outside / "precious.bin").exists()


def test_the_command(full: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def nanochat(*arguments: str) -> int:
        return exit_code(invoke, app, ("disk", *arguments))

    assert nanochat("--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["directory"] == str(full) and told["free_bytes"] > 0 and told["parts"]["runs"] == sizes(full / "runs")
    assert nanochat("--prune") == 2 and "--yes" in capsys.readouterr().err
    assert nanochat("--downloads") == 2 and "--prune" in capsys.readouterr().err
    assert nanochat() == 0
    shown = capsys.readouterr()
    assert "made again when needed; used by tiny" in shown.out and "disk --prune` frees" in shown.err
    assert nanochat("--prune", "--yes", "--json") == 0
    assert json.loads(capsys.readouterr().out)["freed_bytes"] > 0
    assert not list(full.glob("tokens/*/*/*.bin"))
    assert nanochat("--prune", "--yes") == 0 and "nothing to remove" in capsys.readouterr().err
    shutil.rmtree(full)
    assert nanochat() == 0
