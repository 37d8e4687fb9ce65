"""Decoding of a stream of ids."""

import codecs
from collections.abc import Sequence


class StreamDecoder:
    """Decode ids one at a time to text without half code points; special tokens yield nothing.

    Bytes that may become a code point are held back; those that cannot are U+FFFD.
    """

    def __init__(self, tokens: Sequence[bytes]):
        self._tokens = tokens
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token: int) -> str:
        """The text that this id completes."""
        if token >= len(self._tokens):  # a special token ends an incomplete code point
            return self.flush()
        return self._decoder.decode(self._tokens[token])

    def flush(self) -> str:
        """The rest, with U+FFFD for an incomplete code point."""
        return self._decoder.decode(b"", final=True)
