"""Byte-level BPE in Rust: train a vocabulary, encode and decode, pack documents into training rows.

Texts are str. A lone surrogate has no UTF-8: ValueError, which says which text it is in (counted from 0). What is
wrong in value is a ValueError, in type a TypeError; an exception of an iterator that was passed in goes through.
threads=0 is every core; results never depend on the number of threads. Long work runs without the interpreter lock
and can be interrupted.
"""

from collections.abc import Iterable, Mapping, Sequence
from os import PathLike
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

__version__: str

def train(texts: Iterable[str], vocab_size: int, pattern: str, *, threads: int = 0) -> list[bytes]:
    """Learn the tokens of a byte-level BPE, in rank order: the 256 bytes first, then one for each merge.

    `pattern` is a regular expression that cuts the texts into pieces which merges never cross; what it leaves
    unmatched is a piece too. Merged is always the most frequent pair of neighbours; of several, the smallest pair of
    ids. `texts` is read once, as a stream; memory grows with the number of different pieces alone. Where nothing is left
    to merge, the list is shorter than `vocab_size`.

    ValueError: vocab_size below 256, a pattern that is not valid.
    """

@final
class Encoding:
    """A vocabulary. The id of a token is its place in `tokens`, and its rank: what merges first."""

    def __new__(cls, tokens: Sequence[bytes], pattern: str, special_tokens: Mapping[str, int] | None = None) -> Encoding:
        """`special_tokens` names ids behind those of the tokens; no text is ever encoded to one of them.

        ValueError: 2**21 tokens or more, one of the 256 bytes is missing, a token is empty or repeated, an id clashes, a bad pattern.
        """

    @property
    def n_vocab(self) -> int:
        """The highest id plus one: tokens and specials."""

    def encode(self, text: str) -> list[int]:
        """The ids of `text`. Within a piece the neighbours of lowest rank merge first, of several the leftmost."""

    def encode_batch(self, texts: Iterable[str], *, threads: int = 0) -> tuple[NDArray[Any], NDArray[np.int64]]:
        """(ids, offsets): document i is ids[offsets[i]:offsets[i+1]].

        ids is uint16 where n_vocab <= 65536, else uint32; offsets is int64 of len(texts) + 1. With the default pattern, GPT-4's
        or Llama 3's, a long document is spread over the threads too.
        """

    def decode_bytes(self, ids: Iterable[int] | NDArray[Any]) -> bytes:
        """The bytes of `ids`; a special token gives its name. ValueError: an id that is not in the vocabulary."""

    def decode_batch(self, ids: Iterable[int] | NDArray[Any], offsets: Iterable[int] | NDArray[Any]) -> list[bytes]:
        """The bytes of each document of what `encode_batch` returns. ValueError: an id or an offset that cannot be."""

    def pack_rows(
        self,
        texts: Iterable[Iterable[Any]],
        row: int,
        path: str | PathLike[str],
        bos: int,
        *,
        buffer: int = 1000,
        threads: int = 0,
    ) -> tuple[int, int, int]:
        """Encode batches of documents and write them to `path` as rows of `row` ids; (rows, tokens, bytes of text).

        A batch may also be an array of strings of pyarrow, without nulls: its UTF-8 is taken as it is.

        The file is raw little-endian ids, uint16 where n_vocab <= 65536, else uint32, without a header: its shape is
        (rows, row). Every document is `bos` and its ids. Of the next `buffer` documents the longest that fits into
        the rest of the row is placed; where none fits, the shortest is cropped to fill the row exactly, and its
        remainder, with `bos` in front, waits as the newest. Ties: the one that has waited longest. The last row, if
        partly filled, is completed with the first documents again, in their order; `tokens` does not count those.

        ValueError: row below 2 or above 2**30, buffer below 1, a bos outside the vocabulary. OSError: the file cannot be written; a
        file half written is removed.
        """

def plan_rows(
    lengths: NDArray[np.integer[Any]] | Sequence[int], row: int, *, buffer: int, crop: bool
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """The same best fit over lengths alone: (row index, item, start, length) of each part, in the order of placing.

    A part is item[start:start + length]. A length counts all of an item's ids; nothing is put in front of a
    remainder. With `crop` every row but the last is full. Without it items stay whole, and a row into which none of
    the `buffer` waiting items fits stays short.

    ValueError: row or buffer below 1, a length below 1 or, without `crop`, above `row`.
    """
