"""docs/file-map.md: it is current, every module has its line, and a line is a whole sentence."""

from pathlib import Path

import pytest

from scripts.file_map import DOCUMENT, description, document, sections


def test_the_document_is_current() -> None:
    assert DOCUMENT.read_text(encoding="utf-8") == document(), "stale: run make docs (python -m scripts.file_map)"


def test_every_module_describes_itself() -> None:
    modules = [path for _, paths in sections() for path in paths if path.stat().st_size and path.suffix in (".py", ".rs", ".c", ".js")]
    assert [path for path in modules if not description(path)] == []


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("a.py", '"""Holds this. And that.\n\nMore."""\n', "Holds this. And that."),
        ("a.py", '"""Holds this,\nand that. And more.\n"""\n', "Holds this, and that."),
        ("a.py", "", ""),
        ("a.rs", "//! Holds this.\n//!\n//! More.\n\n// no\n", "Holds this."),
        ("a.js", "// Holds this\n// and 1.5 of that; (more. Much\n// more)\nlet x; // no\n", "Holds this and 1.5 of that; (more."),
        ("a.css", "/* Holds this */\n\na { }\n", "Holds this"),
        ("a.sh", "#!/bin/sh\n# Holds this:\n#\n# more\n", "Holds this"),
        ("Makefile", "# Holds this\nall:\n\techo # no\n", "Holds this"),
        ("a.js", "import x;\n// no\n", ""),
    ],
)
def test_the_first_line_of_a_file(tmp_path: Path, name: str, text: str, expected: str) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8")
    assert description(tmp_path / name) == expected
