"""JSON values from a stream of text in bounded memory: an array's elements, one value a line, or values one after another."""

import json
import re
from collections.abc import Callable, Iterator
from typing import Any

from nanochat import untrusted
from nanochat.errors import DataError
from nanochat.readers.parquet_pages import CELL_BYTES

BLOCK = 1 << 20  # characters read at once
_BETWEEN = re.compile(r"[\s,]*")
_SPACE = re.compile(r"\s*")
_NUMBER_TAIL = 3  # so much of a number, as in 1.5e+, may be no part of it yet
_TAIL = 64  # a syntax error this close to the end of what was read may be a value that is cut there


def json_values(read: Callable[[int], str], name: str, whole: Callable[[Any], bool] = lambda first: False) -> Iterator[tuple[str, Any]]:
    """(file:line, value) of each element of a top-level array and of each other top-level value.

    read: the next so many characters, "" at the end. An array whose first element `whole` says yes to is one value.
    Raises DataError if the text is not JSON, or a value is too large.
    """
    text = _Text(read, name)
    in_array = False
    while text.skip(_BETWEEN):
        where = text.where()
        if in_array and text.peek() == "]":
            text.place, in_array = text.place + 1, False
        elif not in_array and text.peek() == "[":
            text.hold = text.place
            text.place, in_array = text.place + 1, True
            if not text.skip(_SPACE):
                raise text.error("the array does not end")
            if text.peek() != "]":
                first_where, first = text.where(), text.value()
                if whole(first):
                    text.place, in_array = text.hold, False
                    yield where, text.value()
                else:
                    yield first_where, first
            text.hold = None
        else:
            yield where, text.value()
    if in_array:
        raise text.error("the array does not end")


class _Text:
    """The characters that were read and not yet parsed, with the current line number."""

    def __init__(self, read: Callable[[int], str], name: str):
        self.read, self.name = read, name
        self.text, self.place, self.ended = "", 0, False
        self.hold: int | None = None  # where the text begins that may be read again
        self.line, self.counted = 1, 0  # the line of text[counted]
        self.decode = json.JSONDecoder().raw_decode

    def more(self) -> None:
        """Read at least as many characters as are left; drop those before the current position, or before `hold`."""
        keep = self.place if self.hold is None else self.hold
        if len(self.text) - keep > CELL_BYTES:
            raise DataError(f"{self.where()}: a value of more than {CELL_BYTES >> 20} MB", "divide it into documents, one in each value")
        self.where()
        block = self.read(max(BLOCK, len(self.text) - keep))
        self.ended = not block
        self.text, self.place, self.counted = self.text[keep:] + block, self.place - keep, self.counted - keep
        self.hold = None if self.hold is None else 0

    def skip(self, pattern: "re.Pattern[str]") -> bool:
        """Skip the characters that `pattern` matches; returns whether any are left."""
        while True:
            found = pattern.match(self.text, self.place)
            self.place = found.end() if found else self.place
            if self.place < len(self.text) or self.ended:
                return self.place < len(self.text)
            self.more()

    def peek(self) -> str:
        """The character at the current position."""
        return self.text[self.place]

    def where(self) -> str:
        """file:line of the current position."""
        self.line, self.counted = self.line + self.text.count("\n", self.counted, self.place), max(self.place, self.counted)
        return f"{self.name}:{self.line}"

    def value(self) -> Any:
        """Parse the value at the current position and move behind it."""
        while True:
            if len(self.text) - self.place > 4 * BLOCK and sum(self.text.count(mark) for mark in ",[{") > untrusted.JSON_VALUES:
                raise self.error(f"more than {untrusted.JSON_VALUES:,} values")
            try:
                value, end = self.decode(self.text, self.place)
                if end < len(self.text) - _NUMBER_TAIL * isinstance(value, int | float) or self.ended:
                    self.place = end
                    return value
            except RecursionError:
                raise self.error("nested too deeply") from None
            except json.JSONDecodeError as error:
                if self.ended or (error.pos < len(self.text) - _TAIL and not error.msg.startswith("Unterminated string")):
                    self.where()
                    self.place = max(error.pos, self.place)
                    raise self.error(error.msg) from error
            except ValueError as error:  # an integer of thousands of digits
                raise self.error(untrusted.reason(error)) from error
            self.more()

    def error(self, message: str) -> DataError:
        """A DataError that names the current line."""
        return DataError(f"{self.where()} is not JSON: {message}", "give a JSON array, or one JSON value a line")
