"""The Rust module through its public door, beside slow and obvious references."""

import re
import signal
import subprocess
import sys
import threading
import time
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import rustbpe

PATTERN = r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,2}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
ALPHABET = [bytes([byte]) for byte in range(256)]
few = settings(max_examples=60, deadline=None)
# Letters, numbers and spaces of several kinds, contractions, marks, code points of one to four bytes.
texts_of_all_kinds = st.text(alphabet="aabesS'tlLvVrRed \t\r\n\u00a0\u3000é\u017f字世\u030109²Ⅷ٣.,!_🙂\u200d\0", max_size=60)
small_texts = st.lists(st.text(alphabet="abc ", max_size=30) | texts_of_all_kinds, max_size=6)


def slow_split(text: str) -> list[str]:
    """PATTERN in Python's `re`: the characters of a class that ASCII lacks are first replaced by one it has."""

    def ascii_like(character: str) -> str:
        if character in "\u0085\u00a0\u1680\u2028\u2029\u202f\u205f\u3000" or "\u2000" <= character <= "\u200a":
            return "\t"
        if character == "\u017f":
            return "s"  # its case folding
        category = unicodedata.category(character)[0]
        return character if character.isascii() else {"L": "x", "N": "0"}.get(category, "!")

    pattern = PATTERN.replace(r"\p{L}", "a-zA-Z").replace(r"\p{N}", "0-9").replace("a-zA-Z+", "[a-zA-Z]+").replace("0-9{", "[0-9]{")
    spans = [found.span() for found in re.finditer(pattern, "".join(map(ascii_like, text)), re.ASCII)]
    return [text[start:end] for start, end in spans]


def slow_train(texts: list[str], vocab_size: int) -> list[bytes]:
    """Counts every pair of every piece anew before each merge."""
    tokens = list(ALPHABET)
    pieces = [list(piece.encode()) for text in texts for piece in slow_split(text)]
    while len(tokens) < vocab_size:
        counts = Counter(pair for piece in pieces for pair in pairwise(piece))
        if not counts:
            break
        pair = min(counts, key=lambda pair: (-counts[pair], pair))
        for piece in pieces:
            i = 0
            while i + 1 < len(piece):
                if (piece[i], piece[i + 1]) == pair:
                    piece[i : i + 2] = [len(tokens)]
                i += 1
        tokens.append(tokens[pair[0]] + tokens[pair[1]])
    return tokens


def slow_encode(tokens: list[bytes], text: str) -> list[int]:
    """Merges the neighbours of lowest rank, of several the leftmost, until there are none."""
    rank = {token: i for i, token in enumerate(tokens)}
    ids = []
    for piece in slow_split(text):
        parts = [bytes([byte]) for byte in piece.encode()]
        while True:
            merges = [(rank[a + b], i) for i, (a, b) in enumerate(pairwise(parts)) if a + b in rank]
            if not merges:
                break
            _, i = min(merges)
            parts[i : i + 2] = [parts[i] + parts[i + 1]]
        ids += [rank[part] for part in parts]
    return ids


def slow_pack(documents: list[list[int]], row: int, bos: int, buffer: int) -> tuple[list[list[int]], int]:
    """The rule of pack_rows, word for word: the rows, and the number of ids before the last row's completion."""
    documents = [[bos, *document] for document in documents]
    incoming, waiting, rows, current, tokens = list(documents), [], [], [], 0
    while incoming or waiting:
        while incoming and len(waiting) < buffer:
            waiting.append(incoming.pop(0))
        space = row - len(current)
        fitting = [document for document in waiting if len(document) <= space]
        if fitting:
            longest = max(fitting, key=len)
            current += longest
        else:
            longest = min(waiting, key=len)
            current += longest[:space]
        waiting = [document for document in waiting if document is not longest]
        if not fitting:
            waiting.append([bos, *longest[space:]])
        if len(current) == row:
            rows.append(current)
            tokens += row
            current = []
    if current:
        tokens += len(current)
        again = [id for document in documents for id in document] * row
        rows.append(current + again[: row - len(current)])
    return rows, tokens


def slow_plan(lengths: list[int], row: int, buffer: int, crop: bool) -> list[tuple[int, int, int, int]]:
    incoming = [(item, 0, length) for item, length in enumerate(lengths)]
    waiting: list[tuple[int, int, int]] = []
    plan, index, used = [], 0, 0
    while incoming or waiting:
        while incoming and len(waiting) < buffer:
            waiting.append(incoming.pop(0))
        fitting = [part for part in waiting if part[2] <= row - used]
        if fitting:
            part = max(fitting, key=lambda part: part[2])
            waiting.remove(part)
        elif crop:
            item, start, length = min(waiting, key=lambda part: part[2])
            waiting.remove((item, start, length))
            waiting.append((item, start + row - used, length - row + used))
            part = (item, start, row - used)
        else:
            index, used = index + 1, 0
            continue
        plan.append((index, *part))
        used += part[2]
        if used == row:
            index, used = index + 1, 0
    return plan


def encoding(texts: list[str], vocab_size: int = 300) -> rustbpe.Encoding:
    tokens = rustbpe.train(texts, vocab_size, PATTERN)
    return rustbpe.Encoding(tokens, PATTERN, {"<|bos|>": len(tokens)})


class TestTrain:
    @few
    @given(texts=small_texts, extra=st.integers(0, 40))
    def test_equals_the_slow_reference(self, texts: list[str], extra: int) -> None:
        assert rustbpe.train(texts, 256 + extra, PATTERN, threads=1) == slow_train(texts, 256 + extra)

    def test_ties_go_to_the_smallest_ids(self) -> None:
        assert rustbpe.train(["abab cd cd ab"], 259, PATTERN)[256:] == [b"ab", b" c", b" cd"]

    def test_threads_and_order_do_not_matter(self) -> None:
        texts = [f"document {i}: {'word' * (i % 7)} {i * i}\n" for i in range(30_000)]
        one = rustbpe.train(texts, 500, PATTERN, threads=1)
        assert one == rustbpe.train(reversed(texts), 500, PATTERN, threads=3) == rustbpe.train(iter(texts), 500, PATTERN)

    def test_stops_when_nothing_is_left(self) -> None:
        assert rustbpe.train(["ab"], 1000, PATTERN) == [*ALPHABET, b"ab"]
        assert rustbpe.train([], 1000, PATTERN) == rustbpe.train(["abc"], 256, PATTERN) == ALPHABET

    @pytest.mark.parametrize("unit", [" ", "a", "!", "\n", "acgt", "字"])
    def test_one_huge_piece(self, unit: str) -> None:
        text = unit * (1_000_000 // len(unit)) + "x"
        tokens = rustbpe.train([text], 290, PATTERN)
        assert len(tokens) > 258
        bpe = rustbpe.Encoding(tokens, PATTERN)
        assert bpe.decode_bytes(bpe.encode(text)) == text.encode()

    def test_errors(self) -> None:
        with pytest.raises(ValueError, match="vocab_size is 255"):
            rustbpe.train([], 255, PATTERN)
        with pytest.raises(ValueError, match="threads is -1"):
            rustbpe.train([], 256, PATTERN, threads=-1)
        with pytest.raises(ValueError, match="pattern"):
            rustbpe.train([], 256, "(")
        with pytest.raises(ValueError, match=r"text 2 .*surrogate.*'\\ud800' at character 3"):
            rustbpe.train(iter(["a", "b", "abc\ud800"]), 300, PATTERN)
        with pytest.raises(TypeError, match="text 1 is int, not str"):
            rustbpe.train(["a", 5], 300, PATTERN)  # type: ignore[list-item]
        with pytest.raises(TypeError, match="one str"):
            rustbpe.train("abc", 300, PATTERN)

    def test_the_iterator_s_own_exception_goes_through(self) -> None:
        def broken() -> Iterator[str]:
            yield "abc"
            raise LookupError("the shard is gone")

        with pytest.raises(LookupError, match="the shard is gone"):
            rustbpe.train(broken(), 300, PATTERN)


class TestEncoding:
    @few
    @given(corpus=small_texts, text=texts_of_all_kinds | st.text(alphabet="abc", max_size=300))
    def test_equals_the_slow_reference(self, corpus: list[str], text: str) -> None:
        tokens = rustbpe.train(corpus, 300, PATTERN)
        bpe = rustbpe.Encoding(tokens, PATTERN)
        ids = bpe.encode(text)
        assert ids == slow_encode(tokens, text)
        assert bpe.decode_bytes(ids) == text.encode()

    @few
    @given(texts=st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=40), max_size=10), threads=st.integers(0, 3))
    def test_batch_equals_single_texts(self, texts: list[str], threads: int) -> None:
        bpe = encoding(texts)
        ids, offsets = bpe.encode_batch(texts, threads=threads)
        assert (ids.dtype, offsets.dtype, offsets.shape) == (np.uint16, np.int64, (len(texts) + 1,))
        for text, start, end in zip(texts, offsets[:-1], offsets[1:], strict=True):
            assert ids[start:end].tolist() == bpe.encode(text)
            assert bpe.decode_bytes(ids[start:end]) == text.encode()
        assert offsets[-1] == len(ids)

    def test_threads_do_not_matter(self) -> None:
        texts = [f"document {i}: {'word' * (i % 7)} {i * i}\n" * 20 for i in range(2000)]
        bpe = encoding(texts[:100])
        one = bpe.encode_batch(texts, threads=1)
        for threads in (0, 2, 5):
            for a, b in zip(one, bpe.encode_batch(texts, threads=threads), strict=True):
                np.testing.assert_array_equal(a, b)

    def test_text_never_yields_a_special(self) -> None:
        bpe = rustbpe.Encoding(ALPHABET, PATTERN, {"<|bos|>": 256, "<|end|>": 257})
        assert bpe.n_vocab == 258
        assert bpe.encode("<|bos|>") == list(b"<|bos|>")
        assert bpe.decode_bytes([256, 65, 257]) == b"<|bos|>A<|end|>"

    def test_wide_ids(self) -> None:
        for special, dtype in ((65_535, np.uint16), (65_536, np.uint32)):
            bpe = rustbpe.Encoding(ALPHABET, PATTERN, {"<|bos|>": special})
            assert bpe.n_vocab == special + 1
            ids, _ = bpe.encode_batch(["ab"])
            assert ids.dtype == dtype and ids.tolist() == [97, 98]

    def test_decode_takes_lists_arrays_and_iterables(self) -> None:
        bpe = rustbpe.Encoding(ALPHABET, PATTERN)
        kinds = [np.array([97, 98], dtype) for dtype in ("u2", "u4", "i4", "i8", "u1", ">u2")]
        for ids in ([97, 98], (97, 98), iter([97, 98]), list(np.array([97, 98])), np.array([97, 0, 98, 0])[::2], *kinds):
            assert bpe.decode_bytes(ids) == b"ab"
        assert bpe.decode_bytes([]) == bpe.decode_bytes(np.array([], np.uint16)) == b""

    @pytest.mark.parametrize("ids", [[256], [-1], [2**40], [2**70], np.array([300], np.uint16), np.zeros((1, 1), np.int64)])
    def test_bad_ids(self, ids: list[int]) -> None:
        with pytest.raises(ValueError):
            rustbpe.Encoding(ALPHABET, PATTERN).decode_bytes(ids)

    @pytest.mark.parametrize(
        ("tokens", "specials", "message"),
        [
            ([], {}, "byte 0 is not among"),
            ([*ALPHABET, b""], {}, "token 256 is empty"),
            ([*ALPHABET, b"a"], {}, "tokens 97 and 256 are the same"),
            (ALPHABET, {"x": 255}, "is a token's"),
            (ALPHABET, {"x": 256, "y": 256}, "both have id 256"),
            (ALPHABET, {"x": -1}, "has id -1"),
        ],
    )
    def test_bad_vocabularies(self, tokens: list[bytes], specials: dict[str, int], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            rustbpe.Encoding(tokens, PATTERN, specials)

    def test_bad_texts(self) -> None:
        bpe = rustbpe.Encoding(ALPHABET, PATTERN)
        with pytest.raises(ValueError, match="surrogate"):
            bpe.encode("\ud800")
        with pytest.raises(ValueError, match=r"text 1 .*surrogate"):
            bpe.encode_batch(["a", "\udfff"])
        with pytest.raises(TypeError):
            bpe.encode(b"bytes")  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="one str"):
            bpe.encode_batch("abc")
        ids, offsets = bpe.encode_batch([])
        assert ids.tolist() == [] and offsets.tolist() == [0]

    @pytest.mark.parametrize("unit", ["ab ", "é a", "字 a", "\U0001f642 a", "\0é"], ids=ascii)
    def test_every_way_in_which_python_keeps_a_text(self, unit: str) -> None:
        class Text(str):
            __slots__ = ()

        bpe = encoding(["ab é 字 \U0001f642"])
        for text in (unit, unit * 10_000, Text(unit), Text(unit * 10_000)):  # the long ones in several parts
            utf8 = text.encode()
            assert bpe.decode_bytes(bpe.encode(text)) == utf8
            assert bpe.decode_bytes(bpe.encode_batch([text, text], threads=2)[0]) == 2 * utf8
            assert rustbpe.train([text], 300, PATTERN) == rustbpe.train([utf8.decode()], 300, PATTERN)

    @pytest.mark.parametrize("wide", ["", "\U0001f642"])
    @pytest.mark.parametrize("place", [0, 5_000, 300_000])
    def test_a_lone_surrogate_is_found_wherever_it_is(self, wide: str, place: int) -> None:
        text = "字a " * (place // 3) + "a" * (place % 3) + "\udfff" + wide + "字a " * 100_000
        for threads in (1, 2):
            with pytest.raises(ValueError, match=rf"text 1 .*surrogate, '\\udfff' at character {place}$"):
                encoding([]).encode_batch(["a", text, text], threads=threads)
        with pytest.raises(ValueError, match=rf"text 3 .*surrogate, '\\udfff' at character {place}$"):
            rustbpe.train(iter(["a" * 20_000_000, "a", "b", text]), 300, PATTERN)

    def test_one_long_document_is_spread_over_threads(self) -> None:
        text = "".join(f"word{i % 977} 你好 {i}\n\n" for i in range(30_000)) + " " * 300_000 + "a" * 300_000
        bpe = encoding([text[:100_000]])
        expected = bpe.encode(text)
        for threads in (1, 3):
            ids, offsets = bpe.encode_batch(["x", text, "", text], threads=threads)
            assert offsets.tolist() == [0, 1, 1 + len(expected), 1 + len(expected), 1 + 2 * len(expected)]
            assert ids[offsets[1] : offsets[2]].tolist() == ids[offsets[3] :].tolist() == expected
            assert ids.flags.writeable

    def test_batches_decode(self) -> None:
        texts = ["", "hello 你好", "<|bos|>", "\0🙂"]
        bpe = encoding(texts)
        assert bpe.decode_batch(*bpe.encode_batch(texts)) == [text.encode() for text in texts]
        assert bpe.decode_batch([], []) == bpe.decode_batch([], [0]) == []
        for offsets in ([0, 2], [1, 0], [-1, 1], [0, 2**62], [2**62, 0]):
            with pytest.raises(ValueError, match="offsets"):
                bpe.decode_batch([65], offsets)


# Every public function with values that nobody should pass. What comes is an Exception: a panic would be none.
HOSTILE_NUMBERS = (-1, 0, 2**31, 2**62, 2**63, 2**70, -(2**70), 1.5, "1", None)
HOSTILE_TEXTS = ("\ud800", "a\udfffb", None, 5, b"a", ["a"])


class TestHostileValues:
    def refused(self, call: Callable[[], object]) -> None:
        with pytest.raises((ValueError, TypeError, OverflowError)):
            call()

    @pytest.mark.parametrize("number", HOSTILE_NUMBERS)
    def test_numbers(self, number: Any, tmp_path: Path) -> None:
        bpe, path = rustbpe.Encoding(ALPHABET, PATTERN), str(tmp_path / "rows")
        if not (isinstance(number, int) and 256 <= number < 2**63):
            self.refused(lambda: rustbpe.train(["ab"], number, PATTERN))
        else:
            assert len(rustbpe.train(["ab"], number, PATTERN)) == 257
        self.refused(lambda: rustbpe.Encoding(ALPHABET, PATTERN, {"x": number if number != 2**31 else 255}))
        self.refused(lambda: bpe.pack_rows([["a"]], number, path, 0))
        self.refused(lambda: bpe.decode_bytes([number if number != 0 else 256]))
        self.refused(lambda: bpe.decode_batch([0], [0, number if number != 0 else 2]))
        if not (isinstance(number, int) and 0 <= number < 2**63):
            self.refused(lambda: rustbpe.train(["ab"], 300, PATTERN, threads=number))
            self.refused(lambda: bpe.encode_batch(["ab"], threads=number))
            self.refused(lambda: bpe.pack_rows([["a"]], 4, path, 0, buffer=number))
            self.refused(lambda: rustbpe.plan_rows([1], number, buffer=1, crop=True))
        else:
            assert bpe.encode_batch(["ab"], threads=number)[0].tolist() == [97, 98]
            for crop in (True, False):
                self.refused(lambda crop=crop: rustbpe.plan_rows([2**63], max(number, 1), buffer=1, crop=crop))

    @pytest.mark.parametrize("text", HOSTILE_TEXTS)
    def test_texts(self, text: Any, tmp_path: Path) -> None:
        bpe = rustbpe.Encoding(ALPHABET, PATTERN)
        self.refused(lambda: bpe.encode(text))
        self.refused(lambda: bpe.encode_batch([text]))
        self.refused(lambda: rustbpe.train([text], 300, PATTERN))
        self.refused(lambda: bpe.pack_rows([[text]], 4, str(tmp_path / "rows"), 0))
        if not isinstance(text, list):
            self.refused(lambda: rustbpe.train([], 300, text))
            self.refused(lambda: rustbpe.Encoding(ALPHABET, text))
            self.refused(lambda: rustbpe.Encoding(ALPHABET, PATTERN, {text: 256}))

    def test_empty_and_nul(self, tmp_path: Path) -> None:
        for text in ("", "\0", "\0" * 1000, "a\0b"):
            bpe = rustbpe.Encoding(rustbpe.train([text, text], 300, PATTERN), PATTERN, {"\0": 1000, "": 1001})
            assert bpe.decode_bytes(bpe.encode(text)) == text.encode()
            assert bpe.pack_rows([[text]], 4, tmp_path / "rows", 1000)[2] == len(text)
        self.refused(lambda: rustbpe.Encoding([], PATTERN))
        with pytest.raises(OSError, match="NUL"):
            bpe.pack_rows([["a"]], 4, "\0", 0)

    @pytest.mark.parametrize("pattern", ["(", "[", "a{9999999}", r"\p{Nothing}", "(?<n", "*", "(" * 5000])
    def test_invalid_patterns(self, pattern: str) -> None:
        self.refused(lambda: rustbpe.train(["a"], 300, pattern))
        self.refused(lambda: rustbpe.Encoding(ALPHABET, pattern))

    @pytest.mark.parametrize("pattern", ["", "x*", "(?=a)", r"\b", "^", "$", r"(?!)", r"(a|a)*b", r"(\w)\1", r"\p{L}++|\s*"])
    def test_patterns_that_match_nothing_or_the_empty_string(self, pattern: str) -> None:
        for text in ("", "axxa 你好 bb\n", "a" * 3000):
            bpe = rustbpe.Encoding(rustbpe.train([text], 300, pattern), pattern)
            assert bpe.decode_bytes(bpe.encode(text)) == text.encode()


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


class TestTheModule:
    @pytest.mark.parametrize("way", [["-c"], ["-m", "timeit", "-n", "1", "-r", "1"]])
    def test_the_folder_of_the_crate_does_not_shadow_it(self, way: list[str]) -> None:
        root = Path(__file__).parent.parent  # first on sys.path both ways, and it has a folder named rustbpe
        done = subprocess.run([sys.executable, *way, "import rustbpe; rustbpe.train"], cwd=root, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr

    def test_ctrl_c_ends_long_work(self) -> None:
        code = "import rustbpe; print('go', flush=True); rustbpe.train(['abc def ' * (1 << 17)] * 10_000, 300, r'\\w+|\\W+', threads=1)"
        process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert process.stdout is not None and process.stdout.readline() == "go\n"
        time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=20)
        assert "KeyboardInterrupt" in errors

    def test_the_interpreter_is_free_meanwhile(self) -> None:
        done = threading.Event()
        worker = threading.Thread(target=lambda: (encoding(["abcd" * 200_000], 400), done.set()))
        worker.start()
        ticks = 0
        while not done.is_set():
            ticks += 1
            time.sleep(0.001)
        worker.join()
        assert ticks > 10


@pytest.mark.slow
class TestAgainstReferences:
    ROOT = Path(__file__).parent.parent

    def test_ids_equal_tiktokens_and_huggingfaces_on_a_gigabyte(self) -> None:
        done = subprocess.run([sys.executable, "bench/bpe_equal.py"], cwd=self.ROOT, capture_output=True, text=True, timeout=3600)
        if "Failed to fetch" in done.stderr or "No solution found" in done.stderr:
            pytest.skip("tiktoken and tokenizers cannot be installed here")
        print(done.stdout)
        assert done.returncode == 0, done.stdout + done.stderr
        assert done.stdout.count(": equal") == 3

    def test_splits_equal_the_regular_expressions(self) -> None:
        """All code points in several contexts, and a minute of fuzzing (RUSTBPE_FUZZ_SECONDS for more)."""
        command = ["cargo", "test", "--release", "--manifest-path", "rustbpe/Cargo.toml", "split", "--", "--ignored", "--nocapture"]
        done = subprocess.run(command, cwd=self.ROOT, capture_output=True, text=True, timeout=7200)
        print(done.stdout)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "2 passed" in done.stdout and "all equal" in done.stdout
