"""docs/reference/settings.md and .env.example: every environment variable that the code and the compose files read, from settings.toml."""

import ast
import re
import textwrap
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from scripts.reference.catalog import Language
from scripts.reference.markdown import page, switch, table

NAME = "settings"
ROOT = Path(__file__).resolve().parents[2]
SETTINGS = Path(__file__).with_name("settings.toml")
VARIABLE = re.compile(r"[A-Z][A-Z0-9]*(_[A-Z0-9]+)+")
READS = ("get", "pop", "setdefault", "getenv")


def settings() -> dict[str, dict[str, Any]]:
    """Group's title -> its introduction and variables; a variable has `default`, `meaning` and perhaps `compose` (its default there)."""
    return tomllib.loads(SETTINGS.read_text(encoding="utf-8"))


def described() -> dict[str, dict[str, Any]]:
    """Variable -> its entry in the settings."""
    return {name: about for group in settings().values() for name, about in group.items() if isinstance(about, dict)}


def read_by_code() -> set[str]:
    """Every variable that the package, `entrypoint.py` or rustbpe's Python reads.

    A module that mentions `environ` or `getenv` reads each string in it that looks like a variable: names reach `os.environ` through
    constants, tuples and arguments. Outside of such modules, only our own prefix counts.
    """
    found: set[str] = set()
    for path in (*(ROOT / "nanochat").rglob("*.py"), ROOT / "entrypoint.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        names = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
        strings = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)}
        variables = set(filter(VARIABLE.fullmatch, strings))
        found |= variables if {"environ", "getenv"} & names else {name for name in variables if name.startswith("NANOCHAT_")}
        found |= set(_read_directly(tree))
    return found


def _read_directly(tree: ast.Module) -> Iterator[str]:
    """Literals in `os.environ[...]`, `os.environ.get(...)`, `... in os.environ` and `os.getenv(...)`, underscore or not."""
    for node in ast.walk(tree):
        candidates: list[ast.expr] = []
        if isinstance(node, ast.Subscript) and _is_environ(node.value):
            candidates = [node.slice]
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in READS:
            candidates = node.args[:1] if _is_environ(node.func.value) or node.func.attr == "getenv" else []
        elif isinstance(node, ast.Compare) and any(map(_is_environ, node.comparators)):
            candidates = [node.left]
        yield from (one.value for one in candidates if isinstance(one, ast.Constant) and isinstance(one.value, str))


def _is_environ(node: ast.expr) -> bool:
    return isinstance(node, ast.Attribute) and node.attr == "environ"


def read_by_compose() -> dict[str, set[str]]:
    """Variable -> its defaults in the compose files."""
    found: dict[str, set[str]] = {}
    for path in ROOT.glob("docker-compose*.yml"):
        for name, default in re.findall(r"\$\{([A-Z_]+)(?::?[-?]([^}]*)|:\+[^}]*)?\}", path.read_text(encoding="utf-8")):
            found.setdefault(name, set()).add(default)
        for name in re.findall(r"^ {4,}([A-Z_]+):$", path.read_text(encoding="utf-8"), re.MULTILINE):
            found.setdefault(name, set())  # handed to the container as it is
    return found


def read_by_installation() -> set[str]:
    """Every variable that the Makefile or the installer takes from the environment."""
    script = (ROOT / "scripts" / "install.sh").read_text(encoding="utf-8")
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    return set(re.findall(r"\$\{([A-Z_]+):-", script)) | set(re.findall(r"^export ([A-Z_]+) \?=", makefile, re.MULTILINE))


def document(language: Language) -> str:
    """The page in a language."""

    def say(text: str) -> str:
        return language.page(NAME, text)

    parts = [
        say("Environment variables. A command's options are in [cli.md](cli.md)."),
        say(
            "For Docker Compose, copy `.env.example` to `.env` and remove the `#` in front of each variable that you change: those with "
            "`.env` in the last column. Everywhere else, set them in the shell with `export NAME=VALUE`."
        ),
    ]
    for title, group in settings().items():
        parts.append(f"## {say(title)}")
        parts += [say(group["introduction"])] if "introduction" in group else []
        rows = []
        for name, about in group.items():
            if isinstance(about, dict):
                default = about.get("default", "")
                rows.append([f"`{name}`", f"`{default}`" if default else "", say(about["meaning"]), "`.env`" if "compose" in about else ""])
        parts.append(table([say("variable"), say("default"), say("meaning"), say("Compose")], rows))
    return page(say("Settings"), "scripts/reference/settings.toml", switch(NAME, language.suffix), parts)


def env_example() -> str:
    """The text of .env.example: the variables of the compose files, by groups."""
    lines = [
        "# Settings of Docker Compose. Copy this file to .env and remove the # in front of a variable that you change.",
        "# Made from scripts/reference/settings.toml by `make docs`; docs/reference/settings.md has every other variable.",
    ]
    for title, group in settings().items():
        variables = {name: about for name, about in group.items() if isinstance(about, dict) and "compose" in about}
        if variables:
            lines += ["", f"# ---- {title} ".ljust(120, "-")]
        for name, about in variables.items():
            lines += [f"# {line}" for line in _wrapped(about["meaning"])]
            lines.append(f"#{name}={about['compose']}")
    return "\n".join(lines) + "\n"


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text.replace("`", ""), 130, break_long_words=False, break_on_hyphens=False)
