"""Text in the columns of a terminal: how many it takes, cut to fit, and wrapped at words."""

import re
import unicodedata


def columns(text: str) -> int:
    """The columns that `text` takes on a terminal: two for a wide Chinese character, none for a combining one."""
    wide = sum(unicodedata.east_asian_width(letter) in "WF" for letter in text)
    return len(text) + wide - sum(unicodedata.category(letter) in ("Mn", "Me", "Cf") for letter in text)


def fitted(text: str, width: int) -> str:
    """`text`, cut where it takes more than `width` columns; then its last column is an ellipsis."""
    if columns(text) <= width:
        return text
    while text and columns(text) > width - 1:
        text = text[:-1]
    return f"{text}…" if width > 0 else ""


def wrapped(text: str, width: int, hanging: int = 0) -> str:
    """`text` with newlines for spaces where a word would be cut at `width` columns.

    Lines after the first one begin with `hanging` spaces, if they are less than a third of the width. A command in backticks stays on one
    line, and what is longer than a line is left to the terminal, so that both can be copied.
    """
    margin = " " * (hanging if 3 * hanging < width else 0)
    found, used = "", 0
    for part in re.findall(r" *(?:`[^`]*`|[^ ])+", text):
        length, word = columns(part), part.lstrip()
        if used and used + length > width >= columns(word):
            indent = margin if len(margin) + columns(word) <= width else ""
            found, part = f"{found}\n{indent}", word
            used, length = len(indent), columns(word)
        found += part
        used = (used + length - 1) % width + 1
    return found
