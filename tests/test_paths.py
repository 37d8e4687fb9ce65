"""Files and folders appear whole or not at all, locks hold, and a refusal of the disk is an error that says what to do."""

import errno
import hashlib
import os
import threading
import time
from pathlib import Path

import pytest

from nanochat import paths
from nanochat.errors import PreflightError


def test_where_everything_lies(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert paths.base_dir() == base
    assert paths.run_dir("r") == base / "runs" / "r" and paths.dataset_dir("d") == base / "data" / "d"
    monkeypatch.setenv("NANOCHAT_BASE_DIR", "~/x")
    assert paths.base_dir() == Path.home() / "x"
    monkeypatch.chdir("/")
    monkeypatch.setenv("NANOCHAT_BASE_DIR", "here")
    assert paths.base_dir() == Path("/here")
    monkeypatch.delenv("NANOCHAT_BASE_DIR")
    assert paths.base_dir() == Path.home() / ".cache" / "nanochat"


@pytest.mark.parametrize("size", [0, 10, (1 << 20) + 1])
def test_a_files_hash(size: int, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x" * size)
    assert paths.sha256(tmp_path / "file") == hashlib.sha256(b"x" * size).hexdigest()


def test_a_file_is_old_or_new(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "deep" / "file"
    paths.atomic_write(path, "old")
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(errno.ENOSPC, "full")))
    with pytest.raises(OSError):
        paths.atomic_write(path, "new")
    assert path.read_text() == "old" and os.listdir(path.parent) == ["file"]
    monkeypatch.undo()
    paths.atomic_write(path, b"new")
    assert path.read_text() == "new" and os.listdir(path.parent) == ["file"]


def test_a_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "folder"

    def fail() -> None:
        with paths.atomic_folder(path) as temporary:
            (temporary / "file").write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert os.listdir(tmp_path) == []
    with paths.atomic_folder(path) as temporary:
        (temporary / "file").write_text("whole")
        assert not path.exists() and temporary.name.startswith(paths.TEMPORARY)
    assert (path / "file").read_text() == "whole" and os.listdir(tmp_path) == ["folder"]


def test_of_two_that_make_a_folder_the_first_is_kept(tmp_path: Path) -> None:
    with paths.atomic_folder(tmp_path / "folder") as slow:
        (slow / "file").write_text("second")
        with paths.atomic_folder(tmp_path / "folder") as quick:
            (quick / "file").write_text("first")
    assert (tmp_path / "folder" / "file").read_text() == "first" and os.listdir(tmp_path) == ["folder"]


def test_a_lock_is_held_by_one(tmp_path: Path) -> None:
    inside, most = 0, 0

    def work() -> None:
        nonlocal inside, most
        with paths.locked(tmp_path / "below" / "lock"):
            inside += 1
            most = max(most, inside)
            time.sleep(0.01)
            inside -= 1

    threads = [threading.Thread(target=work) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert (most, inside) == (1, 0)


def test_only_what_is_stale_is_swept(base: Path) -> None:
    def left(place: str, age: float, folder: bool) -> Path:
        path = base / place / f"{paths.TEMPORARY}{place.replace('/', '-')}-{age}"
        path.parent.mkdir(parents=True, exist_ok=True)
        (path.mkdir if folder else path.touch)()
        os.utime(path, (time.time() - age,) * 2)
        return path

    places = [("data", True), ("tokenizer", True), ("tokens/abc/T8-v1", False), ("runs/r", False)]
    old = [left(place, 2 * paths.STALE_SECONDS, folder) for place, folder in places]
    new = [left(place, 60, folder) for place, folder in places]
    kept = base / "data" / "mine"
    kept.mkdir()
    os.utime(kept, (0, 0))
    paths.sweep()
    assert not any(path.exists() for path in old) and all(path.exists() for path in [*new, kept])


@pytest.mark.parametrize(
    ("number", "code", "words"),
    [(errno.ENOSPC, 3, "full"), (errno.EROFS, 3, "cannot write"), (errno.ENOTDIR, 3, "cannot write"), (errno.EIO, 1, "")],
)
def test_a_refusal_of_the_disk_is_told(base: Path, number: int, code: int, words: str) -> None:
    error = paths.disk_error(OSError(number, os.strerror(number), "/some/file"), "saving")
    assert error.exit_code == code and words in error.message and "while saving" in error.message and "/some/file" in error.message
    assert error.hint and (code == 1 or "NANOCHAT_BASE_DIR" in error.hint)


def test_a_writable_folder_is_required(tmp_path: Path) -> None:
    paths.require_writable(tmp_path / "new" / "folder")
    assert os.listdir(tmp_path / "new" / "folder") == []
    (tmp_path / "file").touch()
    for place in (tmp_path / "file", tmp_path / "file" / "below", Path("/proc/nanochat")):
        with pytest.raises(PreflightError, match="cannot write"):
            paths.require_writable(place)


def test_a_user_without_a_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As in a container that runs as a number without an entry in /etc/passwd."""

    def none() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", none)
    monkeypatch.delenv("NANOCHAT_BASE_DIR", raising=False)
    with pytest.raises(PreflightError) as caught:
        paths.base_dir()
    assert "no home directory" in caught.value.message and "set NANOCHAT_BASE_DIR" in caught.value.hint
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tmp_path))
    assert paths.base_dir() == tmp_path
