"""Fixtures of the tests on the null GPU: it is there, else they are skipped, or fail where NANOCHAT_NULLGPU_TESTS says so."""

import json
import os
from pathlib import Path

import pytest

from tests.nullgpu import machine
from tests.tiny import chats, sentences

REQUIRED = "NANOCHAT_NULLGPU_TESTS"  # "required": what is missing is a failure, not a reason to skip


@pytest.fixture(autouse=True, scope="session")
def null_gpu() -> None:
    """The null GPU's libraries, built by cc."""
    if why := machine.why_not():
        (pytest.fail if os.environ.get(REQUIRED) == "required" else pytest.skip)(why)
    machine.build()


@pytest.fixture
def texts(tmp_path: Path) -> list[str]:
    """Options that name a user's text and conversations."""
    return [f"--data={sentences(tmp_path / 'text.txt')}", f"--chat-data={chats(tmp_path / 'chats.jsonl')}"]


@pytest.fixture
def problems(tmp_path: Path) -> str:
    """An option that names a user's problems, for reinforcement learning."""
    path = tmp_path / "problems.jsonl"
    path.write_text("".join(json.dumps({"question": f"{i} + 1", "answer": i + 1}) + "\n" for i in range(20)), encoding="utf-8")
    return f"--problems={path}"
