"""Text from ids that come one at a time."""

import codecs
from collections.abc import Sequence


class StreamDecoder:
    """Ids one at a time -> text, never half a code point; specials yield nothing.

    Bytes that may still become a code point are held back; those that never can are U+FFFD at once.
    """

    def __init__(self, tokens: Sequence[bytes]):
        self._tokens = tokens
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token: int) -> str:
        """The text that is now certain."""
        if token >= len(self._tokens):  # a special: what came before it cannot be completed by what comes after
            return self.flush()
        return self._decoder.decode(self._tokens[token])

    def flush(self) -> str:
        """The rest, with U+FFFD for a code point that was never completed."""
        return self._decoder.decode(b"", final=True)
