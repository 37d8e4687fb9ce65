"""The encoding of a text file: UTF-8, what its first bytes say, or a guess that all of the file confirms and that is said."""

import codecs
import itertools
from collections.abc import Iterator
from typing import IO

from nanochat.console import log
from nanochat.errors import DataError
from nanochat.readers.files import BINARY, ROWS, File
from nanochat.readers.textfile import BLOCK, TEXT, TO_UTF8, Allowance, open_bytes
from nanochat.untrusted import shown

SAMPLE = 1 << 16  # bytes that an encoding is guessed from

_BOMS = (  # the longer marks first: UTF-32's begins with UTF-16's
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
# Files in these encodings use the vendors' supersets of them in practice.
_SUPERSETS = {"big5": "cp950", "gb2312": "gb18030", "gbk": "gb18030", "shift_jis": "cp932", "euc_kr": "cp949", "ascii": "utf-8"}
_FREQUENT = frozenset(" \n\u3000\u3001\u3002\uff0c")  # spaces and stops: what tells UTF-16's two byte orders apart

# Encodings of the Latin alphabet, cp1252 first, with the letters beyond ASCII of languages that are written in them: detectors take
# French for cp1250, where most of its letters have the same bytes, and some of them become others.
_LATIN = {
    "cp1252": ("àâæçéèêëîïôœùûüÿ", "äöüß", "áéíñóúü¿¡ª", "ãáàâçéêíóôõúü", "àèéìíîòóùú", "äöåæøé", "ëïéèöüá", "áéíóúýþðæö", "àçéèíïòóúü"),
    "cp1250": ("ąćęłńóśźż", "áčďéěíňóřšťúůýž", "áäčďéíĺľňóôŕšťúýž", "áéíóöőúüű", "ăâîşţșț", "čćđšž"),
    "iso8859_2": ("ąćęłńóśźż", "áčďéěíňóřšťúůýž", "áéíóöőúüű"),
    "cp1254": ("çğıöşüâîûi̇",),
    "cp1257": ("ąčęėįšųūž", "āčēģīķļņšūž", "äõöüšž"),
    "mac_roman": ("àâæçéèêëîïôœùûüÿ", "äöüß", "áéíñóúü¿¡ª", "ãáàâçéêíóôõúü"),
    "cp850": ("àâæçéèêëîïôœùûüÿ", "äöüß", "áéíñóúü¿¡ª", "ãáàâçéêíóôõúü"),
}
_MARKS = frozenset("‘’“”„–—…•«»°€£§·©®™\xa0´`")  # in a text of any of these languages
STRONG = 0.1  # how much more of a text's letters another encoding than cp1252 must explain


def detect_encoding(file: File, allowance: Allowance = TEXT) -> str:
    """The encoding to read a file with; another than UTF-8 is said with a sample, once a file.

    Raises DataError if the file is empty, binary, or in no encoding that can be recognised.
    """
    with open_bytes(file, allowance) as stream:
        head = stream.read(SAMPLE)
        if not head:
            raise DataError(f"{file} is empty", "give a file with text in it")
        for mark, name in _BOMS:
            if head.startswith(mark):
                return _said(file, name, head) if name != "utf-8-sig" else name
        if b"\0" in head:
            return _said(file, _utf16(file, head), head)
        control = sum(head.count(byte) for byte in range(32) if byte not in b"\t\n\v\f\r\x1b")
        if control > len(head) / 200:
            raise _binary(file)
        sample = _first_not_utf8(head, stream)
    if sample is None:
        return "utf-8"
    _refuse_damaged_utf8(file, sample)
    for encoding in dict.fromkeys(_guesses(sample)):
        if _decodes(file, encoding, allowance):
            return _said(file, encoding, sample)
    raise DataError(f"{file} is not UTF-8, and its encoding was not recognized", f"name it with --encoding NAME, or {TO_UTF8}")


def row_file(file: File, allowance: Allowance = TEXT) -> File:
    """`file` with its encoding, as a file of rows: one of another kind, which was named itself, is read as jsonl. Raises DataError."""
    kind = file.kind if file.kind in ROWS else "jsonl"
    return File(file.path, file.name, kind, "" if kind in BINARY else detect_encoding(file, allowance))


def _guesses(sample: bytes) -> Iterator[str]:
    """Encodings of a sample, the likeliest first: cp1252 for the Latin alphabet unless another explains clearly more of its letters."""
    from charset_normalizer import from_bytes

    best = max(_LATIN, key=lambda name: _explained(sample, name) + STRONG * (name == "cp1252"))
    latin = _explained(sample, best) > 0.8 and sum(byte > 127 for byte in sample) < len(sample) / 4
    if latin:
        yield best
    found = from_bytes(sample).best()
    if found:
        yield _SUPERSETS.get(found.encoding, found.encoding)
    if latin:
        yield from ("cp1252", "latin-1")


def _explained(sample: bytes, encoding: str) -> float:
    """Which part of a sample's characters beyond ASCII are letters of one language of an encoding."""
    try:
        text = sample.decode(encoding).lower()
    except UnicodeDecodeError:
        return 0.0
    letters = [character for character in text if character > "\x7f" and character not in _MARKS]
    counts = (sum(character in alphabet for character in letters) for alphabet in _LATIN[encoding])
    return max(counts) / len(letters) if letters else float(encoding == "cp1252")


def _decodes(file: File, encoding: str, allowance: Allowance) -> bool:
    """Whether all of a file is text in an encoding."""
    decoder = codecs.getincrementaldecoder(encoding)()
    with open_bytes(file, allowance) as stream:
        try:
            for block in itertools.chain(iter(lambda: stream.read(BLOCK), b""), [b""]):
                decoder.decode(block, final=not block)
        except UnicodeDecodeError:
            return False
    return True


def _said(file: File, encoding: str, sample: bytes) -> str:
    """Say the encoding, with the first words that need it; returns it."""
    text = sample.decode(encoding, "replace").lstrip("\ufeff")
    first = next((place for place, character in enumerate(text) if character > "\x7f"), 0)
    words = " ".join(text[max(first - 20, 0) : first + 40].split())
    log(f"{file}: read as {encoding} (not UTF-8), for example {shown(words)}; --encoding NAME names another")
    return encoding


def _binary(file: File) -> DataError:
    return DataError(f"{file} is a binary file, not text", "give text: parquet, jsonl, or plain text (.txt, .md)")


def _utf16(file: File, head: bytes) -> str:
    """Which UTF-16 a text with zero bytes and no mark is in: the order in which spaces and full stops are found."""
    head = head[: len(head) // 2 * 2]
    texts = {name: head.decode(name, errors="replace") for name in ("utf-16-le", "utf-16-be")}
    best = max(texts, key=lambda name: sum(character in _FREQUENT for character in texts[name]))
    text = texts[best]
    odd = sum(not (character.isprintable() or character in "\t\n\v\f\r\u3000\xa0") for character in text)
    if odd > len(text) / 50 or not any(character in _FREQUENT for character in text):
        raise _binary(file)
    return best


def _first_not_utf8(head: bytes, rest: IO[bytes]) -> bytes | None:
    """A sample around the first byte that is not UTF-8; None if all of it is."""
    decoder, block = codecs.getincrementaldecoder("utf-8")(), head
    while block:
        try:
            decoder.decode(block)
        except UnicodeDecodeError as error:
            start = block.rfind(b"\n", 0, max(error.start - SAMPLE // 2, 0)) + 1
            sample = block[start : start + SAMPLE]
            # Half a character at either end would rule the right encoding out: whole lines only.
            return sample[: sample.rfind(b"\n") + 1] or sample
        block = rest.read(BLOCK)
    return None


def _refuse_damaged_utf8(file: File, sample: bytes) -> None:
    """Raise DataError if `sample` is UTF-8 but for a few bytes: another encoding would make rubbish of it."""
    text = sample.decode("utf-8", errors="replace")
    bad = text.count("\ufffd")
    good = sum(ord(character) > 127 for character in text) - bad
    if good > 10 * bad:
        raise DataError(f"{file} is UTF-8, but not all of it: it is damaged", "print the place: iconv -f UTF-8 -t UTF-8 FILE > /dev/null")
