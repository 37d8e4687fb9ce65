"""The directory of an export, written atomically, with disk errors that name it."""

import contextlib
import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from nanochat import paths
from nanochat.errors import UsageError

FULL_BYTES = 1 << 20  # a disk with less than this is full


@contextlib.contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """Fill a temporary directory that becomes `out` if the block succeeds; otherwise nothing is left.

    Raises UsageError if `out` exists, also if another process creates it meanwhile, PreflightError if it cannot be written.
    """
    if os.path.lexists(out):
        raise _exists(out)
    try:
        with paths.atomic_folder(out, exclusive=True) as folder:
            try:
                yield folder
            except OSError as error:  # numpy's error has no error number
                if error.errno is None and shutil.disk_usage(folder).free < FULL_BYTES:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(out)) from error
                raise
    except FileExistsError as error:
        if error.filename == str(out):
            raise _exists(out) from error
        raise paths.disk_error(error, f"writing {out}", out) from error
    except OSError as error:
        raise paths.disk_error(error, f"writing {out}", out) from error


def _exists(out: Path) -> UsageError:
    return UsageError(f"{out} exists already", "choose another directory with --out, or remove this one")
