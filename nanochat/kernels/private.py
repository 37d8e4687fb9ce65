"""A private directory for compiled code: its libraries and torch's pickles are loaded, so no other user may have written them.

Each use checks owner and mode, and that the directory was created here: it records its own inode number, which a copy does not have.
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

MADE_HERE = "made-here"  # file with the directory's inode number
OTHERS = stat.S_IRWXG | stat.S_IRWXO
OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH


def why_not_private(folder: Path) -> str:
    """The reason why other users may write to `folder` or replace it; "" if they cannot. Raises OSError."""
    about = folder.lstat()
    if not stat.S_ISDIR(about.st_mode):
        return f"{folder} is not a directory"
    if about.st_uid != os.geteuid():
        return f"{folder} belongs to another user"
    if about.st_mode & OTHERS_WRITE:
        return f"other users may write to {folder}"
    for parent in folder.resolve().parents:
        about = parent.stat()
        if about.st_mode & stat.S_ISVTX:  # as in /tmp: only a file's owner can rename it
            continue
        if about.st_uid not in (0, os.geteuid()):
            return f"{parent} belongs to another user"
        if about.st_mode & stat.S_IWOTH or (about.st_mode & stat.S_IWGRP and not _own_group(about.st_gid)):
            return f"other users may write to {parent}"
    return ""


def _own_group(group: int) -> bool:
    """Whether this user is the only member of `group`: on systems with umask 002, each user has such a group."""
    with contextlib.suppress(KeyError):
        user, found = pwd.getpwuid(os.geteuid()).pw_name, grp.getgrgid(group)
        return found.gr_name == user and set(found.gr_mem) <= {user}
    return False


@functools.cache
def private_folder(place: Path, name: str) -> Path:
    """A private directory `name` in `place`, else in the user's cache directory or a temporary one, with a message for the reason.

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
            f"no private directory for compiled code: {reasons[0]}",
            "set TORCHINDUCTOR_CACHE_DIR to a directory that only you can write to (chmod 700)",
        ) from error
    atexit.register(shutil.rmtree, made, ignore_errors=True)
    return _told(made, reasons)


def _others() -> Iterator[Path]:
    """Alternatives to the data directory: this user's cache and temporary directories."""
    if cache := os.environ.get("XDG_CACHE_HOME"):
        yield Path(cache, "nanochat-compiled")
    elif home := os.environ.get("HOME"):
        yield Path(home, ".cache", "nanochat-compiled")
    with contextlib.suppress(OSError):  # no writable temporary directory
        yield Path(tempfile.gettempdir(), f"nanochat-{os.geteuid()}")


def _told(folder: Path, reasons: list[str]) -> Path:
    if reasons:
        log(f"compiled code is kept in {folder}: {reasons[0]}")
    return folder


def _prepare(folder: Path) -> str:
    """Make `folder` private, emptied if other users may have written to it. Returns the reason for a failure, else "". Raises OSError."""
    folder.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    probe = folder.parent / f"{paths.TEMPORARY}{uuid.uuid4().hex}"
    probe.mkdir(mode=0o700)
    try:
        if why := why_not_private(probe) or _open_to_others(probe):
            return why.replace(str(probe), str(folder.parent))
        with paths.locked(folder.parent / ".lock"):
            if not _trusted(folder):
                if folder.is_symlink() or folder.exists():
                    log(f"cleared {folder}: other users may have written compiled code to it")
                    _remove(folder)
                paths.atomic_write(probe / MADE_HERE, str(probe.stat().st_ino))
                probe.rename(folder)
    finally:
        shutil.rmtree(probe, ignore_errors=True)
    return ""


def _open_to_others(folder: Path) -> str:
    """The reason why a new directory of mode 0700 is not private, as on some file systems; else ""."""
    return f"the file system of {folder} keeps no permissions" if folder.stat().st_mode & OTHERS else ""


def _trusted(folder: Path) -> bool:
    """Whether `_prepare` created `folder`, and no other user could write to it since."""
    try:
        if why_not_private(folder) or (folder / MADE_HERE).read_text(encoding="utf-8") != str(folder.stat().st_ino):
            return False
        folder.chmod(0o700)
        return True
    except (OSError, ValueError):
        return False


def _remove(folder: Path) -> None:
    """Rename `folder` and remove it, because another process may be reading it. A link is not followed."""
    aside = folder.parent / f"{paths.TEMPORARY}{uuid.uuid4().hex}"
    folder.rename(aside)
    if aside.is_symlink() or not aside.is_dir():
        aside.unlink()
    else:
        shutil.rmtree(aside, ignore_errors=True)
