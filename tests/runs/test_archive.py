"""A run as one file: it comes back whole and resumes with equal losses, and a hostile or damaged archive leaves nothing behind."""

import hashlib
import io
import json
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nanochat import paths
from nanochat.cli.app import app, exit_code, invoke
from nanochat.console import command as nanochat
from nanochat.errors import DataError, NewerFormat, PreflightError, UsageError
from nanochat.hub.archive import tar_header
from nanochat.pipeline.train import train
from nanochat.runs import lock
from nanochat.runs.archive import INDEX, pack, unpack
from nanochat.runs.checkpoint import Checkpoints
from nanochat.runs.step_files import seal
from tests import tiny
from tests.runs.test_checkpoint import damage_truncate


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data directory with the run "tiny", stopped after 4 of its 6 steps, and the text beside it."""
    place = tmp_path_factory.mktemp("trained")
    text = tiny.sentences(place / "text.txt")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NANOCHAT_BASE_DIR", str(place / "whole"))
        assert train(tiny.config(text, save_every=2)) == 0
    shutil.copytree(place / "whole", place / "part")
    run = place / "part" / "runs" / "tiny"
    shutil.rmtree(run / "base" / "step_000006")
    for name in ("evaluation.json", "report.json", "report.md", "report.html"):
        (run / name).unlink()
    return place


@pytest.fixture
def home(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, as the data directory."""
    shutil.copytree(trained / "part", tmp_path / "home")
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def archive(home: Path, tmp_path: Path) -> Path:
    pack("tiny", tmp_path / "tiny.tar")
    return tmp_path / "tiny.tar"


def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tmp_path / "elsewhere"))
    return tmp_path / "elsewhere"


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def command(*arguments: str) -> int:
    """The exit code of `nanochat ARGUMENTS`, in this process."""
    return exit_code(invoke, app, arguments)


def test_a_run_moves_to_another_machine_and_back_with_equal_losses(
    trained: Path, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text, there = trained / "text.txt", tmp_path / "there"
    assert command("runs", "pack", "tiny", str(tmp_path / "out.tar")) == 0
    assert "base step 4, with your text" in capsys.readouterr().err
    with tarfile.open(tmp_path / "out.tar") as found:  # any tar program reads it
        assert found.getnames()[0] == INDEX and "run/base/step_000004/model.safetensors" in found.getnames()
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(there))
    assert command("runs", "unpack", str(tmp_path / "out.tar")) == 0
    said = capsys.readouterr().err
    assert "unpacked the run tiny: base step 4" in said and f"resume it with `{nanochat()} train --profile cpu" in said
    away = tmp_path / "text.txt"  # on another machine the text is not at its path: it came in the archive
    text.rename(away)
    try:
        assert train(tiny.config(text, save_every=2)) == 0
    finally:
        away.rename(text)
    assert "resum" in capsys.readouterr().err
    assert tiny.losses(there) == tiny.losses(trained / "whole")
    assert command("runs", "pack", "tiny", str(tmp_path / "back.tar")) == 0
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(home))
    assert command("runs", "unpack", str(tmp_path / "back.tar")) == 2
    assert "--replace" in capsys.readouterr().err and tiny.losses(home) != []
    assert command("runs", "unpack", "--replace", str(tmp_path / "back.tar")) == 0
    assert tiny.losses(home) == tiny.losses(trained / "whole")
    assert content(home / "runs" / "tiny") == content(there / "runs" / "tiny")
    assert [path.name for path in (home / "runs").iterdir()] == ["tiny"]


def test_what_an_archive_holds(home: Path, archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = content(home / "runs")
    there = elsewhere(tmp_path, monkeypatch)
    assert unpack(archive).steps == {"base": 4}
    assert content(there / "runs") == before
    assert content(there / "tokenizer") == content(home / "tokenizer")
    assert content(there / "data") == content(home / "data")
    assert not (there / "tokens").exists()


def test_a_file_or_a_run_that_is_there_is_not_overwritten(home: Path, archive: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="exists already"):
        pack("tiny", archive)
    with pytest.raises(UsageError, match="exists here already"):
        unpack(archive)
    assert content(home / "runs" / "tiny")
    with lock.hold("tiny", lock.TRAINING), pytest.raises(PreflightError, match="in use"):
        pack("tiny", tmp_path / "other.tar")
    assert not (tmp_path / "other.tar").exists()
    with pytest.raises(DataError, match="no run"):
        pack("none", tmp_path / "other.tar")


def test_a_run_that_is_further_or_another_is_not_replaced(
    trained: Path, archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = elsewhere(tmp_path, monkeypatch)
    shutil.copytree(trained / "whole", there)
    before = content(there)
    with pytest.raises(UsageError, match="further than the archive: base step 6, not 4"):
        unpack(archive, replace=True)
    assert content(there) == before
    shutil.rmtree(there / "runs" / "tiny" / "base" / "step_000006")
    record = there / "runs" / "tiny" / "config.toml"
    record.write_text(record.read_text().replace("seed = 42", "seed = 43"))
    with pytest.raises(UsageError, match=r"not the one in the archive \(seed differ\)"):
        unpack(archive, replace=True)
    assert (there / "runs" / "tiny" / "base" / "step_000004").is_dir()


def test_a_damaged_step_is_left_out(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(home / "runs" / "tiny" / "base" / "step_000004", home / "runs" / "tiny" / "base" / "step_000005")
    damage_truncate(home / "runs" / "tiny" / "base" / "step_000005")
    pack("tiny", tmp_path / "tiny.tar")
    assert "falling back" in capsys.readouterr().err
    elsewhere(tmp_path, monkeypatch)
    assert unpack(tmp_path / "tiny.tar").steps == {"base": 4}


# ---- archives from strangers


def parts(archive: Path) -> list[tuple[str, bytes]]:
    with tarfile.open(archive) as found:
        return [(member.name, found.extractfile(member).read()) for member in found]  # type: ignore[union-attr]


def written(path: Path, members: list[tuple[str, bytes]]) -> Path:
    blocks = [tar_header(name, len(data)) + data + bytes(-len(data) % 512) for name, data in members]
    path.write_bytes(b"".join(blocks) + bytes(1024))
    return path


def with_index(members: list[tuple[str, bytes]], change: Callable[[dict[str, Any]], Any]) -> list[tuple[str, bytes]]:
    index = json.loads(members[0][1])
    return [(INDEX, json.dumps(change(index) or index).encode()), *members[1:]]


def entry(data: bytes) -> dict[str, Any]:
    return {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


@pytest.mark.parametrize(
    "change",
    [
        lambda index: index.update(run="../out"),
        lambda index: index.update(tokenizer="../out"),
        lambda index: index.update(dataset="climbmix"),
        lambda index: index.update(dataset="user-../../out"),
        lambda index: index["files"].update({"run/../../out": entry(b"x")}),
        lambda index: index["files"].update({"run/base/step_000004/../../../out": entry(b"x")}),
        lambda index: index["files"].update({"/etc/out": entry(b"x")}),
        lambda index: index["files"].update({"run/.hidden": entry(b"x")}),
        lambda index: index["files"].update({"run/config.toml": entry(b"x")}),
        lambda index: index["files"].update({"run/missing": entry(b"x")}),
        lambda index: index["files"].pop("run/metrics.jsonl"),
        lambda index: index["files"].update({"run/x": {"bytes": -1, "sha256": "0" * 64}}),
        lambda index: index.update(files=[]),
        lambda index: index.update(texts={"x": 3}),
        lambda index: index.update(format="1"),
        lambda index: [1],
    ],
)
def test_an_index_that_does_not_fit_is_refused(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[dict[str, Any]], Any]
) -> None:
    there = elsewhere(tmp_path, monkeypatch)
    with pytest.raises(DataError, match="not a complete archive"):
        unpack(written(tmp_path / "bad.tar", with_index(parts(archive), change)))
    assert not list(there.rglob("*")) or list(there.rglob("*")) == [there / "runs"]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE, tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME]
)
def test_anything_but_a_plain_file_is_refused(archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: bytes) -> None:
    there = elsewhere(tmp_path, monkeypatch)
    odd = tarfile.TarInfo("run/metrics.jsonl")
    odd.type, odd.linkname, odd.size = kind, "/etc/passwd", 1 << 40
    bad = written(tmp_path / "bad.tar", parts(archive)[:1])
    bad.write_bytes(bad.read_bytes()[:-1024] + odd.tobuf(tarfile.GNU_FORMAT) + bytes(1024))
    with pytest.raises(DataError, match="link, a device"):
        unpack(bad)
    assert not (there / "runs" / "tiny").exists()


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.999])
def test_half_an_archive_is_refused(archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, share: float) -> None:
    there = elsewhere(tmp_path, monkeypatch)
    data = archive.read_bytes()
    (tmp_path / "half.tar").write_bytes(data[: int(len(data) * share)])
    with pytest.raises(DataError, match="not a complete archive"):
        unpack(tmp_path / "half.tar")
    assert not list(there.rglob("*.*"))


def test_a_changed_byte_is_found(archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    there = elsewhere(tmp_path, monkeypatch)
    data = bytearray(archive.read_bytes())
    data[data.index(b'"stage"')] ^= 1
    archive.write_bytes(data)
    with pytest.raises(DataError, match="other content than its hash says"):
        unpack(archive)
    assert not (there / "runs" / "tiny").exists() and not (there / "tokenizer").exists()


def test_checkpoints_of_another_run_are_refused(archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    there = elsewhere(tmp_path, monkeypatch)
    members = dict(parts(archive))
    members["run/config.toml"] = members["run/config.toml"].replace(b'run = "tiny"', b'run = "other"')
    index = json.loads(members[INDEX])
    index["files"]["run/config.toml"] = entry(members["run/config.toml"])
    members[INDEX] = json.dumps(index).encode()
    with pytest.raises(DataError, match="its record is of the run 'other'"):
        unpack(written(tmp_path / "bad.tar", list(members.items())))
    assert not (there / "runs" / "tiny").exists()


def test_no_archive_at_all(tmp_path: Path, base: Path) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        unpack(tmp_path / "none.tar")
    (tmp_path / "text.tar").write_bytes(b"hello")
    with pytest.raises(DataError, match="not a complete archive"):
        unpack(tmp_path / "text.tar")
    with pytest.raises(ValueError, match="too long"):
        tar_header("x" * 101, 1)
    with tarfile.open(fileobj=io.BytesIO(tar_header("big", 20 << 30) + bytes(512))) as found:
        member = found.next()
        assert member is not None and member.size == 20 << 30


# ---- formats of another version


def test_a_newer_archive_is_named(archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere(tmp_path, monkeypatch)
    newer = written(tmp_path / "newer.tar", with_index(parts(archive), lambda index: index.update(format=2)))
    with pytest.raises(NewerFormat, match=r"newer\.tar was written by a newer version: it has format 2") as caught:
        unpack(newer)
    assert "update" in caught.value.hint


@pytest.mark.parametrize("what", ["record", "checkpoint", "tokenizer", "dataset"])
def test_files_of_a_newer_version_are_refused_and_stay(trained: Path, home: Path, what: str) -> None:
    """Neither skipped, as a damaged step is, nor replaced: what a newer version trained is not lost to an older one."""
    path = {
        "record": home / "runs" / "tiny" / "config.toml",
        "checkpoint": home / "runs" / "tiny" / "base" / "step_000004" / "manifest.json",
        "tokenizer": next(home.glob("tokenizer/*/tokenizer.json")),
        "dataset": next(home.glob("data/user-*/manifest.json")),
    }[what]
    text = path.read_text()
    newest = 2 if what == "tokenizer" else 1
    new = text.replace("format = 1", "format = 2").replace('"format": 1', f'"format": {newest + 1}')
    if what == "checkpoint":
        manifest = {"format": 2, "files": json.loads(text)["files"]}
        new = json.dumps(manifest | {"sha256": seal(manifest)})
    assert new != text
    path.write_text(new)
    before = content(home)
    with pytest.raises(NewerFormat, match=f"it has format {newest + 1}, and this version reads formats up to {newest}") as caught:
        train(tiny.config(trained / "text.txt", save_every=2))
    assert caught.value.exit_code == 4 and "update NanoChat Appliance" in caught.value.hint
    after = content(home)
    assert {name: data for name, data in after.items() if name in before} == before


def test_a_file_without_a_number_is_of_the_first_format(home: Path) -> None:
    record, manifest = home / "runs/tiny/config.toml", home / "runs/tiny/base/step_000004/manifest.json"
    record.write_text(record.read_text().replace("format = 1\n", ""))
    files = json.loads(manifest.read_text())["files"]
    sealed = hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()  # as earlier versions wrote it
    manifest.write_text(json.dumps({"files": files, "sha256": sealed}))
    newest = Checkpoints(paths.run_dir("tiny") / "base").newest()
    assert newest is not None and newest.step == 4
    assert tiny.losses(home)
