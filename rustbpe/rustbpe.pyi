"""Byte-level BPE in Rust: train a vocabulary, encode and decode, pack documents into training rows.

Texts are str. A wrong value raises ValueError, a wrong type TypeError. A lone surrogate, which UTF-8 cannot encode, is a ValueError with
the index of its text. Exceptions of iterators that are passed in are raised unchanged. threads=0 uses all cores; results never depend
on the number of threads. Long work runs without the interpreter lock and can be interrupted.
"""

from collections.abc import Iterable, Mapping, Sequence
from os import PathLike
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

__version__: str

def train(texts: Iterable[str], vocab_size: int, pattern: str, *, threads: int = 0) -> list[bytes]:
    """Learn the tokens of a byte-level BPE, in rank order: the 256 bytes first, then one for each merge.

    `pattern` is a regular expression that splits the texts into pieces, across which nothing is merged; unmatched text is a piece too.
    Each merge takes the most frequent pair of neighbours, in a tie the smallest pair of ids. `texts` is read once, as a stream, and
    memory grows only with the number of different pieces. If no pairs are left, the list is shorter than `vocab_size`.

    ValueError: vocab_size below 256, a pattern that is not valid.
    """

@final
class Encoding:
    """A vocabulary. A token's id is its index in `tokens`, and its rank, which decides the order of merges."""

    def __new__(cls, tokens: Sequence[bytes], pattern: str, special_tokens: Mapping[str, int] | None = None) -> Encoding:
        """Create a vocabulary. `special_tokens` maps names to ids after those of the tokens; text is never encoded to them.

        ValueError: 2**21 tokens or more, one of the 256 bytes is missing, a token is empty or repeated, an id clashes, a bad pattern.
        """

    @property
    def n_vocab(self) -> int:
        """The highest id plus one, special tokens included."""

    def encode(self, text: str) -> list[int]:
        """The ids of `text`. Within a piece, the neighbours of the lowest rank merge first, in a tie the leftmost."""

    def encode_batch(self, texts: Iterable[str], *, threads: int = 0) -> tuple[NDArray[Any], NDArray[np.int64]]:
        """(ids, offsets): document i is ids[offsets[i]:offsets[i+1]].

        ids is uint16 if n_vocab <= 65536, else uint32; offsets is int64 of length len(texts) + 1. With the default pattern, GPT-4's
        or Llama 3's, a long document is divided among the threads.
        """

    def decode_bytes(self, ids: Iterable[int] | NDArray[Any]) -> bytes:
        """The bytes of `ids`; a special token gives its name. ValueError: an id that is not in the vocabulary."""

    def decode_batch(self, ids: Iterable[int] | NDArray[Any], offsets: Iterable[int] | NDArray[Any]) -> list[bytes]:
        """The bytes of each document in a result of `encode_batch`. ValueError: an invalid id or offset."""

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
        """Encode batches of documents and write them to `path` as rows of `row` ids; returns (rows, tokens, bytes of text).

        A batch may also be a pyarrow array of strings without nulls, whose UTF-8 is not copied into str.

        The file has raw little-endian ids, uint16 if n_vocab <= 65536, else uint32, without a header, with the shape (rows, row).
        Each document is `bos` and its ids. Of the next `buffer` documents, the longest that fits into the rest of the row is placed. If
        none fits, the shortest is cropped to fill the row, and the remainder, with `bos` in front, waits as the newest document. In a
        tie the document that has waited longest is taken. The last row, if not full, is completed with the first documents again, in
        their order; `tokens` does not count those.

        ValueError: row below 2 or above 2**30, buffer below 1, a bos outside the vocabulary. OSError: the file cannot be written; an
        incomplete file is removed.
        """

def plan_rows(
    lengths: NDArray[np.integer[Any]] | Sequence[int], row: int, *, buffer: int, crop: bool
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Best-fit packing of lengths; returns (row index, item, start, length) of each part in the order of placing.

    A part is item[start:start + length]. A length counts all ids of an item; nothing is put in front of a remainder. With `crop`
    every row but the last is full. Without it items stay whole, and a row into which none of the `buffer` waiting items fits
    stays short.

    ValueError: row or buffer below 1, a length below 1 or, without `crop`, above `row`.
    """
