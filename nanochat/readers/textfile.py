"""A user's file as bytes or text: plain, or gzip, zstd, bzip2 or xz, unpacked in bounded memory."""

import bz2
import contextlib
import gzip
import io
import lzma
import zlib
from collections.abc import Callable, Iterator
from typing import IO, Any, NamedTuple

from nanochat.errors import DataError
from nanochat.readers.files import File

BLOCK = 1 << 20  # bytes or characters read at once

TO_UTF8 = "convert it to UTF-8 (iconv -f ENCODING -t UTF-8 FILE), or leave it out"


class Allowance(NamedTuple):
    """The limit on decompressed bytes: `free`, or `ratio` times the file's size if that is more."""

    free: int
    ratio: int


# Text shrinks to a third or a tenth, and gzip's bound is a thousandth. Conversations are kept in memory, where they take ten times as much.
TEXT, CHATS = Allowance(1 << 30, 500), Allowance(128 << 20, 30)


class _Unpacked(io.RawIOBase):
    """A decompressed stream that raises DataError after more than `most` bytes. Real text is less repetitive."""

    def __init__(self, stream: IO[bytes], file: File, most: int):
        self.stream, self.file, self.left, self.most = stream, file, most, most

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill `buffer` with the next bytes; returns how many."""
        data = self.stream.read(len(buffer))
        buffer[: len(data)] = data
        self.left -= len(data)
        if self.left < 0:
            packed = self.file.path.stat().st_size
            raise DataError(f"{self.file} unpacks to more than {self.most:,} bytes from {packed:,}", "leave it out, because it is not text")
        return len(data)


@contextlib.contextmanager
def open_bytes(file: File, allowance: Allowance = TEXT) -> Iterator[IO[bytes]]:
    """The file's bytes, decompressed where its first bytes say gzip, zstd, bzip2 or xz: no more than `allowance`.

    Raises DataError if they cannot be read, or are more; also midway.
    """
    import zstandard

    try:
        with file.path.open("rb") as raw, contextlib.ExitStack() as stack:
            magic = raw.read(10)
            raw.seek(0)
            stream: IO[bytes] = raw
            if packed := next((open_packed for mark, open_packed in _PACKED.items() if magic.startswith(mark)), None):
                most = max(allowance.free, allowance.ratio * file.path.stat().st_size)
                stream = io.BufferedReader(_Unpacked(stack.enter_context(packed(raw)), file, most), BLOCK)
            yield stream
    except (EOFError, zlib.error, lzma.LZMAError, zstandard.ZstdError) as error:
        raise DataError(f"{file} is damaged: {error}", "compress it again, or copy it again from where it came") from error
    except OSError as error:
        why = error.strerror or f"it is damaged: {error}"  # what bz2 and gzip raise has no number
        raise DataError(f"{file} cannot be read: {why}", "check the file and its permissions") from error


def _open_zstd(raw: IO[bytes]) -> Any:
    import zstandard

    return zstandard.ZstdDecompressor().stream_reader(raw, read_across_frames=True)


_PACKED: dict[bytes, Callable[[IO[bytes]], Any]] = {
    b"\x1f\x8b": gzip.open,
    b"\x28\xb5\x2f\xfd": _open_zstd,
    b"BZh": bz2.open,
    b"\xfd7zXZ\0": lzma.open,
}


@contextlib.contextmanager
def open_text(file: File, allowance: Allowance = TEXT, newline: str | None = None) -> Iterator[io.TextIOWrapper]:
    """The file as text; newlines as Python reads them (\\r\\n becomes \\n) unless `newline` is "". Raises DataError, also midway."""
    with open_bytes(file, allowance) as stream, io.TextIOWrapper(stream, file.encoding, errors="strict", newline=newline) as text:
        try:
            yield text
        except UnicodeError as error:
            raise DataError(f"{file} was read as {file.encoding}, but not all of it is: {error}", TO_UTF8) from error
