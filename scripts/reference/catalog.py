"""The catalog of translations (zh-TW.toml): each English text of the reference pages with its Traditional Chinese one."""

import re
import tomllib
from pathlib import Path

import tomli_w

CATALOG = Path(__file__).with_name("zh-TW.toml")
OPENING = """\
# Traditional Chinese texts of docs/reference/*.zh-TW.md: the English text on the left, on the right what the Chinese page says instead.
# `python -m scripts.reference` adds the texts that are missing, as "", and removes those that no page uses any more.
# Options, file names, `code` and {placeholders} stay as they are. A text that was changed in English comes anew: translate it again.

"""


class Language:
    """The texts of one language: `language(text)` is the translation of an English text, the text itself where there is none."""

    def __init__(self, suffix: str = "", texts: dict[str, dict[str, str]] | None = None):
        self.suffix = suffix  # of a page's name: "" or ".zh-TW"
        self.texts = texts
        self.used: dict[str, dict[str, str]] = {}  # page -> English -> translation, "" where it is missing

    def page(self, name: str, text: str) -> str:
        """The text of the page `name` in this language."""
        if self.texts is None or not re.search("[A-Za-z]{2}", re.sub("{.*?}", "", text)):
            return text
        known = self.texts.get(name, {}).get(text, "")
        self.used.setdefault(name, {})[text] = known
        return known or text

    @property
    def missing(self) -> list[str]:
        """English texts without a translation, of the pages that were written."""
        return [text for texts in self.used.values() for text, known in texts.items() if not known]


def chinese() -> Language:
    """Traditional Chinese, from the catalog."""
    return Language(".zh-TW", tomllib.loads(CATALOG.read_text(encoding="utf-8")) if CATALOG.exists() else {})


def catalog(language: Language) -> str:
    """The catalog's text with what the pages use, in the order of the pages."""
    return OPENING + tomli_w.dumps(language.used)
