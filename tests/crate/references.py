"""What the tests of rustbpe share: slow and obvious references, and texts of all kinds."""

import re
import unicodedata
from collections import Counter
from itertools import pairwise

from hypothesis import settings
from hypothesis import strategies as st

import rustbpe

PATTERN = r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,2}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
ALPHABET = [bytes([byte]) for byte in range(256)]
few = settings(max_examples=60, deadline=None)
# Letters, numbers and spaces of several kinds, contractions, marks, code points of one to four bytes.
texts_of_all_kinds = st.text(alphabet="aabesS'tlLvVrRed \t\r\n\u00a0\u3000é\u017f字世\u030109²Ⅷ٣.,!_🙂\u200d\0", max_size=60)
small_texts = st.lists(st.text(alphabet="abc ", max_size=30) | texts_of_all_kinds, max_size=6)


def slow_split(text: str) -> list[str]:
    """PATTERN in Python's `re`: the characters of a class that ASCII lacks are first replaced by one it has."""

    def ascii_like(character: str) -> str:
        if character in "\u0085\u00a0\u1680\u2028\u2029\u202f\u205f\u3000" or "\u2000" <= character <= "\u200a":
            return "\t"
        if character == "\u017f":
            return "s"  # its case folding
        category = unicodedata.category(character)[0]
        return character if character.isascii() else {"L": "x", "N": "0"}.get(category, "!")

    pattern = PATTERN.replace(r"\p{L}", "a-zA-Z").replace(r"\p{N}", "0-9").replace("a-zA-Z+", "[a-zA-Z]+").replace("0-9{", "[0-9]{")
    spans = [found.span() for found in re.finditer(pattern, "".join(map(ascii_like, text)), re.ASCII)]
    return [text[start:end] for start, end in spans]


def slow_train(texts: list[str], vocab_size: int) -> list[bytes]:
    """Counts every pair of every piece anew before each merge."""
    tokens = list(ALPHABET)
    pieces = [list(piece.encode()) for text in texts for piece in slow_split(text)]
    while len(tokens) < vocab_size:
        counts = Counter(pair for piece in pieces for pair in pairwise(piece))
        if not counts:
            break
        pair = min(counts, key=lambda pair: (-counts[pair], pair))
        for piece in pieces:
            i = 0
            while i + 1 < len(piece):
                if (piece[i], piece[i + 1]) == pair:
                    piece[i : i + 2] = [len(tokens)]
                i += 1
        tokens.append(tokens[pair[0]] + tokens[pair[1]])
    return tokens


def slow_encode(tokens: list[bytes], text: str) -> list[int]:
    """Merges the neighbours of lowest rank, of several the leftmost, until there are none."""
    rank = {token: i for i, token in enumerate(tokens)}
    ids = []
    for piece in slow_split(text):
        parts = [bytes([byte]) for byte in piece.encode()]
        while True:
            merges = [(rank[a + b], i) for i, (a, b) in enumerate(pairwise(parts)) if a + b in rank]
            if not merges:
                break
            _, i = min(merges)
            parts[i : i + 2] = [parts[i] + parts[i + 1]]
        ids += [rank[part] for part in parts]
    return ids


def slow_pack(documents: list[list[int]], row: int, bos: int, buffer: int) -> tuple[list[list[int]], int]:
    """The rule of pack_rows, word for word: the rows, and the number of ids before the last row's completion."""
    documents = [[bos, *document] for document in documents]
    incoming, waiting, rows, current, tokens = list(documents), [], [], [], 0
    while incoming or waiting:
        while incoming and len(waiting) < buffer:
            waiting.append(incoming.pop(0))
        space = row - len(current)
        fitting = [document for document in waiting if len(document) <= space]
        if fitting:
            longest = max(fitting, key=len)
            current += longest
        else:
            longest = min(waiting, key=len)
            current += longest[:space]
        waiting = [document for document in waiting if document is not longest]
        if not fitting:
            waiting.append([bos, *longest[space:]])
        if len(current) == row:
            rows.append(current)
            tokens += row
            current = []
    if current:
        tokens += len(current)
        again = [id for document in documents for id in document] * row
        rows.append(current + again[: row - len(current)])
    return rows, tokens


def slow_plan(lengths: list[int], row: int, buffer: int, crop: bool) -> list[tuple[int, int, int, int]]:
    incoming = [(item, 0, length) for item, length in enumerate(lengths)]
    waiting: list[tuple[int, int, int]] = []
    plan, index, used = [], 0, 0
    while incoming or waiting:
        while incoming and len(waiting) < buffer:
            waiting.append(incoming.pop(0))
        fitting = [part for part in waiting if part[2] <= row - used]
        if fitting:
            part = max(fitting, key=lambda part: part[2])
            waiting.remove(part)
        elif crop:
            item, start, length = min(waiting, key=lambda part: part[2])
            waiting.remove((item, start, length))
            waiting.append((item, start + row - used, length - row + used))
            part = (item, start, row - used)
        else:
            index, used = index + 1, 0
            continue
        plan.append((index, *part))
        used += part[2]
        if used == row:
            index, used = index + 1, 0
    return plan


def encoding(texts: list[str], vocab_size: int = 300) -> rustbpe.Encoding:
    tokens = rustbpe.train(texts, vocab_size, PATTERN)
    return rustbpe.Encoding(tokens, PATTERN, {"<|bos|>": len(tokens)})
