"""A user's own text as a dataset.

A document is a file of plain text, HTML, EPUB, DOCX or PDF, or a row's text in a file of rows; one that is longer than some 8,000
characters is cut at blank lines. Everything is streamed, twice: once to look at every document and to choose the validation set, once to
write the shards. So a mistake in the last file is found before anything is written.
"""

import dataclasses
import hashlib
import heapq
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from nanochat.console import Progress, log, quantity
from nanochat.data.shards import MANIFEST, Dataset, open_dataset, write_dataset
from nanochat.data.text import imported
from nanochat.data.text.summary import Summary
from nanochat.errors import DataError
from nanochat.paths import TEMPORARY
from nanochat.readers.archives import unpack
from nanochat.readers.encodings import detect_encoding
from nanochat.readers.files import ARCHIVES, BINARY, ROWS, File, find
from nanochat.readers.markup import markup_texts
from nanochat.readers.records import row_texts
from nanochat.readers.textfile import BLOCK, open_text

CUT = 8000  # characters of a document at most
SMALLEST = 16_000  # bytes of text that something can be learned from
SAMPLES, SAMPLE = 3, 100  # beginnings of files that are said, and their characters
LENIENT = ("json", "csv", "tsv", "html", "epub", "docx", "pdf")  # kinds that in a folder may be something else than its text
HELD_OUT = 0.01  # part of the text that is kept for validation, ...
HELD_OUT_BYTES = 65_536  # ... and this much at least, ...
HELD_OUT_MOST = 0.1  # ... but not more than about this part


def import_texts(path: Path, column: str = "", encoding: str = "") -> Dataset:
    """The text of a file or folder as a dataset in data/user-<hash>/; made once, and anew where the content has changed.

    The text is in `column` of files of rows ("": found). Text files are in `encoding` ("": detected).
    Validation is about 1% of the bytes, at least 64 KB but at most a tenth, chosen by the hash of a document's
    content: a document and its duplicates are all on one side. Raises DataError for text that cannot be used.
    """
    path = path.expanduser()
    how = _how(column, encoding)
    if not path.exists() and (folder := imported.known_folder(path, how)):
        log(f"{path} no longer exists; using the text that was imported from it")
        return open_dataset(folder)
    files = find(path)
    stamp = imported.stamp(path, files)
    if folder := imported.known_folder(path, how, stamp):
        return open_dataset(folder)
    folder = imported.content_folder(path, files, how)
    dataset = open_dataset(folder) if (folder / MANIFEST).exists() else _import(path, files, folder, column, encoding)
    imported.remember(path, how, stamp, folder)
    return dataset


def is_readable(path: Path, column: str = "", encoding: str = "") -> bool:
    """Whether `path` is there, or was imported when it was."""
    path = path.expanduser()
    return path.exists() or imported.known_folder(path, _how(column, encoding)) is not None


def _how(column: str, encoding: str) -> str:
    return "\t".join(filter(None, (column, encoding)))


def _import(path: Path, files: list[File], folder: Path, column: str, encoding: str) -> Dataset:
    """Read the files twice and write `folder`."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=TEMPORARY, dir=folder.parent) as temporary:
        sources = _look(path, _unpacked(files, Path(temporary)), column, encoding)
        size = sum(source.path.stat().st_size for source in sources)
        cut = min(CUT, max(size // 100, 400))  # a small text in small pieces, so that a tenth of it can be told apart

        summary, left = Summary(), Counter[str]()
        documents = _documents(sources, cut, column, left)
        chosen, total = _choose_validation(_progress(f"reading {path}", documents, 0), path, summary)
        for reason, count in (+left).items():
            log(f"left out of the text: {count:,} {reason}")
        for line in summary.lines():
            log(line)

        def side(validation: bool) -> Iterator[str]:
            return (text for text in _documents(sources, cut, column) if (_hash(text) in chosen) == validation)

        dataset = write_dataset(
            folder,
            name=folder.name,
            source=str(path.resolve()),
            licence="the user's own text",
            training=_progress("writing the dataset", side(False), total),
            validation=side(True),
        )
    held_out = dataset.validation
    kept = f"{held_out.documents} of them ({quantity(held_out.text_bytes)}B) kept for validation"
    log(f"{path}: {summary.documents} documents, {quantity(total)}B; {kept}")
    return dataset


# --- which files


def _unpacked(files: list[File], folder: Path) -> list[File]:
    """The files, in the place of each archive those in it, unpacked below `folder`."""
    found: list[File] = []
    for number, file in enumerate(files):
        if file.kind in ARCHIVES:
            (folder / str(number)).mkdir()
            found += unpack(file, folder / str(number))
        else:
            found.append(file)
    return found


def _look(path: Path, files: list[File], column: str, encoding: str) -> list[File]:
    """The files with their encodings, looked into and said. In a folder an empty file is left out, as is one of LENIENT without text."""
    sources: list[File] = []
    samples: list[str] = []
    for file in files:
        empty = file.path.stat().st_size == 0
        if empty and len(files) > 1:
            log(f"{file}: empty, skipped")
            continue
        try:
            source = file if file.kind in BINARY and not empty else _with_encoding(file, encoding)
            first = next(_documents([source], SAMPLE, column), "") if len(samples) < SAMPLES or file.kind in LENIENT else ""
        except DataError as error:
            if len(files) == 1 or file.kind not in LENIENT:
                raise
            log(f"left out: {error.message}")
            continue
        sources.append(source)
        samples += [f"{source} begins: {' '.join(first.split())}"] if first and len(samples) < SAMPLES else []
    if not sources:
        raise DataError(f"no file in {path} holds text", "give --data a directory with text in it")
    kinds = Counter(source.kind for source in sources)
    log(f"{path}: {len(sources)} file(s) to read: {', '.join(f'{count} {kind}' for kind, count in kinds.most_common())}")
    for sample in samples:
        log(sample)
    return sources


def _with_encoding(file: File, encoding: str) -> File:
    return dataclasses.replace(file, encoding=encoding or detect_encoding(file))


# --- documents


def _documents(sources: list[File], cut: int, column: str = "", left: Counter[str] | None = None) -> Iterator[str]:
    """Every document of every file, in order: stripped, not empty, at most `cut` characters. `left` counts the rows without text."""
    for source in sources:
        if source.kind == "text":
            with open_text(source) as file:
                yield from _pieces(iter(lambda: file.read(BLOCK), ""), cut)
        elif source.kind in ROWS:
            for text in row_texts(source, column, left):
                yield from _pieces(iter([text]), cut)
        else:
            yield from _pieces(markup_texts(source), cut)


def _pieces(blocks: Iterator[str], cut: int) -> Iterator[str]:
    """A text that comes in blocks, cut into pieces of at most `cut` characters, at the best place in each piece's second half."""
    rest = ""
    for block in blocks:
        rest, start = rest + block, 0
        while len(rest) - start > cut:
            end = _cut_at(rest, start + cut // 2, start + cut)
            yield from _clean(rest[start:end])
            start = end
        rest = rest[start:]
    yield from _clean(rest)


def _clean(text: str) -> list[str]:
    """[text] without blanks at its ends; [] where nothing is left. Half a surrogate pair (an escape in a jsonl) becomes '?'."""
    text = text.strip()
    if not text:
        return []
    try:
        text.encode()
    except UnicodeEncodeError:
        text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace").encode("utf-8", "replace").decode()
    return [text]


def _cut_at(text: str, low: int, high: int) -> int:
    """Where to cut `text` in (low, high]: after the last blank line, else line, sentence, word; else at `high`."""
    for ending in ("\n\n", "\n", "。", ". ", " "):
        found = text.rfind(ending, low, high)
        if found >= 0:
            return found + len(ending)
    return high


# --- validation


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def _choose_validation(documents: Iterable[str], path: Path, summary: Summary) -> tuple[set[int], int]:
    """Hashes of the documents to hold out: the smallest hashes, until their bytes suffice; and all documents' bytes.

    `summary` counts each document. Only the smallest hashes are kept in memory, twice as many bytes' worth as needed so
    far. Raises DataError if the text is too small, or cannot be divided.
    """
    smallest: list[tuple[int, int]] = []  # a heap of (-hash, bytes): the largest hash is on top
    held = total = 0
    for text in documents:
        size, value = len(text.encode()), _hash(text)
        total += size
        summary.add(text, size, value)
        heapq.heappush(smallest, (-value, size))
        held += size
        while held - smallest[0][1] > 2 * max(HELD_OUT * total, HELD_OUT_BYTES / HELD_OUT_MOST):
            held -= heapq.heappop(smallest)[1]
    if total < SMALLEST:
        raise DataError(
            f"{path} holds {total} bytes of text: too little to train on",
            f"give at least {SMALLEST} bytes; a few megabytes are a useful minimum",
        )

    bytes_of: dict[int, int] = {}
    for negative, size in smallest:
        bytes_of[-negative] = bytes_of.get(-negative, 0) + size
    most = HELD_OUT_MOST * total
    enough = max(HELD_OUT * total, min(HELD_OUT_BYTES, most))
    chosen: set[int] = set()
    held = 0
    for value in sorted(bytes_of):
        if held >= enough:
            break
        if bytes_of[value] <= most:  # not one that is repeated all over
            chosen.add(value)
            held += bytes_of[value]
    if not chosen:
        hint = "give more text, or text that repeats itself less: a tenth of it at most is held out"
        raise DataError(f"{path} holds {summary.documents} documents, none of which can be kept for validation", hint)
    return chosen, total


def _progress(what: str, documents: Iterable[str], total: int) -> Iterator[str]:
    with Progress(what, total, "bytes") as progress:
        for text in documents:
            progress.advance(len(text.encode()))
            yield text
