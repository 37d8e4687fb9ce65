"""`rustbpe.Encoding`: text to ids and back, beside a slow reference."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import rustbpe
from tests.crate.references import ALPHABET, PATTERN, encoding, few, slow_encode, small_texts, texts_of_all_kinds


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
