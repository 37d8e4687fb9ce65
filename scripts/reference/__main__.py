"""Writes docs/reference/*.md in both languages, the profile table of both READMEs, .env.example, and the catalog of translations."""

from pathlib import Path

from nanochat.paths import atomic_write
from scripts.reference import catalog, cli, exit_codes, glossary, profiles, settings
from scripts.reference.catalog import Language
from scripts.reference.markdown import DIRECTORY

PAGES = (cli, settings, exit_codes, profiles, glossary)
READMES = {"README.md": "", "README.zh-TW.md": ".zh-TW"}
ROOT = DIRECTORY.parents[1]


def documents(chinese: Language) -> dict[Path, str]:
    """Every generated file with its text; `chinese` then knows which translations are missing."""
    found = {}
    for language in (Language(), chinese):
        for page in PAGES:
            found[DIRECTORY / f"{page.NAME}{language.suffix}.md"] = page.document(language)
    for name, suffix in READMES.items():
        text = (ROOT / name).read_text(encoding="utf-8")
        if profiles.START in text:
            before, _, rest = text.partition(profiles.START)
            made = profiles.readme_table(chinese if suffix else Language())
            found[ROOT / name] = f"{before}{profiles.START}\n{made}\n{profiles.END}{rest.partition(profiles.END)[2]}"
    found[ROOT / ".env.example"] = settings.env_example()
    found[catalog.CATALOG] = catalog.catalog(chinese)
    return found


if __name__ == "__main__":
    translations = catalog.chinese()
    for path, text in documents(translations).items():
        atomic_write(path, text)
    if missing := translations.missing:
        print(f"{len(missing)} texts have no translation yet: {catalog.CATALOG}")
