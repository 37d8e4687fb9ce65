"""`--from` an imported Qwen3: fine-tuning and pretraining with its shape and its tokenizer."""

from pathlib import Path

import pytest
import torch

from nanochat.cli.options import run_config
from nanochat.errors import UsageError
from nanochat.export.card import folder_card
from nanochat.export.importer import import_folder
from nanochat.export.metadata import licence_of
from nanochat.pipeline import train as run
from nanochat.runs import record as runs
from tests.tiny import losses

pytest.importorskip("transformers")
pytestmark = pytest.mark.long
SMALL = ("--device_batch_size=4", "--total_batch_size=256", "--deterministic", "--threads=1", "--eval_every=-1", "--device=cpu")


def train(*arguments: str, stages: tuple[str, ...] = ("base", "sft")) -> int:
    return run.train(run_config("auto", False, [*arguments, *SMALL], "all"), stages)


def test_an_imported_qwen3_is_trained(base: Path, files: dict[str, Path], tmp_path: Path) -> None:
    from tests.export.foreign_model import write_qwen3

    write_qwen3(tmp_path / "qwen", "grouped")
    import_folder(tmp_path / "qwen")
    source = runs.open_model("qwen")
    chat = ("--from=qwen", f"--chat-data={files['chats']}", "--sft_iterations=4", "--max_seq_len=64")
    for name in ("a", "b"):
        assert train(*chat, f"--run={name}") == 0
    assert losses(base, "a") == losses(base, "b") and len(losses(base, "a")) == 4
    assert losses(base, "a")[-1][2] < losses(base, "a")[0][2]
    opened = runs.open_model("a")
    gpt = opened.model.config
    assert (gpt.tied, gpt.n_kv_head, gpt.max_seq_len, source.model.config.max_seq_len) == (True, 2, 64, 512)
    assert opened.tokenizer.id == source.tokenizer.id and opened.chats
    assert not torch.equal(opened.model.embed.weight, source.model.embed.weight)
    assert licence_of(opened) == "apache-2.0" and "| trained on | imported from qwen |" in folder_card(opened)

    assert train("--from=qwen", f"--data={files['text']}", "--num_iterations=3", "--max_seq_len=32", "--run=text", stages=("base",)) == 0
    assert len(losses(base, "text")) == 3
    with pytest.raises(UsageError, match="--max_seq_len=1024 does not match"):
        train(*chat[:3], "--max_seq_len=1024", "--run=c")
    with pytest.raises(UsageError, match="--depth=7 does not match"):
        train(*chat, "--depth=7", "--run=c")
