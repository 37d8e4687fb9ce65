"""The texts that people read in this repository: documents, messages, docstrings and comments, each with its place."""

import ast
import io
import re
import tokenize
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

CODE = ("nanochat", "scripts", "bench", "rustbpe")
# Texts that a model learns from, tests, what is generated from texts that are checked at their source, and this lint's own list.
SKIPPED = re.compile(
    r"nanochat/data/embedded/|(?:^|/)tests?(?:/|\.rs$)|/target/|docs/(?:reference/|file-map|troubleshooting)|scripts/prose"
)
RECORDS = ("CHANGELOG.md", "docs/benchmarks/log.md", "docs/experiments/log.md")  # texts of their time, for which a smaller list holds
COMMENTED = ("Makefile", "Dockerfile.cuda", "docker-compose*.yml", ".env.example", ".dockerignore", ".gitignore", "pyproject.toml")
ERRORS = re.compile(r"(?:Nanochat|Usage|Preflight|Data|NonFinite|OutOfMemory|Hung)Error|Preempted")
_SKIP_COMMENT = re.compile(r"^(?:!|noqa|type:|pragma|fmt:|ruff:|mypy:|syntax=|nosec|hadolint|zizmor)|^[-=#\s]*$")
_C_COMMENT = re.compile(r"/\*.*?\*/|(?:^|(?<=\s))//[/!]?[^\n]*", re.S)
_C_STRING = re.compile(r'"(?:[^"\\\n]|\\.)*"' + r"|'(?:[^'\\\n]|\\.)*'|`(?:[^`\\]|\\.)*`")


@dataclass(frozen=True)
class Text:
    """A text with its place. kind: document, heading, record, chinese, docstring, comment, message, hint, name (an identifier)."""

    path: str
    line: int
    kind: str
    words: str


def texts(root: Path) -> Iterator[Text]:
    """Every text of the repository at `root` that the lint reads."""
    for path in sorted(_files(root)):
        name = path.relative_to(root).as_posix()
        if not SKIPPED.search(name):
            source = path.read_text(encoding="utf-8")
            yield from _READERS.get(path.suffix, _hash_comments)(name, source)


def _files(root: Path) -> set[Path]:
    found = {*root.glob("*.md"), *(root / "docs").rglob("*.md"), *(root / "profiles").glob("*.toml"), *(root / ".github").rglob("*.y*ml")}
    for package in CODE:
        for suffix in ("py", "pyi", "c", "h", "rs", "js", "sh", "toml"):
            found |= set((root / package).rglob(f"*.{suffix}"))
    return found | {root / "entrypoint.py"} | {path for pattern in COMMENTED for path in root.glob(pattern)}


def _markdown(name: str, source: str) -> Iterator[Text]:
    """Paragraphs, list items and table cells without their code blocks."""
    kind = "chinese" if name.endswith(".zh-TW.md") else "record" if name in RECORDS else "document"
    plain = re.sub(r"```.*?```|<!--.*?-->", lambda found: "\n" * found[0].count("\n"), source, flags=re.S)
    plain = re.sub(r"\]\([^)]*\)|</?\w[^>]*>", "", plain)
    begun, lines = 1, list[str]()
    for number, line in enumerate([*plain.splitlines(), ""], 1):
        apart = line.startswith(("#", "|")) or re.match(r"\s*(?:[-*+>]|\d+\.)\s", line)
        if lines and (apart or not line.strip()):
            yield Text(name, begun, kind, "\n".join(lines))
            lines = []
        if line.startswith("#"):
            yield Text(name, number, "heading" if kind == "document" else kind, line.lstrip("# "))
        elif line.startswith("|"):
            yield from (Text(name, number, kind, cell.strip()) for cell in line.split("|") if re.search(r"\w", cell))
        elif line.strip():
            begun = begun if lines else number
            lines.append(line)


def _python(name: str, source: str) -> Iterator[Text]:
    """Docstrings, comments, strings of three words or more, and the names that the code defines."""
    tree = ast.parse(source)
    documented = {id(node.body[0].value): node for node in ast.walk(tree) if _docstring(node)}  # type: ignore[attr-defined]
    hints = {id(node) for call in ast.walk(tree) for node in _hints(call)}
    inner = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in ast.walk(node) if part is not node}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant | ast.JoinedStr) and id(node) not in inner and (words := _string(node)):
            kind = "docstring" if id(node) in documented else "hint" if id(node) in hints else "message"
            if kind != "message" or _is_prose(words):
                yield Text(name, node.lineno, kind, words)
        elif isinstance(node, ast.FunctionDef | ast.ClassDef | ast.AsyncFunctionDef):
            yield Text(name, node.lineno, "name", node.name)
        elif isinstance(node, ast.arg):
            yield Text(name, node.lineno, "name", node.arg)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield Text(name, node.lineno, "name", node.id)
    yield from _joined(
        name,
        (
            (token.start[0], token.start[1] == len(token.line) - len(token.line.lstrip()), token.string.lstrip("#"))
            for token in tokenize.generate_tokens(io.StringIO(source).readline)
            if token.type == tokenize.COMMENT
        ),
    )


def _docstring(node: ast.AST) -> bool:
    """Whether `node` begins with a docstring."""
    return isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and ast.get_docstring(node) is not None


def _hints(node: ast.AST) -> list[ast.expr]:
    """The hint of an error that a call makes: the second argument of a NanochatError, or `hint=`."""
    if not isinstance(node, ast.Call):
        return []
    called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
    named = [keyword.value for keyword in node.keywords if keyword.arg == "hint"]
    return named + (node.args[1:2] if ERRORS.fullmatch(called) else [])


def _string(node: ast.Constant | ast.JoinedStr) -> str:
    """The text of a string, with N for each value that is put into it."""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else ""
    return "".join(str(part.value) if isinstance(part, ast.Constant) else "N" for part in node.values)


def _is_prose(words: str) -> bool:
    """Whether a string is for people: three words in a row, and no pattern, markup or code."""
    return bool(re.search(r"[A-Za-z']+,? [A-Za-z'\-]+,? [A-Za-z']+", words)) and not re.search(
        r"\(\?|\\[bsdw]|^\s*<|\{\{|^#|^\s*import |\{ [a-z-]+:|-src '", words
    )


def _hash_comments(name: str, source: str) -> Iterator[Text]:
    """Comments that begin with #; in a Makefile also the targets' help."""
    found = (
        (number, found[1].strip() == "", found[2])
        for number, line in enumerate(source.splitlines(), 1)
        if (found := re.match(r"(|.*?\s)#+(?=\s)(.*)", line)) and found[1].count("'") % 2 == 0 and found[1].count('"') % 2 == 0
    )
    yield from _joined(name, found)


def _toml(name: str, source: str) -> Iterator[Text]:
    """Comments and, of the troubleshooting table, both languages."""
    yield from _hash_comments(name, source)
    if name.endswith("troubleshooting.toml"):
        table = tomllib.loads(source)
        for entry in (*table["findings"].values(), *table["entry"]):
            for language, text in entry.items():
                line = source[: max(source.find(text[:40]), 0)].count("\n") + 1
                yield from (Text(name, line, one.kind, one.words) for one in _markdown(f"t.{'zh-TW.' if language == 'zh' else ''}md", text))


def _c_like(name: str, source: str) -> Iterator[Text]:
    """Comments and strings of C, Rust and JavaScript."""
    comments = []
    for found in _C_COMMENT.finditer(source):
        line, start = source[: found.start()].count("\n") + 1, source.rfind("\n", 0, found.start()) + 1
        alone = not source[start : found.start()].strip()
        words = re.sub(r"^\s*\*(?!/)", "", found[0], flags=re.M)
        comments.append((line, alone, re.sub(r"^/\*+|\*+/$|^//[/!]?", "", words)))
    yield from _joined(name, iter(comments))
    plain = _C_COMMENT.sub(lambda found: "\n" * found[0].count("\n"), source)
    for found in _C_STRING.finditer(plain):
        words = found[0][1:-1]
        if _is_prose(words):
            yield Text(name, plain[: found.start()].count("\n") + 1, "message", re.sub(r"\$?\{[^}]*\}", "N", words))


def _joined(name: str, comments: Iterator[tuple[int, bool, str]]) -> Iterator[Text]:
    """Comments (line, whether alone on it, words): those on lines that follow each other as one text."""
    begun, last, lines = 0, -1, list[str]()
    for line, alone, words in comments:
        if lines and (not alone or line != last + 1):
            yield Text(name, begun, "comment", "\n".join(lines))
            lines = []
        if _SKIP_COMMENT.match(words.strip()):
            continue
        begun = begun if lines else line
        lines.append(words.strip())
        last = line + words.count("\n") if alone else -1
    if lines:
        yield Text(name, begun, "comment", "\n".join(lines))


_READERS = {".md": _markdown, ".py": _python, ".pyi": _python, ".toml": _toml, **dict.fromkeys((".c", ".h", ".rs", ".js"), _c_like)}
