"""docs/reference/glossary.md: terms in English and Traditional Chinese, from glossary.toml."""

import tomllib
from pathlib import Path

from scripts.reference.catalog import Language
from scripts.reference.markdown import page, switch, table

NAME = "glossary"
TERMS = Path(__file__).with_name("glossary.toml")


def terms() -> list[dict[str, str]]:
    """The terms: en, zh (what the term is called in Chinese text) and meaning."""
    return tomllib.loads(TERMS.read_text(encoding="utf-8"))["term"]


def document(language: Language) -> str:
    """The page in a language: its own term first, then the other language's, then the meaning."""

    def say(text: str) -> str:
        return language.page(NAME, text)

    chinese = bool(language.suffix)
    rows = [
        (term["zh"], term["en"], say(term["meaning"])) if chinese else (term["en"], term["zh"], say(term["meaning"])) for term in terms()
    ]
    heads = ["中文", "英文", "這裡的意思"] if chinese else ["term", "Chinese", "meaning here"]
    return page(say("Glossary"), "scripts/reference/glossary.toml", switch(NAME, language.suffix), [table(heads, rows)])
