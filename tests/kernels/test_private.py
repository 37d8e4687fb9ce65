"""A folder for compiled code: private, or another one; what others may have written there is never loaded."""

import os
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from nanochat.errors import PreflightError
from nanochat.kernels import private
from nanochat.train import device

NAME = "cpu-torch9"


def make(place: Path) -> Path:
    private.private_folder.cache_clear()
    return private.private_folder(place, NAME)


@pytest.fixture
def place(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The data directory's cache/; the user's own cache and the temporary directory are in tmp_path too."""
    base.mkdir()
    (tmp_path / "tmp").mkdir(mode=0o700)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    return base / "cache"


def test_it_is_private_and_kept(place: Path) -> None:
    folder = make(place)
    assert folder == place / NAME and stat.S_IMODE(folder.stat().st_mode) == 0o700
    (folder / "kept").touch()
    folder.chmod(0o755)  # readable by others: they have not written it
    assert make(place) == folder and (folder / "kept").exists() and stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert [path.name for path in place.iterdir() if path.name != ".lock"] == [NAME]


def opened(folder: Path) -> None:
    folder.chmod(0o777)


def opened_to_the_group(folder: Path) -> None:
    folder.chmod(0o770)


def given_away(folder: Path) -> None:
    if os.geteuid():
        pytest.skip("only root gives a folder away")
    os.chown(folder, 12345, 12345)


def copied(folder: Path) -> None:
    """As `cp -a` or an archive brings it: the mode, the owner and every file are right."""
    other = folder.with_name("other")
    folder.rename(other)
    shutil.copytree(other, folder)
    shutil.rmtree(other)


def linked(folder: Path) -> None:
    folder.rename(folder.parent.parent / "elsewhere")
    folder.symlink_to(folder.parent.parent / "elsewhere")


def unmarked(folder: Path) -> None:
    (folder / private.MADE_HERE).unlink()


def a_file(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.touch()


@pytest.mark.parametrize(
    "happened", [opened, opened_to_the_group, given_away, copied, linked, unmarked, a_file], ids=lambda each: each.__name__
)
def test_what_others_may_have_written_is_never_used(
    happened: Callable[[Path], None], place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make(place)
    (folder / "planted").touch()
    happened(folder)
    again = make(place)
    assert again == folder and not folder.is_symlink() and [path.name for path in again.iterdir()] == [private.MADE_HERE]
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700 and folder.stat().st_uid == os.geteuid()
    assert "cleared " in capsys.readouterr().err
    if happened is linked:
        assert (place.parent / "elsewhere" / "planted").exists()  # a link is not followed


def test_a_data_directory_that_others_may_write_to(base: Path, place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """They could exchange any folder in it. The user's own cache is used, which is said once."""
    base.chmod(0o777)
    assert make(place) == tmp_path / "xdg" / "nanochat-compiled" / NAME == private.private_folder(place, NAME)
    assert capsys.readouterr().err.count(f"other users may write to {base}") == 1
    assert not (place / NAME).exists()
    base.chmod(0o1777)  # as the image's /data
    assert make(place) == place / NAME


@pytest.mark.parametrize("mode", [0o777, 0o755])
def test_a_volume_that_shows_everything_as_open(
    base: Path, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: int
) -> None:
    """As those of Windows: chmod says that all is well and changes nothing, so that no mode there means anything."""
    real = Path.mkdir

    def mkdir(self: Path, *arguments: int, **options: bool) -> None:
        real(self, *arguments, **options)
        if base in self.parents:
            os.chmod(self, mode)

    monkeypatch.setattr(Path, "mkdir", mkdir)
    assert make(place) == tmp_path / "xdg" / "nanochat-compiled" / NAME


def test_no_folder_is_private(base: Path, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One for this process alone; and an error if there is no temporary directory either."""
    monkeypatch.setattr(private, "_prepare", lambda folder: f"other users may write to {folder}")
    made = make(place)
    assert made.parent == tmp_path / "tmp" and stat.S_IMODE(made.stat().st_mode) == 0o700
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))
    with pytest.raises(PreflightError, match="other users may write to") as caught:
        make(place)
    assert "set TORCHINDUCTOR_CACHE_DIR" in caught.value.hint


def test_folders_that_the_user_names(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    private.private_folder.cache_clear()
    own, shared = tmp_path / "own", tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o777)
    monkeypatch.setenv(device.INDUCTOR, str(own))
    monkeypatch.setenv(device.TRITON, str(shared))
    assert device.cache_folder("cpu") == own and device.TRITON not in os.environ
    assert f"TRITON_CACHE_DIR is not used: other users may write to {shared}" in capsys.readouterr().err
    monkeypatch.setenv(device.INDUCTOR, str(shared))
    assert device.cache_folder("cpu").parent == place and os.environ[device.INDUCTOR].startswith(str(place))
    assert (Path(os.environ[device.INDUCTOR]) / private.MADE_HERE).exists()  # a private one in its place
    assert "TORCHINDUCTOR_CACHE_DIR is not used" in capsys.readouterr().err


MAKE = """
import sys
from pathlib import Path
from nanochat.kernels.private import private_folder
(private_folder(Path(sys.argv[1]), sys.argv[2]) / sys.argv[3]).touch()
"""


@pytest.mark.long
def test_many_processes_at_once_make_one(place: Path) -> None:
    """Over an old one that is not to be trusted."""
    (place / NAME).mkdir(parents=True)
    (place / NAME / "planted").touch()
    numbers = [str(number) for number in range(6)]
    started = [subprocess.Popen([sys.executable, "-c", MAKE, str(place), NAME, number]) for number in numbers]
    assert [process.wait(60) for process in started] == [0] * 6
    assert sorted(path.name for path in (place / NAME).iterdir()) == [*numbers, private.MADE_HERE]
