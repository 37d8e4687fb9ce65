"""Reads archives that came from elsewhere: nothing is written outside of the folder, and no more than was agreed."""

import contextlib
import shutil
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from nanochat import untrusted
from nanochat.errors import DataError
from nanochat.hub.download import require_space
from nanochat.paths import atomic_folder

FILES = 10_000  # in an archive at most
DIRECTORY_BYTES = 4 << 20  # of its list of files at most
_END, _END_BYTES, _COMMENT_BYTES = b"PK\x05\x06", 22, 65535
_ZIP64_LOCATOR, _ZIP64_BYTES = b"PK\x06\x07", 20
_DAMAGE = (zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError, EOFError, ValueError, FileExistsError, struct.error)


def extract_zip(archive: Path, folder: Path, prefix: str, most_bytes: int) -> None:
    """Unpack what is under `prefix` in `archive` so that `folder` appears whole, each file's sum (CRC-32) checked.

    Raises DataError for an archive that is damaged, holds links or names that lead elsewhere, or unpacks to more than `most_bytes`,
    PreflightError if the disk is too full. `folder` does not exist until the last file is verified.
    """
    with checked_zip(archive) as found:
        targets = _targets(found, prefix)
        size = sum(entry.file_size for entry in targets.values())
        if size > most_bytes:
            raise ValueError(f"it unpacks to {size:,} bytes, and at most {most_bytes:,} are possible")
        require_space(f"unpacking {archive.name}", size, folder)
        with atomic_folder(folder) as temporary:
            for name, entry in targets.items():
                target = untrusted.inside(temporary, name)
                target.parent.mkdir(parents=True, exist_ok=True)
                with found.open(entry) as source, target.open("xb") as file:  # never into a file that is there
                    shutil.copyfileobj(source, file)  # which ends at the size in the list


@contextlib.contextmanager
def checked_zip(archive: Path, name: str = "", hint: str = "") -> Iterator[zipfile.ZipFile]:
    """An open zip archive whose list of files is of a bounded size. Raises DataError for damage, and for a ValueError of the block.

    name: of the archive in messages.
    """
    try:
        _check_directory(archive)
        with zipfile.ZipFile(archive) as found:
            if len(found.infolist()) > FILES:
                raise ValueError(f"it holds {len(found.infolist()):,} files, and at most {FILES:,} are possible")
            yield found
    except _DAMAGE as error:
        raise DataError(f"{name or archive} cannot be used as a zip archive: {untrusted.reason(error)}", hint) from error


def read_entry(archive: zipfile.ZipFile, name: str, most: int) -> bytes:
    """The content of a file in an archive, `most` bytes at most. Raises KeyError if it is missing, ValueError if it is larger."""
    entry = archive.getinfo(name)
    require_plain(entry)
    with archive.open(entry) as source:
        data = source.read(most + 1)
    if len(data) > most:
        raise ValueError(f"{untrusted.shown(name)} has more than {most:,} bytes")
    return data


def require_plain(entry: zipfile.ZipInfo) -> None:
    """Raise ValueError if an entry is not a regular file that can be read."""
    if stat.S_IFMT(entry.external_attr >> 16) not in (0, stat.S_IFREG):
        raise ValueError(f"{untrusted.shown(entry.filename)} is a link or a device")
    if entry.flag_bits & 1:
        raise ValueError(f"{untrusted.shown(entry.filename)} is encrypted")


def _check_directory(archive: Path) -> None:
    """Raise ValueError if the archive's list of files is too large, because zipfile keeps all of it in memory."""
    size = untrusted.regular_file(archive)
    with archive.open("rb") as file:
        file.seek(max(size - _END_BYTES - _COMMENT_BYTES - _ZIP64_BYTES, 0))
        tail = file.read()
    end = len(tail) - _END_BYTES if tail[-_END_BYTES:].startswith(_END) and tail.endswith(b"\0\0") else tail.rfind(_END)
    if end < 0 or len(tail) - end < _END_BYTES:
        raise ValueError("it is truncated")
    length = struct.unpack_from("<L", tail, end + 12)[0]
    if length > DIRECTORY_BYTES or tail[max(end - _ZIP64_BYTES, 0) : end].startswith(_ZIP64_LOCATOR):
        raise ValueError(f"its list of files has more than {DIRECTORY_BYTES:,} bytes, or is in the zip64 format")


def _targets(found: zipfile.ZipFile, prefix: str) -> dict[str, zipfile.ZipInfo]:
    """The files under `prefix`: name below it -> entry. Raises ValueError for names that lead elsewhere or come twice, links, too many."""
    targets: dict[str, zipfile.ZipInfo] = {}
    for entry in found.infolist():
        if not entry.filename.startswith(f"{prefix}/") or entry.is_dir():
            continue
        name = entry.filename.removeprefix(f"{prefix}/")
        require_plain(entry)
        if name in targets:
            raise ValueError(f"{untrusted.shown(entry.filename)} comes twice")
        targets[safe_name(name)] = entry
    return targets


def safe_name(name: str) -> str:
    """Return the name of an archive's file, which may have several parts. Raises ValueError if it leads elsewhere."""
    if not name.isprintable() or "\\" in name or any(part in ("", ".", "..") or len(part) > 200 for part in name.split("/")):
        raise ValueError(f"{untrusted.shown(name)} has an unsafe name")
    return name


def tar_files(file: IO[bytes]) -> Iterator[tuple[str, int]]:
    """(name, bytes) of each file in an open tar archive, whose content is then to be read from `file`, up to its end.

    Only headers of regular files with names of at most 100 bytes are accepted, as `tar_header` writes them: others, for links, long
    names and sparse files, may ask for any amount of memory. Raises ValueError.
    """
    count = 0
    while (block := file.read(tarfile.BLOCKSIZE)).strip(b"\0"):
        try:
            entry = tarfile.TarInfo.frombuf(block, "utf-8", "strict")
        except (tarfile.TarError, ValueError) as error:
            raise ValueError(f"its file number {count + 1} has a damaged header") from error
        if entry.type != tarfile.REGTYPE or entry.size < 0:
            raise ValueError(f"{untrusted.shown(entry.name)} is a link, a device or a directory")
        count += 1
        if count > FILES:
            raise ValueError(f"it holds more than {FILES:,} files")
        begin = file.tell()
        yield safe_name(entry.name), entry.size
        file.seek(begin + -(-entry.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE)
    if len(block) < tarfile.BLOCKSIZE:
        raise ValueError("it is truncated")


def tar_header(name: str, size: int) -> bytes:
    """The header of a file in a tar archive, which any tar program reads. Its content and zeros to a multiple of 512 bytes follow."""
    entry = tarfile.TarInfo(safe_name(name))
    entry.size, entry.mode = size, 0o644
    block = entry.tobuf(tarfile.GNU_FORMAT)
    if len(block) != tarfile.BLOCKSIZE:
        raise ValueError(f"{untrusted.shown(name)} is too long a name")
    return block
