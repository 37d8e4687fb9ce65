"""A user's text file as it comes: plain, gzip or zstd, in UTF-8 or in an encoding that is detected and said."""

import codecs
import contextlib
import io
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple, cast

from nanochat.console import log
from nanochat.errors import DataError

BLOCK = 1 << 20  # bytes or characters read at once
SAMPLE = 1 << 16  # bytes that an encoding is guessed from

_BOMS = (  # the longer marks first: UTF-32's begins with UTF-16's
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
# What files that claim these encodings hold in practice is the vendors' superset of them.
_SUPERSETS = {"big5": "cp950", "gb2312": "gb18030", "gbk": "gb18030", "shift_jis": "cp932", "euc_kr": "cp949", "ascii": "utf-8"}
_FREQUENT = frozenset(" \n\u3000\u3001\u3002\uff0c")  # spaces and stops: what tells UTF-16's two byte orders apart
_TO_UTF8 = "convert it to UTF-8 (iconv -f ENCODING -t UTF-8 FILE), or leave it out"


class Allowance(NamedTuple):
    """What a compressed file may unpack to: `free` bytes, or `ratio` times as many as it has."""

    free: int
    ratio: int


# Text shrinks to a third or a tenth, and gzip's bound is a thousandth. Conversations are kept in memory, where they take ten times as much.
TEXT, CHATS = Allowance(1 << 30, 500), Allowance(128 << 20, 30)


class _Unpacked(io.RawIOBase):
    """A decompressed stream that raises DataError once it has brought more than `most` bytes: no text is as repetitive as that."""

    def __init__(self, stream: IO[bytes], path: Path, most: int):
        self.stream, self.path, self.left, self.most = stream, path, most, most

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill `buffer` with the next bytes; returns how many."""
        data = self.stream.read(len(buffer))
        buffer[: len(data)] = data
        self.left -= len(data)
        if self.left < 0:
            raise DataError(
                f"{self.path} unpacks to more than {self.most:,} bytes from {self.path.stat().st_size:,}", "leave it out: it is no text"
            )
        return len(data)


@contextlib.contextmanager
def open_bytes(path: Path, allowance: Allowance = TEXT) -> Iterator[IO[bytes]]:
    """The file's bytes, decompressed where its first bytes say gzip or zstd: no more than `allowance`.

    Raises DataError where they cannot be read, or are more; also midway.
    """
    import zstandard

    try:
        with path.open("rb") as raw, contextlib.ExitStack() as stack:
            magic = raw.read(4)
            raw.seek(0)
            stream: IO[bytes] = raw
            if magic[:2] == b"\x1f\x8b":
                import gzip

                stream = _bounded(cast(IO[bytes], stack.enter_context(gzip.open(raw))), path, allowance)
            elif magic == b"\x28\xb5\x2f\xfd":
                stream = _bounded(
                    stack.enter_context(zstandard.ZstdDecompressor().stream_reader(raw, read_across_frames=True)), path, allowance
                )
            yield stream
    except (EOFError, zlib.error, zstandard.ZstdError) as error:
        raise DataError(f"{path} is damaged: {error}", "compress it again, or copy it again from where it came") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}", "check the file and its permissions") from error


def _bounded(stream: IO[bytes], path: Path, allowance: Allowance) -> IO[bytes]:
    return io.BufferedReader(_Unpacked(stream, path, max(allowance.free, allowance.ratio * path.stat().st_size)), BLOCK)


@contextlib.contextmanager
def open_text(path: Path, encoding: str, allowance: Allowance = TEXT) -> Iterator[io.TextIOWrapper]:
    """The file as text, newlines as they are read by Python (\\r\\n becomes \\n)."""
    with open_bytes(path, allowance) as stream, io.TextIOWrapper(stream, encoding, errors="strict") as text:
        try:
            yield text
        except UnicodeError as error:
            raise DataError(f"{path} was read as {encoding}, but not all of it is: {error}", _TO_UTF8) from error


def detect_encoding(path: Path, allowance: Allowance = TEXT) -> str:
    """The encoding to read `path` with; another than UTF-8 is said on stderr, once a file.

    Raises DataError where the file is empty, binary, or in no encoding that can be recognised.
    """
    with open_bytes(path, allowance) as stream:
        head = stream.read(SAMPLE)
        if not head:
            raise DataError(f"{path} is empty", "give a file with text in it")
        for mark, name in _BOMS:
            if head.startswith(mark):
                return _said(path, name) if name != "utf-8-sig" else name
        if b"\0" in head:
            return _said(path, _utf16(path, head))
        control = sum(head.count(byte) for byte in range(32) if byte not in b"\t\n\v\f\r\x1b")
        if control > len(head) / 200:
            raise _binary(path)
        sample = _first_not_utf8(head, stream)
    if sample is None:
        return "utf-8"
    _refuse_damaged_utf8(path, sample)
    from charset_normalizer import from_bytes

    found = from_bytes(sample).best()
    if found is None:
        raise DataError(f"{path} is not UTF-8, and its encoding was not recognised", _TO_UTF8)
    return _said(path, _SUPERSETS.get(found.encoding, found.encoding))


def _said(path: Path, encoding: str) -> str:
    log(f"{path}: read as {encoding} (not UTF-8)")
    return encoding


def _binary(path: Path) -> DataError:
    return DataError(f"{path} is a binary file, not text", "give text: parquet, jsonl, or plain text (.txt, .md)")


def _utf16(path: Path, head: bytes) -> str:
    """Which UTF-16 a text with zero bytes and no mark is in: the order in which spaces and full stops are found."""
    head = head[: len(head) // 2 * 2]
    texts = {name: head.decode(name, errors="replace") for name in ("utf-16-le", "utf-16-be")}
    best = max(texts, key=lambda name: sum(character in _FREQUENT for character in texts[name]))
    text = texts[best]
    odd = sum(not (character.isprintable() or character in "\t\n\v\f\r\u3000\xa0") for character in text)
    if odd > len(text) / 50 or not any(character in _FREQUENT for character in text):
        raise _binary(path)
    return best


def _first_not_utf8(head: bytes, rest: IO[bytes]) -> bytes | None:
    """A sample around the first byte that is not UTF-8; None where all of it is."""
    decoder, block = codecs.getincrementaldecoder("utf-8")(), head
    while block:
        try:
            decoder.decode(block)
        except UnicodeDecodeError as error:
            start = block.rfind(b"\n", 0, max(error.start - SAMPLE // 2, 0)) + 1
            sample = block[start : start + SAMPLE]
            # Half a character at either end would rule the right encoding out: whole lines only.
            return sample[: sample.rfind(b"\n") + 1] or sample
        block = rest.read(BLOCK)
    return None


def _refuse_damaged_utf8(path: Path, sample: bytes) -> None:
    """Raise DataError where `sample` is UTF-8 but for a few bytes: another encoding would make rubbish of it."""
    text = sample.decode("utf-8", errors="replace")
    bad = text.count("\ufffd")
    good = sum(ord(character) > 127 for character in text) - bad
    if good > 10 * bad:
        raise DataError(
            f"{path} is UTF-8, but not all of it: it is damaged", "find the place with: iconv -f UTF-8 -t UTF-8 FILE > /dev/null"
        )
