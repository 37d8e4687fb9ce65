"""Lint of prose: the words and sentences of documents, messages, docstrings and comments, by the rules of scripts/prose.toml.

`python -m scripts.prose [PATH ...]` prints each finding with its file and line and exits with 1 if there are any.
"""

import re
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from nanochat.console import show
from scripts.prose_texts import Text, texts

ROOT = Path(__file__).resolve().parent.parent
RULES = Path(__file__).with_name("prose.toml")
_END = re.compile(r"(?<=[.!?])[\"')*]*\s+(?=[\"'(*]*[A-Z0-9`<])|\n\s*\n|\n(?=\s*(?:[-*|>] |\d+\. |\w+: ))")
_ABBREVIATIONS = re.compile(r"\b(e\.g|i\.e|etc|vs|cf)\.")
_LABEL = re.compile(r"(?<=[;,:(] )-?\w+: ")  # in a list of values, as in "; auto: chosen from the model's size"
_COLON = re.compile(r"(?<!\d):(?=\s|$)")  # not that of "0: none"
_SEMICOLON = re.compile(r"; (?!-?\w+: )")
_CLAUSE = re.compile(r"^\W*(?:What|Whatever|Who|Whoever)\b(?![^.]*\?)")
_HOW = re.compile(r"^\W*How\b(?![^.]*\?)")
_PREFIX = re.compile(r"^(?:warning|skipped|error|hint|note|N): ")
_CONDITION = r"(?:(?:If|To|When|On|In|For|Without|With|Where)\b[^,:]*[,:] )?(?:then )?"
_ASIDE = re.compile(r"`[^`]*`|\{[^{}]*\}|https?://\S+|\b[A-Z]\w+(?:-[A-Z]\w+)+: ")  # code, addresses, headers


@dataclass(frozen=True)
class Finding:
    """One failed rule at a line of a file."""

    path: str
    line: int
    rule: str
    excerpt: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.rule}: {self.excerpt}"


@cache
def rules() -> dict[str, list[tuple[re.Pattern[str], str]]]:
    """Patterns and advice of each list in prose.toml: "words", "documents", "logs", "chinese", "names"."""
    tables = tomllib.loads(RULES.read_text(encoding="utf-8"))
    return {
        name: [(re.compile(entry["find"], 0 if entry.get("case") else re.IGNORECASE), entry["write"]) for entry in entries]
        for name, entries in tables.items()
        if entries and isinstance(entries[0], dict)
    }


@cache
def imperatives() -> re.Pattern[str]:
    """The beginning of a hint that is an instruction, or that a constant fills in."""
    words = tomllib.loads(RULES.read_text(encoding="utf-8"))["imperatives"]
    return re.compile(rf"{_CONDITION}(?:N\b|X\b|--\S+ takes\b|(?:{'|'.join(words)})\b)", re.IGNORECASE)


def sentences(text: str) -> list[str]:
    """The sentences of a text; a list item, a table cell and a paragraph end one as well."""
    plain = _ABBREVIATIONS.sub(lambda found: found[0].replace(".", ""), text)
    return [" ".join(part.split()) for part in _END.split(plain) if part and part.strip()]


def check(text: Text) -> Iterator[tuple[str, str]]:
    """(rule, excerpt) of each rule that `text` fails."""
    if text.kind == "name":
        yield from ((f"write {write}", text.words) for find, write in rules()["names"] if find.fullmatch(text.words))
        return
    for find, write in rules()[{"chinese": "chinese", "record": "logs"}.get(text.kind, "words")]:
        plain = text.words if text.kind == "chinese" else _ASIDE.sub("X", text.words)
        for found in find.finditer(" ".join(plain.split())):
            yield f"write {write}", _excerpt(found)
    if text.kind not in ("chinese", "record"):
        yield from _structure(text)


def _structure(text: Text) -> Iterator[tuple[str, str]]:
    """Rules that see a whole sentence."""
    for sentence in sentences(_ASIDE.sub("X", text.words)):
        if len(_COLON.findall(_LABEL.sub("", _PREFIX.sub("", sentence)))) > 1:
            yield "at most one colon in a sentence", sentence[:100]
        if len(_SEMICOLON.findall(sentence)) > 1:
            yield "at most one semicolon in a sentence", sentence[:100]
        if text.kind != "heading" and (_CLAUSE.match(sentence) or (text.kind != "comment" and _HOW.match(sentence))):
            yield "no clause as subject: name the thing, or begin with a verb", sentence[:100]
    if text.kind == "hint" and not imperatives().match(_ASIDE.sub("X", text.words)):
        yield "a hint says what to do: begin with a verb", text.words[:100]


def _excerpt(found: re.Match[str]) -> str:
    """The words around a match."""
    return found.string[max(found.start() - 40, 0) : found.end() + 40].strip()


def lint(root: Path = ROOT) -> list[Finding]:
    """All findings in the repository at `root`."""
    return [Finding(text.path, text.line, rule, excerpt) for text in texts(root) for rule, excerpt in check(text)]


def unfixed() -> tuple[str, ...]:
    """Beginnings of paths that are still to be rewritten: a list that only shrinks."""
    return tuple(tomllib.loads(RULES.read_text(encoding="utf-8"))["unfixed"])


if __name__ == "__main__":
    wanted = tuple(sys.argv[1:])
    left = [one for one in lint() if (one.path.startswith(wanted) if wanted else not one.path.startswith(unfixed()))]
    for one in left:
        show(str(one))
    sys.exit(1 if left else 0)
