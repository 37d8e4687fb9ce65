"""`rustbpe.train`: the tokens of a vocabulary, beside a slow reference."""

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

import rustbpe
from tests.crate.references import ALPHABET, PATTERN, few, slow_train, small_texts


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
