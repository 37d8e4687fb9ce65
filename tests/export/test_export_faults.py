"""An export whose disk is full, whose step is pruned, or whose folder another process makes: nothing half there, the right error."""

import errno
import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from nanochat import paths
from nanochat.errors import DataError, PreflightError, UsageError
from nanochat.export import folder, gguf_file, importer
from nanochat.runs import checkpoint
from nanochat.runs import record as runs
from nanochat.runs.step_files import seal
from tests import tiny
from tests.export.random_model import random_model


@pytest.fixture
def exported(base: Path, tmp_path: Path) -> Path:
    folder.write_folder(random_model("qwen3", 1), tmp_path / "export")
    return tmp_path / "export"


@pytest.fixture
def run(exported: Path) -> Path:
    """The folder of an imported run."""
    return paths.run_dir(importer.import_folder(exported, "tiny"))


def on_a_small_disk(place: Path, command: list[str], size: str) -> "subprocess.CompletedProcess[str]":
    """Run a command in a namespace of its own where `place` is a file system of `size`; at its end what is there is listed on stdout."""
    script = 'mount -t tmpfs -o size="$1" none "$2" || exit 99; place=$2; shift 2; "$@"; code=$?; ls -A "$place"; exit $code'
    whole = ["unshare", "--mount", "--map-root-user", "sh", "-c", script, "sh", size, str(place), *command]
    done = subprocess.run(whole, cwd=tiny.ROOT, env=tiny.environment(paths.base_dir()), text=True, capture_output=True, timeout=60)
    if done.returncode == 99 or "unshare" in done.stderr:
        pytest.skip(f"no file system can be mounted here: {done.stderr}")
    return done


@pytest.mark.long
@pytest.mark.skipif(not shutil.which("unshare"), reason="no namespaces")
@pytest.mark.parametrize("to", ["hf", "gguf"])
@pytest.mark.parametrize("size", ["4k", "64k", "300k"])
def test_a_full_disk_is_said_of_the_folder_that_was_named(to: str, size: str, run: Path, tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    command = [sys.executable, "entrypoint.py", "export", f"--to={to}", f"--out={small / 'out'}", "--run=tiny"]
    done = on_a_small_disk(small, command, size)
    assert done.returncode == 3, done.stderr
    assert f"the disk is full while writing {small / 'out'}" in done.stderr and "--out" in done.stderr
    assert str(paths.base_dir()) not in done.stderr.splitlines()[-2] and done.stdout == ""


@pytest.mark.long
@pytest.mark.skipif(not shutil.which("unshare"), reason="no namespaces")
def test_an_import_on_a_full_disk_leaves_no_run(exported: Path) -> None:
    paths.runs_dir().mkdir(parents=True)
    done = on_a_small_disk(paths.runs_dir(), [sys.executable, "entrypoint.py", "import", str(exported), "--run=other"], "100k")
    assert done.returncode == 3 and done.stdout == "", done.stderr
    again = tiny.call(paths.base_dir(), "entrypoint.py", "import", str(exported), "--run=other")
    assert again.returncode == 0, again.stderr


def test_a_writer_that_hides_the_reason(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """numpy says how many numbers were written, not why no more."""
    pytest.importorskip("gguf")

    def refuse(self: object, *arguments: object) -> None:
        raise OSError("1000 requested and 12 written")

    monkeypatch.setattr("gguf.GGUFWriter.write_tensors_to_file", refuse)
    monkeypatch.setattr(shutil, "disk_usage", lambda place: type("usage", (), {"free": 0}))
    with pytest.raises(PreflightError, match="disk is full") as caught:
        gguf_file.write_gguf(runs.open_model("tiny"), tmp_path / "out")
    assert str(tmp_path / "out") in caught.value.message and not (tmp_path / "out").exists()
    assert not list(tmp_path.glob(".tmp-*"))


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.EIO])
def test_any_fault_leaves_nothing(number: int, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, value: object) -> None:
        raise OSError(number, os.strerror(number), str(path))

    monkeypatch.setattr(paths, "atomic_write_json", refuse)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(Exception, match="while writing") as caught:
        folder.write_folder(runs.open_model("tiny"), tmp_path / "out")
    assert str(tmp_path / "out") in str(caught.value) and sorted(tmp_path.iterdir()) == before


def test_a_folder_that_appears_meanwhile_is_nobodys(exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two exports to one folder, and of two imports of one run, one works and the other says why."""
    out = tmp_path / "out"
    model, real = random_model("qwen3", 1), shutil.copyfile

    def other(*arguments: object) -> None:
        out.mkdir(exist_ok=True)
        (out / "theirs").write_text("theirs")
        real(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(shutil, "copyfile", other)
    with pytest.raises(UsageError, match="exists"):
        folder.write_folder(model, out)
    assert [path.name for path in out.iterdir()] == ["theirs"]

    results: list[object] = []

    def take() -> None:
        try:
            results.append(importer.import_folder(exported, "both"))
        except UsageError as error:
            results.append(error)

    threads = [threading.Thread(target=take) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results.count("both") == 1 and sum(isinstance(result, UsageError) for result in results) == 5
    assert [path.name for path in paths.runs_dir().iterdir()] == ["both"]


def test_an_unfinished_import_is_no_run(run: Path) -> None:
    shutil.copytree(run, paths.runs_dir() / ".tmp-0123")
    for path in (paths.runs_dir() / ".tmp-0123").rglob("manifest.json"):
        os.utime(path, (2**32, 2**32))
    assert runs.newest_run() == "tiny"


def test_links_out_of_a_received_folder_are_refused(exported: Path, tmp_path: Path) -> None:
    for name in (folder.ABOUT, folder.WEIGHTS, "tokenizer.json"):
        kept = tmp_path / name
        (exported / name).rename(kept)
        (exported / name).symlink_to(kept)
        with pytest.raises(DataError, match="link that leads outside"):
            importer.import_folder(exported)
        (exported / name).unlink()
        kept.rename(exported / name)


@pytest.mark.parametrize(
    "change", [{"stage": "/x"}, {"stage": "../x"}, {"stage": "base/../.."}, {"step": -1}, {"step": "7"}, {"step": 7.0}]
)
def test_no_part_of_a_path_is_taken_from_a_received_folder(change: dict, exported: Path) -> None:
    about = json.loads((exported / folder.ABOUT).read_text())
    about["meta"] |= change
    (exported / folder.ABOUT).write_text(json.dumps(about))
    with pytest.raises(DataError, match=f"{next(iter(change))} is"):
        importer.import_folder(exported)
    assert not paths.runs_dir().exists()


@pytest.mark.parametrize(
    "change", [{"depth": 10**7}, {"depth": 900}, {"vocab_size": 2**21}, {"max_seq_len": 10**9}, {"dim": 2**16, "n_head": 2**12}]
)
def test_a_shape_that_the_file_does_not_hold_is_never_built(change: dict, exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    about = json.loads((exported / folder.ABOUT).read_text())
    about["meta"]["model"] |= change
    (exported / folder.ABOUT).write_text(json.dumps(about))
    monkeypatch.setattr(importer, "allocate_model", lambda gpt: pytest.fail("it was built"))
    with pytest.raises(DataError, match="is not an export"):
        importer.import_folder(exported)


# A training run of that name goes on meanwhile


HOLD = """
import sys
from pathlib import Path
from nanochat.runs.checkpoint import held
with held(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def two_steps(run: Path) -> tuple[Path, Path]:
    """The run's step 7, and a newer one."""
    old, new = run / "sft" / "step_000007", run / "sft" / "step_000009"
    shutil.copytree(old, new)
    meta = json.loads((new / "meta.json").read_text()) | {"step": 9}
    (new / "meta.json").write_text(json.dumps(meta))
    files = {name: checkpoint._entry(new / name) for name in ("model.safetensors", "meta.json")}
    (new / "manifest.json").write_text(json.dumps({"files": files, "sha256": seal({"files": files})}))
    return old, new


def test_a_step_that_another_process_reads_is_pruned_later(run: Path) -> None:
    old, new = two_steps(run)
    command = [sys.executable, "-c", HOLD, str(old)]
    reader = subprocess.Popen(command, cwd=tiny.ROOT, env=tiny.environment(paths.base_dir()), stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert reader.stdout is not None and reader.stdout.readline() == b"held\n"
    store = checkpoint.Checkpoints(run / "sft")
    store._prune(new, ["model.safetensors", "meta.json"], keep=1)
    assert checkpoint.verify(old).step == 7
    reader.communicate(b"")
    store._prune(new, ["model.safetensors", "meta.json"], keep=1)
    assert not old.exists() and checkpoint.verify(new).step == 9


def test_a_step_that_is_gone_when_it_is_read_is_replaced_by_a_newer_one(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = run.parent / "kept"
    old, new = two_steps(run)
    new.rename(kept)
    real = runs.newest_checkpoint

    def overtaken(*arguments: object) -> checkpoint.Checkpoint:
        found = real(*arguments)  # type: ignore[arg-type]
        if kept.exists():
            kept.rename(new)
            shutil.rmtree(old)
        return found

    monkeypatch.setattr(runs, "newest_checkpoint", overtaken)
    assert runs.open_model("tiny").checkpoint.step == 9


def test_a_run_whose_steps_all_vanish_ends_in_one_error(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = checkpoint.verify

    def vanishing(step: Path) -> checkpoint.Checkpoint:
        found = real(step)
        shutil.rmtree(step)
        return found

    monkeypatch.setattr(checkpoint, "verify", vanishing)
    with pytest.raises(DataError, match="no complete checkpoint"):
        runs.open_model("tiny")


def test_what_is_no_step_is_never_pruned(run: Path) -> None:
    _, new = two_steps(run)
    (run / "sft" / "notes").mkdir()
    checkpoint.Checkpoints(run / "sft")._prune(new, ["model.safetensors", "meta.json"], keep=1)
    assert sorted(path.name for path in (run / "sft").iterdir()) == ["notes", "step_000009"]
