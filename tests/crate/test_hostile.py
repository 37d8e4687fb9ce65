"""Every public function of rustbpe with values that nobody should pass. What comes is an Exception: a panic would be none."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import rustbpe
from tests.crate.references import ALPHABET, PATTERN

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
