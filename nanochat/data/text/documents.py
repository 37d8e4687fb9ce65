"""A user's own text as a dataset, and a user's own conversations.

Text is parquet or jsonl (a document in each row's `text`) or plain text (a document in each file); a document longer
than some 8,000 characters is cut at blank lines. Everything is streamed, twice: once to look at every document and to
choose the validation set, once to write the shards. So a mistake in the last file is found before anything is written.
"""

import dataclasses
import hashlib
import heapq
from collections.abc import Iterable, Iterator
from pathlib import Path

from nanochat.console import Progress, log, quantity
from nanochat.data.shards import MANIFEST, Dataset, open_dataset, write_dataset
from nanochat.data.text.summary import Summary
from nanochat.errors import DataError
from nanochat.paths import dataset_dir
from nanochat.readers.encodings import detect_encoding
from nanochat.readers.files import BINARY, File, find
from nanochat.readers.records import row_texts
from nanochat.readers.textfile import BLOCK, open_text

PACKER = 1  # raise it when the same files would give other documents
CUT = 8000  # characters of a document at most
SMALLEST = 16_000  # bytes of text that something can be learned from
HELD_OUT = 0.01  # part of the text that is kept for validation, ...
HELD_OUT_BYTES = 65_536  # ... and this much at least, ...
HELD_OUT_MOST = 0.1  # ... but not more than about this part


def import_texts(path: Path) -> Dataset:
    """The text of a file or folder as a dataset in data/user-<hash>/; made once, and anew where a file has changed.

    Validation is about 1% of the bytes, at least 64 KB but at most a tenth, chosen by the hash of a document's
    content: a document and its duplicates are all on one side. Raises DataError for text that cannot be used.
    """
    path = path.expanduser()
    files = find(path)
    folder = dataset_dir(f"user-{_fingerprint(path, files)}")
    if (folder / MANIFEST).exists():
        return open_dataset(folder)
    sources = _look(path, files)
    size = sum(source.path.stat().st_size for source in sources)
    cut = min(CUT, max(size // 100, 400))  # a small text in small pieces, so that a tenth of it can be told apart

    summary = Summary()
    chosen, total = _choose_validation(_progress(f"reading {path}", _documents(sources, cut), 0), path, summary)
    for line in summary.lines():
        log(line)

    def side(validation: bool) -> Iterator[str]:
        return (text for text in _documents(sources, cut) if (_hash(text) in chosen) == validation)

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


def _fingerprint(path: Path, files: list[File]) -> str:
    """Eight hex digits that change when the place, the files, their sizes or times, or PACKER do."""
    digest = hashlib.sha256(f"{PACKER}\n{path.resolve()}\n".encode())
    for file in files:
        stat = file.path.stat()
        digest.update(f"{file.path.relative_to(path)}\t{stat.st_size}\t{stat.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:8]


def _look(path: Path, files: list[File]) -> list[File]:
    """The files with their encodings. An empty file is an error when it is the only one, and skipped in a folder."""
    sources = []
    for file in files:
        empty = file.path.stat().st_size == 0
        if empty and len(files) > 1:
            log(f"{file}: empty, skipped")
            continue
        sources.append(file if file.kind in BINARY and not empty else dataclasses.replace(file, encoding=detect_encoding(file)))
    if not sources:
        raise DataError(f"every file in {path} is empty", "give --data a folder with text in it")
    return sources


# --- documents


def _documents(sources: list[File], cut: int) -> Iterator[str]:
    """Every document of every file, in order: stripped, not empty, at most `cut` characters."""
    for source in sources:
        if source.kind == "text":
            with open_text(source) as file:
                yield from _pieces(iter(lambda: file.read(BLOCK), ""), cut)
        else:
            for text in row_texts(source):
                yield from _pieces(iter([text]), cut)


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

    `summary` is told of each document. Only the smallest hashes are kept in memory, twice as many bytes' worth as needed so
    far. Raises DataError where the text is too small, or cannot be divided.
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
            f"{path} holds {total} bytes of text: too little to learn from",
            f"give at least {SMALLEST} bytes; a few megabytes begin to work",
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
