"""Decoding of a stream of ids."""

import codecs
from collections.abc import Callable


class StreamDecoder:
    """Decode ids one at a time to text without half code points; special tokens yield nothing.

    Bytes that may become a code point are held back; those that cannot are U+FFFD.
    """

    def __init__(self, bytes_of: Callable[[int], bytes | None]):
        """`bytes_of` returns a token's bytes, None for a special token."""
        self._bytes_of = bytes_of
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token: int) -> str:
        """The text that this id completes."""
        data = self._bytes_of(token)
        return self.flush() if data is None else self._decoder.decode(data)  # a special token ends an incomplete code point

    def flush(self) -> str:
        """The rest, with U+FFFD for an incomplete code point."""
        return self._decoder.decode(b"", final=True)
