"""Generator of docs/file-map.md: one line per source file, from its docstring or first comment."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from nanochat import LAYERS
from nanochat.paths import atomic_write

ROOT = Path(__file__).resolve().parent.parent
DOCUMENT = ROOT / "docs" / "file-map.md"
OPENING = """# File map

<!-- made from the files' own first lines by python -m scripts.file_map: change those -->

One line for each source file. Packages are in the order in which they may import each other; [architecture.md](architecture.md) has the
rule and the reasons. Data files, pictures and empty `__init__.py` files are left out. The tests of `nanochat/` are in directories of the
same names in `tests/`.
"""
COMMENTS = {".rs": "//!", ".c": "//", ".js": "//", ".css": "/*"}  # what begins a comment's line; "#" in every other kind of file
TOP = ("entrypoint.py", "Makefile", "Dockerfile.cuda", "docker-compose.yml", "docker-compose.cpu.yml", "docker-compose.webui.yml")


def description(path: Path) -> str:
    """The first line of a file's docstring or opening comment, to the end of its sentence; "" where it has none."""
    text = path.read_text(encoding="utf-8")
    if path.suffix in (".py", ".pyi"):
        lines = (ast.get_docstring(ast.parse(text)) or "").splitlines()
    else:
        lines = list(_comment(text, COMMENTS.get(path.suffix, "#")))
    paragraph = " ".join(lines[: lines.index("")] if "" in lines else lines)
    first = len(lines[0]) if lines else 0
    end = re.compile(r"[.!?](?=\s|$)").search(paragraph, max(first - 1, 0))
    return (paragraph[: end.end()] if end else paragraph).removesuffix(":")


def _comment(text: str, mark: str) -> Iterator[str]:
    """The lines of the comment that a file begins with, without their marks."""
    lines = text.splitlines()
    for line in lines[1:] if text.startswith("#!") else lines:
        if not line.startswith(mark):
            return
        yield line.removeprefix(mark).removesuffix("*/").strip()


def sections() -> Iterator[tuple[Path, list[Path]]]:
    """The document's tables: each a directory and the files of it that are listed, packages in the order of `LAYERS`."""
    yield ROOT, [ROOT / name for name in TOP]
    package, names = ROOT / "nanochat", [name for row in LAYERS for name in row]
    modules = [package / f"{name}.py" for name in names if (package / f"{name}.py").exists()]
    yield package, [*modules, *sorted(set(package.glob("*.py")) - set(modules))]
    for name in names:
        yield package / name, _files(package / name, ".py", ".c", ".toml")
    yield package / "chat" / "web", _files(package / "chat" / "web", ".js", ".css")
    yield ROOT / "rustbpe", [ROOT / "rustbpe" / "rustbpe.pyi", *_files(ROOT / "rustbpe" / "src", ".rs")]
    yield ROOT / "profiles", _files(ROOT / "profiles", ".toml")
    yield ROOT / "scripts", _files(ROOT / "scripts", ".py", ".sh")
    yield ROOT / "bench", _files(ROOT / "bench", ".py", ".sh")


def _files(folder: Path, *suffixes: str) -> list[Path]:
    """A directory's files and then those of its subdirectories."""
    found = (path for path in folder.rglob("*") if path.suffix in suffixes and path.name != "tests.rs")
    return sorted(found, key=lambda path: (path.parent, path.name))


def document() -> str:
    """The file map as Markdown."""
    parts = [OPENING]
    for folder, paths in sections():
        rows = [
            f"| [{path.relative_to(folder)}](../{path.relative_to(ROOT)}) | {holds} |"
            for path in paths
            if (holds := description(path).replace("|", r"\|"))
        ]
        if rows:
            title = "Top level" if folder == ROOT else f"{folder.relative_to(ROOT)}/"
            parts.append("\n".join([f"## {title}", "", "| file | holds |", "|---|---|", *rows]) + "\n")
    return "\n".join(parts)


if __name__ == "__main__":
    atomic_write(DOCUMENT, document())
