"""The files of a directory that are read, with their kinds; other files are counted, and placeholders for data are refused."""

import contextlib
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import TypeVar

from nanochat.console import log
from nanochat.errors import DataError

KINDS = {
    **dict.fromkeys((".parquet", ".pq"), "parquet"),
    **dict.fromkeys((".arrow", ".feather", ".ipc"), "arrow"),
    **dict.fromkeys((".jsonl", ".ndjson"), "jsonl"),
    **dict.fromkeys((".json",), "json"),
    **dict.fromkeys((".csv",), "csv"),
    **dict.fromkeys((".tsv", ".tab"), "tsv"),
    **dict.fromkeys((".txt", ".text", ".md", ".rst"), "text"),
    **dict.fromkeys((".html", ".htm", ".xhtml"), "html"),
    **{f".{kind}": kind for kind in ("epub", "docx", "pdf", "zip", "tar", "tgz", "tbz2", "txz")},
}
ARCHIVES = ("zip", "tar", "tgz", "tbz2", "txz")
ROWS = ("parquet", "arrow", "jsonl", "json", "csv", "tsv")  # files of rows, of which one column is the text
COMPRESSED = (".gz", ".zst", ".bz2", ".xz")
READ = tuple(dict.fromkeys(KINDS.values()))
BINARY = ("parquet", "arrow", "epub", "docx", "pdf", *ARCHIVES)  # that have no encoding
FORMATS = "parquet, Arrow, jsonl, JSON, CSV, TSV, .txt, .md, .html, .epub, .docx, .pdf, zip and tar archives; .gz, .zst, .bz2, .xz"
METADATA = ("dataset_info.json", "dataset_infos.json", "state.json", "dataset_dict.json")  # beside the Arrow files of `save_to_disk`
CARD = "a dataset's card"
TRAIN, TEST = ("train",), ("test", "valid", "validation", "eval", "dev")
LFS = b"version https://git-lfs.github.com/spec/"
SHORTCUTS = {".lnk": "a Windows shortcut", ".url": "an internet shortcut", ".webloc": "an internet shortcut", ".desktop": "a shortcut"}


AnyPath = TypeVar("AnyPath", bound=PurePath)


@dataclass(frozen=True)
class File:
    """A file to read: where its bytes are, its name in messages, its kind, and its encoding once it is known ( "" if it has none)."""

    path: Path
    name: str
    kind: str
    encoding: str = ""

    def __str__(self) -> str:
        return self.name


def kind_of(path: PurePath) -> str:
    """The kind of a file by its name, "" for a file that is not read."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in COMPRESSED:
        suffixes.pop()
    return KINDS.get(suffixes[-1], "") if suffixes else ""


def find(path: Path, option: str = "--data", kinds: tuple[str, ...] = READ) -> list[File]:
    """The files to read, sorted; a file that is named itself may have any suffix. Raises DataError if there is none.

    One line counts the other files of a directory.
    """
    if path.is_file():
        refuse_other(path)
        return [File(path, str(path), kind_of(path) or "text")]
    if not path.exists():
        raise DataError(f"{path} does not exist", f"give {option} a file or a directory")
    if path.is_dir() is False:
        raise DataError(f"{path} is not a regular file", f"give {option} a file or a directory")
    files = choose(str(path), list(walk(path)), kinds)
    for file in files:
        refuse_other(file)
    return [File(file, str(file), kind_of(file)) for file in files]


def choose(name: str, paths: list[AnyPath], kinds: tuple[str, ...] = READ, inside: bool = False) -> list[AnyPath]:
    """Those of the paths in a folder or (`inside`) an archive that are read, sorted; the others are counted in one line.

    Raises DataError if there is none.
    """
    left: Counter[str] = Counter()
    found = []
    for file in paths:
        suffix = file.suffix.lower()
        if isinstance(file, Path) and not file.is_file():
            left["no regular file"] += 1
        elif kind_of(file) not in kinds or (inside and kind_of(file) in ARCHIVES):
            left[SHORTCUTS.get(suffix, suffix or "no suffix")] += 1
        else:
            found.append(file)
    for file, why in _beside(found).items():
        found.remove(file)
        left[why] += 1
    if left:
        listed = ", ".join(f"{count} ({why})" for why, count in left.most_common(8))
        log(f"{name}: {left.total()} file(s) left out: {listed}")
    if not found:
        raise DataError(f"{name} holds no file that can be read", f"give files of these formats: {FORMATS}")
    return sorted(found)


def _beside(files: Sequence[AnyPath]) -> dict[AnyPath, str]:
    """Files that belong to a dataset but are none of its text: file -> why. Parts for tests stay out where others are for training."""
    why: dict[AnyPath, str] = {}
    data = [file for file in files if kind_of(file) in ROWS and file.name not in METADATA]
    folders = {file.parent for file in data}
    for file in files:
        if file.name in METADATA and any(kind_of(other) == "arrow" for other in data):
            why[file] = "about a dataset"
        elif file.name.lower() in ("readme.md", "license.md", "license.txt") and file.parent in folders:
            why[file] = CARD
    parts = [file for file in data if file not in why]
    if any(_marked(file, TRAIN) for file in parts):
        why |= dict.fromkeys((file for file in parts if _marked(file, TEST) and not _marked(file, TRAIN)), "a part for tests")
    return why


def _marked(file: PurePath, words: tuple[str, ...]) -> bool:
    """Whether the name of a file, or of the folder that it is in, begins with one of `words`."""
    return any(name.lower().replace("-", ".").replace("_", ".").split(".")[0] in words for name in (file.name, file.parent.name))


def walk(root: Path) -> Iterator[Path]:
    """Yield every path below `root` that is not hidden; follow links, visit each directory once, and log the links."""
    seen: set[tuple[int, int]] = set()
    links: list[Path] = []
    folders, linked = [root], list[Path]()
    while folders or linked:
        folder = folders.pop() if folders else linked.pop(0)  # links last: what is in a folder of its own is found there
        with contextlib.suppress(OSError):  # not ours to read, or gone
            stat = folder.stat()
            if (stat.st_dev, stat.st_ino) in seen:
                continue
            seen.add((stat.st_dev, stat.st_ino))
            for found in sorted(path for path in folder.iterdir() if not path.name.startswith(".")):
                if found.is_symlink():
                    links.append(found)
                if found.is_dir():
                    (linked if found.is_symlink() else folders).append(found)
                else:
                    yield found
    if links:
        log(f"{root}: {len(links)} link(s) followed, such as {links[0]} -> {os.readlink(links[0])}")


def refuse_other(path: Path) -> None:
    """Raise DataError for a file that stands for the data instead of holding it: a Git LFS pointer, a web page, a shortcut."""
    try:
        with path.open("rb") as file:
            head = file.read(1024)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}", "check the file and its permissions") from error
    if head.startswith(LFS):
        raise DataError(f"{path} is a Git LFS pointer, not the file itself", "run git lfs pull in its repository")
    if path.suffix.lower() in SHORTCUTS or head.startswith((b"L\0\0\0\x01\x14\x02\0", b"[InternetShortcut]")):
        raise DataError(
            f"{path} is {SHORTCUTS.get(path.suffix.lower(), 'a shortcut')}, not the file itself", "give the file that it leads to"
        )
    page = head.lstrip().lower().startswith((b"<!doctype html", b"<html"))
    if page and kind_of(path) not in ("html", "text", ""):
        raise DataError(
            f"{path} is a web page, not a {kind_of(path)} file: a failed download, or a login page",
            "download the file itself again",
        )
