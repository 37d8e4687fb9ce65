"""docs/reference/ and .env.example: they are current, every variable and exit code is described, every text is translated."""

import re
import tomllib
from pathlib import Path

import pytest

from nanochat.config import FIELDS, PROFILE_NAMES, flag_name
from nanochat.errors import NanochatError
from scripts.reference import catalog, cli, exit_codes, glossary, profiles, settings
from scripts.reference.__main__ import documents
from scripts.reference.catalog import Language

ROOT = Path(__file__).resolve().parent.parent


def test_the_pages_are_current() -> None:
    stale = [path for path, text in documents(catalog.chinese()).items() if not path.exists() or path.read_text(encoding="utf-8") != text]
    assert stale == [], "stale: run make docs (python -m scripts.reference)"


def test_every_text_is_translated() -> None:
    chinese = catalog.chinese()
    documents(chinese)
    assert chinese.missing == [], "translate them in scripts/reference/zh-TW.toml"


def test_every_command_and_option_is_on_the_page() -> None:
    page = cli.document(Language())
    for name in ("train", "chat", "submit k8s", "submit status"):
        assert f"\n## nanochat {name}\n" in page and f"(#nanochat-{name.replace(' ', '-')})" in page
    shown = set(re.findall(r"^\| `(?:-\w, )?--([\w-]+)", page, re.MULTILINE))
    assert {flag_name(name) for name in FIELDS} - shown <= {"profile", "trial", "shape"}
    assert {"profile", "trial", "from", "top-k", "quiet", "version", "install-completion"} <= shown


def test_every_variable_that_is_read_is_described() -> None:
    read = settings.read_by_code() | set(settings.read_by_compose()) | settings.read_by_installation()
    known = set(settings.described())
    assert read - known == set(), "describe it in scripts/reference/settings.toml"
    assert known - read == {"COMPOSE_FILE", "COMPOSE_PATH_SEPARATOR"}, "nothing reads it any more, but for Docker Compose itself"


@pytest.mark.parametrize(
    "code",
    [
        'import os\nos.environ.get("SOME_NAME")',
        'import os\nos.getenv("SOME_NAME")',
        'import os\nos.environ["SOME_NAME"]',
        'import os\n"SOME_NAME" in os.environ',
        'import os\nNAMES = ("SOME_NAME",)\n[*map(os.environ.get, NAMES)]',
        'NAME = "NANOCHAT_SOME_NAME"',
    ],
)
def test_a_variable_is_found_however_it_is_read(code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "nanochat").mkdir()
    (tmp_path / "nanochat" / "module.py").write_text(code)
    (tmp_path / "entrypoint.py").write_text("import os\nos.environ.get('ONEWORD')")
    monkeypatch.setattr(settings, "ROOT", tmp_path)
    assert settings.read_by_code() == {"NANOCHAT_SOME_NAME" if "NANOCHAT" in code else "SOME_NAME", "ONEWORD"}


def test_the_defaults_are_those_of_the_compose_files() -> None:
    described = settings.described()
    for name, defaults in settings.read_by_compose().items():
        assert "compose" in described[name], f"{name}: Docker Compose reads it, and .env.example does not show it"
        if defaults and name != "NANOCHAT_API_KEY":  # its default there is a placeholder for another program
            assert described[name].get("default", "") in defaults, name


def test_exit_codes_are_those_of_the_errors() -> None:
    codes = exit_codes.codes()
    assert {kind.exit_code for kind in NanochatError.__subclasses__() if kind.__module__ == NanochatError.__module__} < set(codes)
    assert {0, 1, 130, 141} < set(codes) and set(exit_codes.NEXT) == set(codes)


def test_the_plans_do_not_depend_on_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither on its data nor on its CPU."""
    before = profiles.document(Language())
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tmp_path))
    monkeypatch.setattr("nanochat.hardware.cpu.measure_flops", lambda: 1e12)
    monkeypatch.setattr("nanochat.hardware.cpu.physical_cores", lambda: 64)
    assert profiles.document(Language()) == before
    assert before.count("estimate, not measured") >= 2 * (len(PROFILE_NAMES) - 1) and "measured)" in before


def test_a_text_without_translation_is_missing(tmp_path: Path) -> None:
    language = Language(".zh-TW", {"page": {"known": "已知", "gone": "沒有了"}})
    assert [language.page("page", text) for text in ("known", "new", "12")] == ["已知", "new", "12"]
    assert language.missing == ["new"]
    assert tomllib.loads(catalog.catalog(language)) == {"page": {"known": "已知", "new": ""}}


def test_every_term_has_both_names() -> None:
    assert all(set(term) == {"en", "zh", "meaning"} and all(term.values()) for term in glossary.terms())
