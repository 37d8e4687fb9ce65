"""What the pipeline's tests share: they train in the process of the tests."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.tiny import WORDS, chats, sentences


@pytest.fixture(autouse=True)
def as_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What a run sets for its process is set back."""
    for name in ("CUBLAS_WORKSPACE_CONFIG", "TORCHINDUCTOR_CACHE_DIR"):
        monkeypatch.setenv(name, os.environ.get(name, ""))
    threads = torch.get_num_threads()
    yield
    torch.use_deterministic_algorithms(False)
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two texts, two files of conversations, and one of problems."""
    folder = tmp_path_factory.mktemp("files")
    texts = {"text": sentences(folder / "text.txt"), "other": sentences(folder / "other.txt", seed=5)}
    asked = folder / "problems.jsonl"
    asked.write_text("".join(json.dumps({"question": f"{word}?", "answer": word}) + "\n" for word in WORDS), encoding="utf-8")
    return texts | {"problems": asked, "chats": chats(folder / "chats.jsonl"), "new": chats(folder / "new.jsonl", 90)}
