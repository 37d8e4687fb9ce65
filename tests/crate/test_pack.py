"""`Encoding.pack_rows` and `rustbpe.plan_rows`: documents in rows, beside slow references."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

import rustbpe
from tests.crate.references import ALPHABET, PATTERN, encoding, few, slow_pack, slow_plan


class TestPackRows:
    @few
    @given(
        texts=st.lists(st.text(alphabet="ab", max_size=25), max_size=25),
        row=st.integers(2, 16),
        buffer=st.integers(1, 9),
        batch=st.integers(1, 7),
    )
    def test_equals_the_slow_reference(self, tmp_path_factory: pytest.TempPathFactory, texts: list[str], row: int, buffer: int, batch: int):
        path = tmp_path_factory.getbasetemp() / "rows.bin"
        bpe = encoding(["ab ab aab"], 258)
        batches = (texts[i : i + batch] for i in range(0, len(texts), batch))
        rows, tokens, size = bpe.pack_rows(batches, row, str(path), 258, buffer=buffer)
        expected, expected_tokens = slow_pack([bpe.encode(text) for text in texts], row, 258, buffer)
        assert np.fromfile(path, "<u2").reshape(-1, row).tolist() == expected
        assert (rows, tokens, size) == (len(expected), expected_tokens, sum(map(len, texts)))

    def packed(self, batches: list[Any], path: Path) -> tuple[Any, bytes]:
        return encoding(["ab ab aab"], 258).pack_rows(batches, 5, path, 258), path.read_bytes()

    @pytest.mark.parametrize("kind", [pa.string(), pa.large_string()])
    @pytest.mark.parametrize("texts", [["ab aab", "", "字é🙂", "b"], [], [""]])
    def test_columns_of_pyarrow_equal_lists(self, tmp_path: Path, kind: pa.DataType, texts: list[str]) -> None:
        column = pa.array(["before", *texts, "", "behind"], kind).slice(1, len(texts))
        assert self.packed([texts, ["ab"]], tmp_path / "lists") == self.packed([column, ["ab"]], tmp_path / "columns")

    def test_columns_that_are_no_texts(self, tmp_path: Path) -> None:
        def refused(column: pa.Array, what: str, error: type[Exception] = ValueError) -> None:
            with pytest.raises(error, match=what):
                self.packed([["a", "b"], column], tmp_path / "rows")

        refused(pa.array(["a", None]), "among the texts from 2 on are nulls")
        refused(pa.array([1, 2]), "the texts from 2 on are an array of int64, not of string", TypeError)
        ends = [pa.py_buffer(np.array(ends, np.int32)) for ends in ([0, 1, 2], [0, 2, 1], [0, 1, 3])]
        for end, utf8 in zip(ends, (b"\xc3\xa9", b"ab", "字".encode()), strict=True):
            refused(pa.Array.from_buffers(pa.string(), 2, [None, end, pa.py_buffer(utf8)]), "the texts from 2 on are not all UTF-8")

    def test_wide_ids_and_path_objects(self, tmp_path: Path) -> None:
        bpe = rustbpe.Encoding(ALPHABET, PATTERN, {"<|bos|>": 65_536})
        assert bpe.pack_rows([["a"]], 3, tmp_path / "rows.bin", 65_536) == (1, 2, 1)
        assert np.fromfile(tmp_path / "rows.bin", "<u4").tolist() == [65_536, 97, 65_536]

    def test_an_empty_corpus(self, tmp_path: Path) -> None:
        path = tmp_path / "rows.bin"
        assert encoding([]).pack_rows([[], []], 8, str(path), 256) == (0, 0, 0)
        assert path.read_bytes() == b""

    def test_errors(self, tmp_path: Path) -> None:
        bpe, path = encoding([]), tmp_path / "rows.bin"
        for arguments in ({"row": 1}, {"row": -1}, {"bos": 257}, {"bos": -1}, {"buffer": 0}, {"threads": -1}):
            with pytest.raises(ValueError):
                bpe.pack_rows([["a"]], **{"row": 8, "path": str(path), "bos": 256, **arguments})  # type: ignore[arg-type]
        with pytest.raises(ValueError, match=r"text 2 .*surrogate"):
            bpe.pack_rows([["a", "b"], ["\ud800"]], 8, str(path), 256)
        with pytest.raises(TypeError, match="one str"):
            bpe.pack_rows(["a"], 8, str(path), 256)
        with pytest.raises(ZeroDivisionError):
            bpe.pack_rows(([str(1 // n)] for n in (1, 0)), 8, str(path), 256)
        assert not path.exists()  # nothing half written stays
        with pytest.raises(FileNotFoundError) as caught:
            bpe.pack_rows([["a"]], 8, str(tmp_path / "none" / "rows.bin"), 256)
        assert caught.value.filename == str(tmp_path / "none" / "rows.bin")

    @pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
    def test_a_full_disk_is_an_oserror(self) -> None:
        with pytest.raises(OSError, match="No space left"):
            encoding([]).pack_rows([["a" * 100]], 8, "/dev/full", 256)
        assert Path("/dev/full").exists()


class TestPlanRows:
    @few
    @given(lengths=st.lists(st.integers(1, 20), max_size=30), row=st.integers(1, 16), buffer=st.integers(1, 9), crop=st.booleans())
    def test_equals_the_slow_reference(self, lengths: list[int], row: int, buffer: int, crop: bool) -> None:
        lengths = lengths if crop else [min(length, row) for length in lengths]
        plan = rustbpe.plan_rows(np.array(lengths, np.int64), row, buffer=buffer, crop=crop)
        assert all(column.dtype == np.int64 for column in plan)
        assert list(zip(*(column.tolist() for column in plan), strict=True)) == slow_plan(lengths, row, buffer, crop)

    def test_errors(self) -> None:
        for lengths, row, buffer, crop in (([5], 4, 1, False), ([0], 4, 1, True), ([-1], 4, 1, True), ([1], 0, 1, True), ([1], 4, 0, True)):
            with pytest.raises(ValueError):
                rustbpe.plan_rows(np.array(lengths), row, buffer=buffer, crop=crop)
        with pytest.raises(TypeError):
            rustbpe.plan_rows(np.array([1.5]), 4, buffer=1, crop=True)
