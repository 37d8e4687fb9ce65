"""The files in a zip or tar archive that are read, unpacked under names of our own into a folder that the caller removes."""

import stat
import tarfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO

from nanochat import untrusted
from nanochat.errors import DataError
from nanochat.hub.archive import FILES, checked_zip, require_plain
from nanochat.hub.download import require_space
from nanochat.readers.files import ARCHIVES, File, choose, kind_of
from nanochat.readers.textfile import BLOCK, TEXT, Allowance, open_bytes

_HINT = "unpack it, and give the directory"


def unpack(archive: File, folder: Path, allowance: Allowance = TEXT) -> list[File]:
    """The files of an archive that are read, sorted by name, each in `folder`; archives within are left out and counted.

    Raises DataError if it is damaged, encrypted, holds no such file, or unpacks to more than `allowance`.
    """
    found: dict[PurePosixPath, Path] = {}
    left = max(allowance.free, allowance.ratio * archive.path.stat().st_size)
    for number, (name, stream) in enumerate(_zip(archive) if archive.kind == "zip" else _tar(archive)):
        path = PurePosixPath(name)
        hidden = any((part.startswith(".") and part != "..") or part == "__MACOSX" for part in path.parts)
        if number >= FILES:
            raise DataError(f"{archive} holds more than {FILES:,} files", _HINT)
        if hidden:
            continue
        found[path] = target = folder / f"{number:06d}{''.join(path.suffixes[-2:]) if kind_of(path) else ''}"
        with target.open("xb") as file:
            while kind_of(path) not in ("", *ARCHIVES) and (block := stream.read(BLOCK)):
                left -= len(block)
                if left < 0:
                    raise DataError(f"{archive} unpacks to more than {max(allowance.free, 0):,} bytes by {untrusted.shown(name)}", _HINT)
                file.write(block)
    names = choose(str(archive), [*found], inside=True)
    return [File(found[name], f"{archive}/{name}", kind_of(name)) for name in names]


def _zip(archive: File) -> Iterator[tuple[str, IO[bytes]]]:
    with checked_zip(archive.path, str(archive), _HINT) as found:
        entries = [entry for entry in found.infolist() if not entry.is_dir() and stat.S_IFMT(entry.external_attr >> 16) != stat.S_IFLNK]
        require_space(f"unpacking {archive}", sum(entry.file_size for entry in entries), archive.path.parent)
        for entry in entries:
            require_plain(entry)
            with found.open(entry) as stream:
                yield entry.filename, stream


def _tar(archive: File) -> Iterator[tuple[str, IO[bytes]]]:
    try:
        with open_bytes(archive) as stream, tarfile.open(fileobj=stream, mode="r|") as found:
            for member in found:
                if member.isreg() and (content := found.extractfile(member)):
                    yield member.name, content
    except (tarfile.TarError, ValueError, EOFError) as error:
        raise DataError(f"{archive} cannot be used as a tar archive: {untrusted.reason(error)}", _HINT) from error
