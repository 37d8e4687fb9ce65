"""Notes of a release: `python scripts/release_notes.py TAG` prints CHANGELOG.md's section of the version, after checking that it is one.

The tag is `v` and pyproject.toml's version, perhaps with a suffix such as -rc1. A release candidate without a section of its own has the
notes of "Unreleased". A final version must have its section.
"""

import re
import sys
import tomllib
from pathlib import Path


def notes(tag: str, changelog: str, version: str) -> str:
    """The text below the heading of `tag`'s version. Raises ValueError if the tag, the project's version and the changelog differ."""
    named = re.fullmatch(r"v(\d+\.\d+\.\d+)([-.].+)?", tag)
    if not named or named[1] != version:
        raise ValueError(f"the tag {tag} is not v{version}, the version in pyproject.toml")
    sections = dict(re.findall(r"^## (\S+)[^\n]*\n(.*?)(?=^## |\Z)", changelog, re.M | re.S))
    found = sections.get(tag[1:]) or (sections.get("Unreleased") if named[2] else None)
    if not found or not found.strip():
        raise ValueError(f"CHANGELOG.md has no section {tag[1:]}")
    return found.strip() + "\n"


if __name__ == "__main__":
    project = tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))["project"]
    try:
        print(notes(sys.argv[1], Path("CHANGELOG.md").read_text(encoding="utf-8"), project["version"]), end="")
    except ValueError as error:
        sys.exit(f"error: {error}\nhint: write the version into pyproject.toml and CHANGELOG.md, then tag that commit")
