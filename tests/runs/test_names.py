"""Names of checkpoints."""

import pytest

from nanochat.runs.names import CheckpointName


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("a", CheckpointName("a")),
        ("a:sft", CheckpointName("a", "sft")),
        ("a:sft:12", CheckpointName("a", "sft", 12)),
        ("a:b:sft:12", CheckpointName("a:b", "sft", 12)),
        ("a:b:base", CheckpointName("a:b", "base")),
        ("a:12", CheckpointName("a:12")),
        ("a:sft:x", CheckpointName("a:sft:x")),
        ("", CheckpointName("")),
    ],
)
def test_names_of_models(text: str, name: CheckpointName) -> None:
    assert CheckpointName.parse(text) == name
