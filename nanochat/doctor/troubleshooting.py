"""The troubleshooting table (troubleshooting.toml): explanations of findings, and the two documents generated from it."""

import functools
import tomllib
from pathlib import Path
from typing import Any

DOCUMENTS = {"en": "troubleshooting.md", "zh": "troubleshooting.zh-TW.md"}  # in docs/
_TABLE = Path(__file__).with_name("troubleshooting.toml")
_HEADINGS = {"en": ("Findings of `doctor`", "finding", "meaning"), "zh": ("doctor 會發現什麼", "項目", "意思")}
_SWITCH = {
    "en": f"**English** | [繁體中文]({DOCUMENTS['zh']})",
    "zh": f"[English]({DOCUMENTS['en']}) | **繁體中文**",
}
_NOTE = "<!-- made of nanochat/doctor/troubleshooting.toml by python -m scripts.troubleshooting: change that file -->"


@functools.cache
def table() -> dict[str, Any]:
    """The whole table: explanations of findings by id, and the documents' paragraphs in order, all as {en, zh}."""
    return tomllib.loads(_TABLE.read_text(encoding="utf-8"))


def explained(finding: str) -> str:
    """The English explanation of a finding's id; empty for an unknown id."""
    return str(table()["findings"].get(finding, {}).get("en", ""))


def document(language: str) -> str:
    """The troubleshooting document in "en" or "zh"."""
    found = table()
    title, *heads = _HEADINGS[language]
    rows = [f"| {' | '.join(heads)} |", "|---|---|", *(f"| `{id}` | {text[language]} |" for id, text in found["findings"].items())]
    opening, *rest = [entry[language] for entry in found["entry"]]
    return "\n\n".join([opening, _NOTE, _SWITCH[language], *rest, f"## {title}", "\n".join(rows)]) + "\n"
