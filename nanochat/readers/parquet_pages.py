"""Bounds what reading a parquet file can take: its pages' headers are read before any page is decompressed.

A file's footer says how large its columns are, but nothing holds it to that; a page's header is what the reader allocates by. Each value
of a dictionary, or of a page that is written as differences (DELTA_BYTE_ARRAY), may stand for as many bytes as the page has: such pages
are read a few rows at a time.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple

from nanochat.errors import DataError

CELL_BYTES = 256 << 20  # of one value at most
PAGE_BYTES = 1 << 30  # of a decompressed page at most
BATCH_BYTES = 256 << 20  # of the values that are read at once, about
RATIO = 1000  # of what decompressed bytes may be to compressed ones, beyond ...
PAGE_FREE, FILE_FREE = 64 << 20, 1 << 30  # ... these bytes, of a page and of a file
ROWS_RATIO, ROWS_FREE = 100, 100_000_000  # and of rows to bytes, beyond this number: nulls take next to none
READ_BYTES = 1 << 20  # of a column, read from the disk at once
TABLE_ROWS = 1 << 16  # read at once of a file that is kept whole
HEADER_BYTES = 1 << 12  # of a page's header, usually; statistics in it may make it longer, ...
HEADER_MOST = 16 << 20  # ... up to this
DICTIONARY_PAGE, DELTA_BYTE_ARRAY = 2, 7
_HINT = "leave it out, or write it again with shorter texts and smaller row groups"


class Page(NamedTuple):
    """A page's sizes and encoding, as its header declares them."""

    compressed: int
    bytes: int  # decompressed
    values: int
    dictionary: bool
    expands: bool  # whether a value of it may be written once and be read many times


def is_bomb(unpacked: int, packed: int, free: int = FILE_FREE, ratio: int = RATIO) -> bool:
    """Whether `packed` bytes that become `unpacked` ones are made to fill a memory or a disk."""
    return unpacked > max(free, ratio * packed)


def open_parquet(path: Path) -> Any:
    """A pyarrow ParquetFile whose memory does not grow with the file: by default it keeps all that was read until it is closed."""
    import pyarrow.parquet

    return pyarrow.parquet.ParquetFile(path, pre_buffer=False, buffer_size=READ_BYTES)


def rows_at_once(file: Any, path: Path, most: int, column: str | None = None) -> int:
    """The number of rows of a pyarrow ParquetFile to read at once, `most` at most. Raises DataError for a decompression bomb."""
    unpacked = packed = largest = first = 0
    size = path.stat().st_size
    if is_bomb(file.metadata.num_rows, size, ROWS_FREE, ROWS_RATIO):
        raise DataError(f"{path} claims {file.metadata.num_rows:,} rows in {size:,} bytes", _HINT)
    with path.open("rb") as raw:
        for group in range(file.metadata.num_row_groups):
            about = file.metadata.row_group(group)
            for index in range(about.num_columns):
                chunk = about.column(index)
                if column is not None and chunk.path_in_schema != column:
                    continue
                before = 0  # values of the chunk: its rows, where it is not nested
                for page in _pages(raw, chunk, path):
                    _check_page(page, f"{path}, row group {group + 1}, from row {first + before + 1} on")
                    unpacked, packed = unpacked + page.bytes, packed + page.compressed
                    largest = max(largest, page.bytes if page.expands else 0)
                    before += 0 if page.dictionary else page.values
            first += about.num_rows
    if is_bomb(unpacked, packed):
        raise DataError(f"{path} unpacks to {unpacked:,} bytes from {packed:,}", _HINT)
    return max(min(most, BATCH_BYTES // max(largest, 1)), 1)


def read_table(path: Path) -> Any:
    """The whole file as a pyarrow Table. Raises DataError for a bomb, and what pyarrow raises."""
    import pyarrow

    total, batches = 0, []
    with open_parquet(path) as file:
        for batch in file.iter_batches(batch_size=rows_at_once(file, path, TABLE_ROWS)):
            total += batch.nbytes
            if is_bomb(total, path.stat().st_size):
                raise DataError(f"{path} unpacks to more than {total:,} bytes", _HINT)
            batches.append(batch)
        return pyarrow.Table.from_batches(batches, schema=file.schema_arrow)


def _check_page(page: Page, where: str) -> None:
    """Raise DataError if a page is too large to be read."""
    if page.bytes > CELL_BYTES * max(page.values, 1):
        raise DataError(f"{where}: a value of more than {CELL_BYTES >> 20} MB", _HINT)
    if page.bytes > PAGE_BYTES or is_bomb(page.bytes, page.compressed, PAGE_FREE):
        raise DataError(f"{where}: a page that unpacks to {page.bytes:,} bytes from {page.compressed:,}", _HINT)


def _pages(raw: IO[bytes], chunk: Any, path: Path) -> Iterator[Page]:
    """The pages of a column chunk, dictionaries too. Raises DataError if their headers make no sense."""
    offsets = [chunk.data_page_offset, chunk.dictionary_page_offset if chunk.has_dictionary_page else None]
    place = min((offset for offset in offsets if offset), default=0)
    if place < 0:
        raise DataError(f"{path} cannot be read as parquet: a column begins before the file", _HINT)
    end, left = place + chunk.total_compressed_size, chunk.num_values
    while place < end and left > 0:
        for most in (HEADER_BYTES, HEADER_MOST):
            raw.seek(place)
            header = _Compact(raw.read(most))
            try:
                fields = header.struct()
                break
            except IndexError:  # it is longer
                continue
            except ValueError as error:
                raise DataError(f"{path} cannot be read as parquet: {error}", _HINT) from error
        else:
            raise DataError(f"{path} cannot be read as parquet: a page at byte {place:,} has an incomplete header", _HINT)
        kind, size, compressed = (fields.get(number) for number in (1, 2, 3))
        if not isinstance(kind, int) or not isinstance(size, int) or not isinstance(compressed, int) or size < 0 or compressed < 0:
            raise DataError(f"{path} cannot be read as parquet: the page at byte {place:,} has no size", _HINT)
        about = next((found for number in (5, 7, 8) if isinstance(found := fields.get(number), dict)), {})
        values = max(int(about.get(1) or 0), 0)
        dictionary = kind == DICTIONARY_PAGE
        yield Page(compressed, size, values, dictionary, dictionary or about.get(4 if 8 in fields else 2) == DELTA_BYTE_ARRAY)
        left -= 0 if dictionary else values
        place += header.place + compressed


class _Compact:
    """Reads a struct of Thrift's compact protocol: integers and structs as field number -> value, the rest skipped.

    Raises IndexError if the bytes end, ValueError where they are no struct.
    """

    def __init__(self, data: bytes):
        self.data, self.place = data, 0

    def struct(self, depth: int = 0) -> dict[int, Any]:
        """The struct that begins here."""
        fields: dict[int, Any] = {}
        number = 0
        while head := self._byte():
            number = number + (head >> 4) if head >> 4 else self._integer()
            fields[number] = self._value(head & 15, depth + 1)
        return fields

    def _byte(self) -> int:
        self.place += 1
        return self.data[self.place - 1]

    def _unsigned(self) -> int:
        value = shift = 0
        while shift < 70:
            byte = self._byte()
            value |= (byte & 127) << shift
            if byte < 128:
                return value
            shift += 7
        raise ValueError("a page's header has an endless number")

    def _integer(self) -> int:
        value = self._unsigned()
        return (value >> 1) ^ -(value & 1)

    def _skip(self, count: int) -> None:
        self.place += count
        if self.place > len(self.data):
            raise IndexError

    def _value(self, kind: int, depth: int) -> Any:
        if depth > 8:
            raise ValueError("a page's header is nested too deeply")
        if kind in (1, 2):
            return kind == 1
        if kind in (4, 5, 6):
            return self._integer()
        if kind == 12:
            return self.struct(depth)
        if kind in (9, 10):
            head = self._byte()
            count = head >> 4 if head >> 4 < 15 else self._unsigned()
            for _ in range(min(count, len(self.data))):
                self._byte() if head & 15 in (1, 2) else self._value(head & 15, depth + 1)
            return None
        if kind not in (3, 7, 8):
            raise ValueError("a page's header has an unknown type")
        self._skip({3: 1, 7: 8}.get(kind) or self._unsigned())
        return None
