"""A folder for compiled code, which nobody but this user can have written: what is in it is loaded, and torch's part of it are pickles.

Owner and mode are checked before each use, and that the folder was made here: it holds its own inode number, which a copy does not have.
"""

import atexit
import contextlib
import functools
import grp
import os
import pwd
import shutil
import stat
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

from nanochat import paths
from nanochat.console import log
from nanochat.errors import PreflightError

MADE_HERE = "made-here"  # file in the folder: its inode number
OTHERS = stat.S_IRWXG | stat.S_IRWXO
OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH


def why_not_private(folder: Path) -> str:
    """Why others may have written what is in `folder`, or may exchange it; nothing if they cannot. Raises OSError."""
    about = folder.lstat()
    if not stat.S_ISDIR(about.st_mode):
        return f"{folder} is not a directory"
    if about.st_uid != os.geteuid():
        return f"{folder} belongs to another user"
    if about.st_mode & OTHERS_WRITE:
        return f"others may write to {folder}"
    for parent in folder.resolve().parents:
        about = parent.stat()
        if about.st_mode & stat.S_ISVTX:  # as in /tmp: only a file's owner renames it
            continue
        if about.st_uid not in (0, os.geteuid()):
            return f"{parent} belongs to another user"
        if about.st_mode & stat.S_IWOTH or (about.st_mode & stat.S_IWGRP and not _own_group(about.st_gid)):
            return f"others may write to {parent}"
    return ""


def _own_group(group: int) -> bool:
    """Whether nobody else is in `group`: where umask is 002, each user has a group of the same name."""
    with contextlib.suppress(KeyError):
        user, found = pwd.getpwuid(os.geteuid()).pw_name, grp.getgrgid(group)
        return found.gr_name == user and set(found.gr_mem) <= {user}
    return False


@functools.cache
def private_folder(place: Path, name: str) -> Path:
    """A private folder `name` in `place`, else in the user's cache directory or a temporary one, and why, which is said once.

    Raises PreflightError if there is none.
    """
    reasons: list[str] = []
    for parent in (place, *_others()):
        try:
            why = _prepare(parent / name)
        except (OSError, PreflightError) as error:
            why = str(error)
        if not why:
            return _told(parent / name, reasons)
        reasons.append(why)
    try:
        made = Path(tempfile.mkdtemp(prefix="nanochat-"))
    except OSError as error:
        raise PreflightError(
            f"no directory for compiled code is private: {reasons[0]}",
            "name one that is yours alone: TORCHINDUCTOR_CACHE_DIR=DIRECTORY (chmod 700 DIRECTORY)",
        ) from error
    atexit.register(shutil.rmtree, made, ignore_errors=True)
    return _told(made, reasons)


def _others() -> Iterator[Path]:
    """Directories of this user's, where the data directory is not private."""
    if cache := os.environ.get("XDG_CACHE_HOME"):
        yield Path(cache, "nanochat-compiled")
    elif home := os.environ.get("HOME"):
        yield Path(home, ".cache", "nanochat-compiled")
    with contextlib.suppress(OSError):  # no temporary directory can be written
        yield Path(tempfile.gettempdir(), f"nanochat-{os.geteuid()}")


def _told(folder: Path, reasons: list[str]) -> Path:
    if reasons:
        log(f"compiled code is kept in {folder}: {reasons[0]}")
    return folder


def _prepare(folder: Path) -> str:
    """Make `folder` private, and anew where others may have written what is in it; returns why it cannot be, or nothing. Raises OSError."""
    folder.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    probe = folder.parent / f"{paths.TEMPORARY}{uuid.uuid4().hex}"
    probe.mkdir(mode=0o700)
    try:
        if why := why_not_private(probe) or _open_to_others(probe):
            return why.replace(str(probe), str(folder.parent))
        with paths.locked(folder.parent / ".lock"):
            if not _trusted(folder):
                if folder.is_symlink() or folder.exists():
                    log(f"{folder} may hold what others have compiled: it is made anew")
                    _remove(folder)
                paths.atomic_write(probe / MADE_HERE, str(probe.stat().st_ino))
                probe.rename(folder)
    finally:
        shutil.rmtree(probe, ignore_errors=True)
    return ""


def _open_to_others(folder: Path) -> str:
    """Why a new folder of mode 0700 is not one, or nothing."""
    return f"{folder} shows every file as open to others" if folder.stat().st_mode & OTHERS else ""


def _trusted(folder: Path) -> bool:
    """Whether `folder` is one that `_prepare` has made, and nobody else could write to it since."""
    try:
        if why_not_private(folder) or (folder / MADE_HERE).read_text(encoding="utf-8") != str(folder.stat().st_ino):
            return False
        folder.chmod(0o700)
        return True
    except (OSError, ValueError):
        return False


def _remove(folder: Path) -> None:
    """Remove what is at `folder`, under another name first: somebody may be reading it. A link is not followed."""
    aside = folder.parent / f"{paths.TEMPORARY}{uuid.uuid4().hex}"
    folder.rename(aside)
    if aside.is_symlink() or not aside.is_dir():
        aside.unlink()
    else:
        shutil.rmtree(aside, ignore_errors=True)
