"""Parquet files that are made to fill a memory are refused before they do; all others are read as pyarrow reads them."""

import contextlib
import random
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nanochat.data.shards import texts
from nanochat.errors import DataError
from nanochat.readers import columns, parquet_pages
from nanochat.readers.parquet_pages import _pages, read_table, rows_at_once
from tests import tiny

MB = 1 << 20


def put(path: Path, column: Any, **options: Any) -> Path:
    pq.write_table(pa.table({"text": column}), path, **{"compression": "zstd", "use_dictionary": False} | options)
    return path


def rows(path: Path) -> list[str]:
    return [text for batch in texts(path) for text in batch]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.one_of(st.none(), st.text(max_size=50)), max_size=300),
    st.sampled_from(["1.0", "2.0"]),
    st.booleans(),
    st.sampled_from(["zstd", "snappy", "none", "gzip"]),
    st.integers(1, 5000),
    st.sampled_from([None, "DELTA_BYTE_ARRAY", "DELTA_LENGTH_BYTE_ARRAY"]),
)
def test_the_pages_of_any_file_are_all_of_its_bytes(
    tmp_path_factory: pytest.TempPathFactory, column: list, version: str, dictionary: bool, codec: str, size: int, encoding: str | None
) -> None:
    path = tmp_path_factory.mktemp("pages") / "x.parquet"
    more = {"column_encoding": {"text": encoding}} if encoding else {"use_dictionary": dictionary}
    put(
        path,
        pa.array(column, pa.string()),
        data_page_version=version,
        compression=codec,
        data_page_size=size,
        row_group_size=100,
        write_page_index=True,
        **more,
    )
    with pq.ParquetFile(path) as file, path.open("rb") as raw:
        chunks = [file.metadata.row_group(group).column(0) for group in range(file.metadata.num_row_groups)]
        for chunk in chunks:
            pages = list(_pages(raw, chunk, path))
            assert sum(page.values for page in pages if not page.dictionary) == chunk.num_values
            assert sum(page.bytes for page in pages) <= chunk.total_uncompressed_size
            assert not column or any(page.expands for page in pages) == (encoding == "DELTA_BYTE_ARRAY" or chunk.has_dictionary_page)
    assert rows(path) == [text for text in column if text is not None]
    assert read_table(path).to_pylist() == [{"text": text} for text in column]


def bomb_of_one_cell(path: Path) -> None:
    put(path, ["some", "a" * 300 * MB])


def bomb_of_many_cells(path: Path) -> None:
    put(path, ["a" * 4 * MB] * 30)


def bomb_of_a_dictionary(path: Path) -> None:
    text = "".join(random.Random(1).choices("abcdefgh ", k=3 * MB))
    put(
        path,
        pa.DictionaryArray.from_arrays(pa.nulls(20_000, pa.int32()).fill_null(0), pa.array([text])),
        use_dictionary=True,
        store_schema=False,
        dictionary_pagesize_limit=1 << 30,
    )


def bomb_of_nulls(path: Path) -> None:
    put(path, pa.nulls(150_000_000, pa.string()))


CHECK = """
import resource, sys, time
from pathlib import Path
from nanochat.data.shards import texts
from nanochat.readers.parquet_pages import read_table
import pyarrow.parquet
from nanochat.errors import DataError
before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
try:
    {how}
except DataError as error:
    print(error.message)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before >> 10, time.monotonic() - began)
"""


@pytest.mark.long
@pytest.mark.parametrize(
    "how", ["sum(len(batch) for batch in texts(Path(sys.argv[1])))", "read_table(Path(sys.argv[1]))"], ids=["texts", "table"]
)
@pytest.mark.parametrize("bomb", [bomb_of_one_cell, bomb_of_many_cells, bomb_of_a_dictionary, bomb_of_nulls])
def test_a_bomb_is_refused_within_its_bounds(bomb: Any, how: str, tmp_path: Path) -> None:
    """At most what FILE_FREE allows, which has to come before it can be counted, and a page and its values."""
    path = tmp_path / "bomb.parquet"
    bomb(path)
    assert path.stat().st_size < 4 * MB
    done = tiny.call(tmp_path, "-c", CHECK.format(how=how), str(path))
    assert done.returncode == 0 and str(path) in done.stdout, done.stdout + done.stderr
    megabytes, seconds = map(float, done.stdout.splitlines()[-1].split())
    assert megabytes < 2500 and seconds < 20, done.stdout


def test_a_file_of_many_pages_is_refused_by_their_headers(tmp_path: Path) -> None:
    """Each is small enough, all of them are not; none is decompressed for that."""
    path, table = tmp_path / "bomb.parquet", pa.table({"text": ["a" * 4 * MB] * 10})
    with pq.ParquetWriter(path, table.schema, compression="zstd", use_dictionary=False) as file:
        for _ in range(30):
            file.write_table(table)
    with pq.ParquetFile(path) as opened, pytest.raises(DataError, match=r"unpacks to 1,258,\d+,\d+ bytes from"):
        rows_at_once(opened, path, 1000)


def test_a_cell_that_is_too_large_is_named_by_its_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = put(tmp_path / "x.parquet", ["short"] * 1500 + ["long" * 300] + ["short"] * 100)
    monkeypatch.setattr(columns, "CELL_BYTES", 1000)
    with pytest.raises(DataError, match="row 1501: a text of more"):
        rows(path)


def test_a_footer_that_lies_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What counts is the page's own header, by which memory is taken."""
    path = put(tmp_path / "x.parquet", ["a" * 100_000] * 100)
    monkeypatch.setattr(parquet_pages, "PAGE_FREE", 100_000)
    with pq.ParquetFile(path) as file:

        class Lying:
            def __getattr__(self, name: str) -> Any:
                return 1 if name == "total_uncompressed_size" else getattr(file.metadata.row_group(0).column(0), name)

        with path.open("rb") as raw:
            assert max(page.bytes for page in _pages(raw, Lying(), path)) >= 100_000
        with pytest.raises(DataError, match="row group 1, from row 1 on: a page that unpacks"):
            rows_at_once(file, path, 1000)


def test_every_damage_to_a_page_header_ends_in_one_error(tmp_path: Path) -> None:
    good = put(tmp_path / "x.parquet", [f"some text {number}" for number in range(50)]).read_bytes()
    path, began = tmp_path / "y.parquet", time.monotonic()
    for place in range(4, 120):
        for bit in range(8):
            data = bytearray(good)
            data[place] ^= 1 << bit
            path.write_bytes(data)
            with contextlib.suppress(DataError):
                rows(path)
    assert time.monotonic() - began < 60


@pytest.mark.parametrize("group", [500, 20_000], ids=["many row groups", "one row group"])
def test_memory_does_not_grow_with_the_file(tmp_path: Path, group: int) -> None:
    """Neither with what was read nor with a row group: people's files often have a single one."""
    texts = [random.Random(index).randbytes(1000).hex() for index in range(20_000)]
    path = put(tmp_path / "a.parquet", texts, row_group_size=group)
    before, most = pa.total_allocated_bytes(), 0
    for _ in columns.text_arrays(path, "text"):
        most = max(most, pa.total_allocated_bytes() - before)
    assert path.stat().st_size > 15 * MB and MB < most < 12 * MB
