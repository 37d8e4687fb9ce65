"""The troubleshooting table: its documents are current, it explains every finding, and both languages say the same."""

import re
from pathlib import Path

import pytest

from nanochat.doctor import findings as doctor
from nanochat.doctor import troubleshooting

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("language", troubleshooting.DOCUMENTS)
def test_documents_are_current(language: str) -> None:
    found = (ROOT / "docs" / troubleshooting.DOCUMENTS[language]).read_text(encoding="utf-8")
    assert found == troubleshooting.document(language), "stale: run python -m scripts.troubleshooting"


def test_every_finding_is_explained() -> None:
    source = "".join((ROOT / "nanochat" / "doctor" / name).read_text(encoding="utf-8") for name in ("checks.py", "gpus.py"))
    ids = set(re.findall(r'Finding\(\s*"([^"]+)"', source))
    assert ids == set(troubleshooting.table()["findings"])


def test_both_languages_say_the_same() -> None:
    """Code and error messages stand verbatim in both."""
    for entry in troubleshooting.table()["entry"]:
        english, chinese = (set(re.findall(r"`([^`]+)`", entry[language])) for language in ("en", "zh"))
        assert english == chinese
        assert re.match(r"#*", entry["en"])[0] == re.match(r"#*", entry["zh"])[0]
        assert re.search(r"[\u4e00-\u9fff]", entry["zh"])


def test_the_doctor_explains_what_is_wrong() -> None:
    text = doctor.describe([doctor.Finding("shm", doctor.WARNING, "small", "why", "fix"), doctor.Finding("files", doctor.OK, "many")])
    assert f"means: {troubleshooting.explained('shm')}" in text
    assert troubleshooting.explained("files") not in text
