"""Checkpoints on another place: what is there is whole, a place that is gone ends nothing, and a new machine goes on from it."""

import json
import shutil
import time
from pathlib import Path

import pytest

from nanochat.errors import DataError, UsageError
from nanochat.pipeline.mirrored import fetch
from nanochat.runs.checkpoint import Checkpoints, verify
from nanochat.runs.mirror import Mirror, Uploader
from tests import tiny
from tests.runs.test_checkpoint import damage_truncate, save


@pytest.fixture
def run(base: Path) -> Path:
    """A run's folder with the steps 5 and 10, its record, its metrics and its tokenizer."""
    folder = base / "runs" / "one"
    for step in (5, 10):
        save(Checkpoints(folder / "base"), step, tokenizer="abc")
    (folder / "config.toml").write_text("[frozen]\n")
    (folder / "metrics.jsonl").write_text("".join(json.dumps({"stage": "base", "step": step}) + "\n" for step in range(1, 11)))
    (base / "tokenizer" / "abc").mkdir(parents=True)
    (base / "tokenizer" / "abc" / "ranks.txt").write_text("x")
    return folder


@pytest.fixture
def there(tmp_path: Path) -> Path:
    return tmp_path / "there"


def mirror(there: Path) -> Mirror:
    return Mirror(f"file://{there}", "one")


def step(run: Path, number: int) -> Path:
    return run / "base" / f"step_{number:06d}"


def test_what_is_pushed_is_whole_and_comes_back(
    run: Path, there: Path, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mirror(there).push(step(run, 10), keep=2)
    assert verify(there / "one" / "base" / "step_000010").step == 10
    metrics = (run / "metrics.jsonl").read_bytes()
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tmp_path / "new"))
    empty = tmp_path / "new" / "runs" / "one"
    mirror(there).fetch_tokenizer()
    assert mirror(there).read("config.toml") == b"[frozen]\n" and mirror(there).read("nothing") is None
    assert mirror(there).fetch(empty) == ["base step 10"]
    newest = Checkpoints(empty / "base").newest()
    assert newest is not None and newest.step == 10
    assert (empty / "metrics.jsonl").read_bytes() == metrics
    assert (tmp_path / "new" / "tokenizer" / "abc" / "ranks.txt").read_text() == "x"
    assert not (newest.folder / "metrics.jsonl").exists()


def test_only_the_newest_are_kept_there(run: Path, there: Path) -> None:
    for number in (5, 10):
        mirror(there).push(step(run, number), keep=1)
    assert mirror(there).steps("base") == ["step_000010"]
    assert [path.name for path in (there / "one" / "base").iterdir()] == ["step_000010"]


def test_what_is_here_is_not_fetched_and_what_is_damaged_here_is(run: Path, there: Path) -> None:
    mirror(there).push(step(run, 10), keep=2)
    assert mirror(there).fetch(run) == []
    damage_truncate(step(run, 10))
    assert mirror(there).fetch(run) == ["base step 10"]
    assert verify(step(run, 10)).step == 10


def test_a_damaged_step_there_is_passed_over(run: Path, there: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in (5, 10):
        mirror(there).push(step(run, number), keep=2)
    damage_truncate(there / "one" / "base" / "step_000010")
    shutil.rmtree(run / "base")
    assert mirror(there).fetch(run) == ["base step 5"]
    assert "falling back" in capsys.readouterr().err
    assert [path.name for path in (run / "base").iterdir()] == ["step_000005"]


def test_a_damaged_step_here_is_not_copied(run: Path, there: Path, capsys: pytest.CaptureFixture[str]) -> None:
    damage_truncate(step(run, 10))
    with Uploader(mirror(there), keep=2) as uploader:
        uploader.enqueue(step(run, 10))
    assert mirror(there).steps("base") == []
    assert "not uploaded to the mirror" in capsys.readouterr().err


def test_an_unfinished_copy_does_not_exist_and_is_done_again(run: Path, there: Path) -> None:
    mirror(there).push(step(run, 10), keep=2)
    (there / "one" / "base" / "step_000010" / "manifest.json").unlink()
    (there / "one" / "base" / "step_000010" / "model.safetensors").write_bytes(b"half")
    assert mirror(there).steps("base") == []
    mirror(there).push(step(run, 10), keep=2)
    assert verify(there / "one" / "base" / "step_000010").step == 10


def test_a_link_there_is_not_followed(run: Path, there: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It would bring a file of this machine into the run's folder, from where it is copied on."""
    secret = tmp_path / "secret"
    secret.write_text("key")
    mirror(there).push(step(run, 10), keep=2)
    for name in ("metrics.jsonl", "manifest.json", "meta.json"):
        linked = there / "one" / "base" / "step_000010" / name
        kept = linked.read_bytes()
        linked.unlink()
        linked.symlink_to(secret)
        shutil.rmtree(run / "base", ignore_errors=True)
        assert mirror(there).fetch(run) == [] and "not a regular file" in capsys.readouterr().err
        linked.unlink()
        linked.write_bytes(kept)
    assert mirror(there).fetch(run) == ["base step 10"]
    for name in ("config.toml", "tokenizer/abc/ranks.txt"):
        (there / "one" / name).unlink()
        (there / "one" / name).symlink_to(secret)
    shutil.rmtree(run.parent.parent / "tokenizer")
    with pytest.raises(DataError, match="not a regular file"):
        mirror(there).read("config.toml")
    with pytest.raises(DataError, match="not a regular file"):
        mirror(there).fetch_tokenizer()
    assert not (run.parent.parent / "tokenizer" / "abc").exists()


@pytest.mark.parametrize("name", [".hidden", "a\\b", "a\nb", "\x1b[2J"])
def test_a_tokenizers_name_there_is_a_plain_one(name: str, run: Path, there: Path) -> None:
    """Of its directory and of its files; an object store may list any name, also one that leads elsewhere."""
    mirror(there).push(step(run, 10), keep=2)
    place = there / "one" / "tokenizer"
    shutil.rmtree(run.parent.parent / "tokenizer")
    (place / "abc" / name).write_text("x")
    with pytest.raises(DataError, match="on the mirror"):
        mirror(there).fetch_tokenizer()
    (place / "abc").rename(place / name)
    with pytest.raises(DataError, match="on the mirror"):
        mirror(there).fetch_tokenizer()
    listed = mirror(there)
    with pytest.raises(DataError, match="on the mirror"):
        listed._name(f"{there}/one/tokenizer/..")
    tokenizers = run.parent.parent / "tokenizer"
    assert not tokenizers.exists() or list(tokenizers.iterdir()) == []


def test_only_what_the_manifest_names_is_fetched_and_no_more_bytes(run: Path, there: Path) -> None:
    mirror(there).push(step(run, 10), keep=2)
    (there / "one" / "base" / "step_000010" / "other").write_bytes(b"x")
    with (there / "one" / "base" / "step_000010" / "model.safetensors").open("r+b") as file:
        file.truncate(1 << 40)
    shutil.rmtree(run / "base")
    assert mirror(there).fetch(run) == []
    shutil.rmtree(there)
    save(Checkpoints(run / "base"), 10, tokenizer="abc")
    mirror(there).push(step(run, 10), keep=2)
    (there / "one" / "base" / "step_000010" / "other").write_bytes(b"x")
    shutil.rmtree(run / "base")
    assert mirror(there).fetch(run) == ["base step 10"] and not (step(run, 10) / "other").exists()


def test_a_step_under_another_number_is_passed_over(run: Path, there: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in (5, 10):
        mirror(there).push(step(run, number), keep=2)
    (there / "one" / "base" / "step_000010").rename(there / "one" / "base" / "step_000900")
    shutil.rmtree(run / "base")
    assert mirror(there).fetch(run) == ["base step 5"] and "contains step 10" in capsys.readouterr().err


def test_another_runs_record_in_its_place_is_refused(base: Path, there: Path) -> None:
    (there / "one").mkdir(parents=True)
    frozen = '[frozen]\ndataset = "embedded"\nshards = []\ntokenizer = "abc"\nconversations = ""\n'
    (there / "one" / "config.toml").write_text(f'run = "two"\n{frozen}')
    with pytest.raises(DataError, match="instead of 'one'"):
        fetch(f"file://{there}", "one")
    for record in (f'run = "../two"\n{frozen}', frozen.replace("embedded", "../.."), frozen.replace("abc", "/etc"), "x = " + "[" * 100_000):
        (there / "one" / "config.toml").write_text(record)
        with pytest.raises((DataError, UsageError)):
            fetch(f"file://{there}", "one")
    assert not base.exists()


def test_a_mirror_that_is_gone_is_said_once_and_caught_up(run: Path, there: Path, capsys: pytest.CaptureFixture[str]) -> None:
    there.write_text("a file where the folder should be")
    with Uploader(mirror(there), keep=2, retry=0.05) as uploader:
        uploader.enqueue(step(run, 5))
        time.sleep(0.3)
        uploader.enqueue(step(run, 10))
        time.sleep(0.2)
        there.unlink()
        end = time.monotonic() + 10
        while mirror(there).steps("base") != ["step_000010"] and time.monotonic() < end:
            time.sleep(0.02)
    said = capsys.readouterr().err
    assert said.count("cannot be reached") == 1 and "the mirror can be reached again" in said
    assert verify(there / "one" / "base" / "step_000010").step == 10


def test_a_mirror_that_stays_away_holds_nobody_up(run: Path, there: Path, capsys: pytest.CaptureFixture[str]) -> None:
    there.write_text("a file where the folder should be")
    began = time.monotonic()
    with Uploader(mirror(there), keep=2) as uploader:
        uploader.enqueue(step(run, 10))
    assert time.monotonic() - began < 5
    assert "not yet uploaded" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("url", "said"), [("gs://bucket/x", "gcsfs"), ("nowhere://x", "known"), ("s3://bucket/x", "s3fs")], ids=["gs", "unknown", "s3"]
)
def test_a_kind_that_is_not_there_names_its_package(url: str, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    for package in ("gcsfs", "s3fs"):
        monkeypatch.setitem(sys.modules, package, None)  # as where it is not installed
    with pytest.raises(UsageError) as caught:
        Mirror(url, "one")
    assert said in caught.value.message + caught.value.hint


@pytest.mark.long
def test_a_new_machine_goes_on_from_the_mirror(base: Path, tmp_path: Path) -> None:
    """The first machine is stopped and its folder is gone. The second gives the losses of an uninterrupted run."""
    text, url = tiny.sentences(tmp_path / "text.txt"), f"file://{tmp_path / 'there'}"
    straight = tiny.call(base, "entrypoint.py", *tiny.flags(text, run="straight", num_iterations=12))
    assert straight.returncode == 0, straight.stderr
    process = tiny.start(base, "entrypoint.py", *tiny.flags(text, num_iterations=12, save_every=2, mirror=url))
    tiny.wait_for(process, "base step 1/12")
    process.terminate()
    _, err = process.communicate(timeout=60)
    assert process.returncode in (0, 75), err
    other = tmp_path / "other machine"
    done = tiny.call(other, "entrypoint.py", *tiny.flags(text, num_iterations=12, save_every=2, mirror=url))
    assert done.returncode == 0, done.stderr
    assert "from the mirror" in done.stderr and "base step" in done.stderr
    assert tiny.losses(other) == tiny.losses(base, "straight")
    assert Mirror(url, "tiny").steps("base")[-1] == "step_000012"

    elsewhere = tiny.call(tmp_path / "third", "entrypoint.py", *tiny.flags(text, num_iterations=12, mirror=url, seed=7))
    assert elsewhere.returncode == 2 and "seed" in elsewhere.stderr


@pytest.mark.long
def test_a_new_machine_does_not_begin_anew_while_the_mirror_is_gone(base: Path, tmp_path: Path) -> None:
    text, there = tiny.sentences(tmp_path / "text.txt"), tmp_path / "there"
    there.write_text("a file where the folder should be")
    refused = tiny.call(base, "entrypoint.py", *tiny.flags(text, mirror=f"file://{there}"))
    assert refused.returncode == 3 and "cannot be reached" in refused.stderr
