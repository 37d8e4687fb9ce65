"""Writes troubleshooting.md and its Traditional Chinese twin from nanochat/doctor/troubleshooting.toml."""

from pathlib import Path

from nanochat.doctor.troubleshooting import DOCUMENTS, document
from nanochat.paths import atomic_write

DOCS = Path(__file__).resolve().parent.parent / "docs"

if __name__ == "__main__":
    for language, name in DOCUMENTS.items():
        atomic_write(DOCS / name, document(language))
