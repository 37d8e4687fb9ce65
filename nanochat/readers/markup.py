"""The text of HTML pages, EPUB books, Word documents and PDF files, in blocks; nothing in them is run or followed."""

import posixpath
import re
import zipfile
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from typing import Any
from urllib.parse import unquote
from xml.parsers import expat

from nanochat import untrusted
from nanochat.errors import DataError
from nanochat.hardware.extras import needed
from nanochat.hub.archive import checked_zip, read_entry
from nanochat.readers.files import File
from nanochat.readers.textfile import open_text

PAGE_BYTES = 64 << 20  # of an HTML page, or of a part of a book, at most
SILENT = ("script", "style", "template", "noscript", "head", "svg", "math")  # elements whose content is no text
INLINE = (
    *("a", "abbr", "b", "bdi", "bdo", "big", "cite", "code", "data", "del", "dfn", "em", "font", "i", "ins", "kbd", "label", "mark", "q"),
    *("s", "samp", "small", "span", "strike", "strong", "sub", "sup", "time", "tt", "u", "var", "wbr", "ruby", "rb", "img"),
)
PARAGRAPHS = ("p", "h1", "h2", "h3", "h4", "h5", "h6", "pre", "blockquote", "table", "ul", "ol")
VOID = ("br", "hr", "img", "input", "link", "meta", "wbr", "source", "area", "base", "col", "embed", "track", "param")


def markup_texts(file: File) -> Iterator[str]:
    """The text of a file of the kind html, epub, docx or pdf, in blocks. Raises DataError, and UsageError where a package is missing."""
    yield from {"html": _html, "epub": _epub, "docx": _docx, "pdf": _pdf}[file.kind](file)


class _Page(HTMLParser):
    """Collects a page's text: a line for each block, blanks joined but in <pre>."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.parts: list[str] = []
        self.silent = self.pre = 0

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.silent += tag in SILENT
        self.pre += tag == "pre"
        if tag == "body":
            self.silent = 0  # a head that nobody closed
        if tag not in INLINE:
            self.parts.append("\n\n" if tag in PARAGRAPHS else "\n")

    def handle_startendtag(self, tag: str, attrs: Any) -> None:
        if tag not in INLINE:
            self.parts.append("\n")

    def handle_endtag(self, tag: str) -> None:
        self.silent = max(self.silent - (tag in SILENT), 0)
        self.pre = max(self.pre - (tag == "pre"), 0)
        if tag not in INLINE and tag not in VOID:
            self.parts.append("\t" if tag in ("td", "th") else "\n")

    def handle_data(self, data: str) -> None:
        if not self.silent:
            data = data if self.pre else re.sub(r"\s+", " ", data)
            after_blank = not self.pre and self.parts and self.parts[-1].endswith((" ", "\n"))
            self.parts.append(data.removeprefix(" ") if after_blank else data)

    def text(self) -> str:
        """The collected text, without spaces at line ends and with at most one blank line in a row."""
        joined = re.sub(r"[ \t]+\n", "\n", "".join(self.parts))
        return re.sub(r"\n{3,}", "\n\n", joined).strip()


def page_text(markup: str) -> str:
    """The text of an HTML page."""
    page = _Page()
    page.feed(markup)
    page.close()
    return page.text()


def _html(file: File) -> Iterator[str]:
    with open_text(file) as stream:
        markup = stream.read(PAGE_BYTES + 1)
    if len(markup) > PAGE_BYTES:
        raise DataError(f"{file} has more than {PAGE_BYTES >> 20} MB", "divide it, or leave it out")
    yield page_text(markup)


def _epub(file: File) -> Iterator[str]:
    """The chapters of a book, in the order of its spine."""
    with checked_zip(file.path, str(file)) as book:
        package: list[dict[str, str]] = []
        _parse(file, _part(file, book, "META-INF/container.xml"), lambda tag, at: package.extend([at] * (tag == "rootfile")))
        root = package[0].get("full-path", "") if package else ""
        hrefs: dict[str, str] = {}
        spine: list[str] = []

        def start(tag: str, at: dict[str, str]) -> None:
            if tag == "item":
                hrefs[at["id"]] = at["href"]
            elif tag == "itemref":
                spine.append(at["idref"])

        _parse(file, _part(file, book, root), start)
        for name in (hrefs[one] for one in spine if one in hrefs):
            chapter = _part(file, book, posixpath.normpath(posixpath.join(posixpath.dirname(root), unquote(name))))
            yield page_text(chapter.decode("utf-8", "replace")) + "\n\n"


def _docx(file: File) -> Iterator[str]:
    """The paragraphs of a document; what was deleted in it is left out."""
    parts: list[str] = []
    inside: list[str] = []

    def start(tag: str, at: dict[str, str]) -> None:
        inside.append(tag)
        parts.append({"tab": "\t", "br": "\n", "cr": "\n"}.get(tag, "") if "r" in inside[:-1] else "")

    def end(tag: str) -> None:
        inside.pop()
        parts.append("\n\n" if tag == "p" else "")

    def text(data: str) -> None:
        if inside and inside[-1] == "t":
            parts.append(data)

    with checked_zip(file.path, str(file)) as document:
        _parse(file, _part(file, document, "word/document.xml"), start, end, text)
    yield "".join(parts)


def _part(file: File, archive: zipfile.ZipFile, name: str) -> bytes:
    """A part of a book or document. Raises DataError if it is missing, damaged, or too large."""
    try:
        return read_entry(archive, name, PAGE_BYTES)
    except (KeyError, ValueError) as error:
        raise _unreadable(file, error) from error


def _unreadable(file: File, error: Exception) -> DataError:
    return DataError(
        f"{file} is no {file.kind} file that can be read ({untrusted.reason(error)})", "replace it with a good copy, or leave it out"
    )


def _parse(file: File, xml: bytes, start: Callable[[str, dict[str, str]], Any], end: Any = None, text: Any = None) -> None:
    """Call `start`, `end` and `text` for what is in an XML text, names without their namespaces. It may declare no entities: no DTD."""
    parser = expat.ParserCreate(namespace_separator=" ")
    parser.buffer_text = True

    def refuse(*_: Any) -> None:
        raise ValueError("it has a DTD")

    parser.StartDoctypeDeclHandler = refuse
    parser.StartElementHandler = lambda tag, at: start(tag.rpartition(" ")[2], {key.rpartition(" ")[2]: value for key, value in at.items()})
    parser.EndElementHandler = end and (lambda tag: end(tag.rpartition(" ")[2]))
    parser.CharacterDataHandler = text
    try:
        parser.Parse(xml, True)
    except (expat.ExpatError, ValueError, KeyError) as error:
        raise _unreadable(file, error) from error


def _pdf(file: File) -> Iterator[str]:
    """The text of each page."""
    pypdf = needed("pypdf", "pypdf", f"reading {file}")
    found = False
    try:
        with file.path.open("rb") as raw:
            for page in pypdf.PdfReader(raw).pages:
                text = page.extract_text()
                found = found or bool(text.strip())
                yield text + "\n\n"
    except (pypdf.errors.PyPdfError, OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(
            f"{file} cannot be read as PDF: {untrusted.reason(error)}", "replace it with a copy without a password, or with its text"
        ) from error
    if not found:
        raise DataError(f"{file} holds no text: its pages are pictures", "run text recognition (OCR) on it first, or leave it out")
