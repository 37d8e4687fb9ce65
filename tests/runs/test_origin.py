"""Which checkpoint `--from` names, and the config that follows from it."""

from pathlib import Path
from typing import Any

import pytest
import torch

from nanochat.cli.options import run_config
from nanochat.config import Config, parse_flags
from nanochat.data.finetuning import ConversationSource, EmbeddedConversations
from nanochat.data.source import text_source
from nanochat.distributed.ranks import Ranks
from nanochat.errors import DataError, UsageError
from nanochat.model.build import build_model
from nanochat.model.optim import LearningRates, MuonAdamW
from nanochat.model.scaling import gpt_config
from nanochat.planning.describe import describe
from nanochat.planning.plan import make_plan
from nanochat.runs.checkpoint import Checkpoints, import_checkpoint
from nanochat.runs.names import CheckpointName
from nanochat.runs.origin import copy_origin, find, own_copy, parse_source
from nanochat.runs.record import Ancestor, Record, has_checkpoints, newest_run, read_record
from tests import tiny

TEXT = "/somewhere/text.txt"  # is not looked at
ALONE = Ranks(0, 0, 1, torch.device("cpu"))


def source(stage: str = "base", steps: tuple[int, ...] = (4, 6), **changes: Any) -> Config:
    """The config of a finished run `src` with checkpoints of one stage, and its record."""
    config = Config(**tiny.MODEL | {"run": "src", "profile": "cpu", "data": TEXT, "device": "cpu", "dtype": "float32"} | changes)
    Record(config, "user-1", ("shard_00000.parquet",), "tok").write()
    gpt = gpt_config(config)
    model = build_model(gpt)
    optimizer = MuonAdamW(model, LearningRates(0.1, 0.1, 0.1, 0.1, 0.1), 256, ALONE)
    for step in steps:
        meta = {"stage": stage, "step": step, "steps": 6, "model": gpt.to_dict(), "tokenizer": "tok", "optimizer_steps": step}
        Checkpoints(Path(read_folder("src")) / stage).save(model, optimizer, meta, ALONE, 10)
    return config


def read_folder(run: str) -> Path:
    from nanochat import paths

    return paths.run_dir(run)


def continued(*flags: str, stage: str = "all") -> Config:
    return run_config("auto", False, ["--from=src", *flags], stage)


def test_the_flag_names_the_field() -> None:
    assert parse_flags(["--from", "src:base:4"]) == parse_flags(["--from=src:base:4"]) == {"from_run": "src:base:4"}


@pytest.mark.parametrize("text", ["a:base:x", "a:base:1:2", "a:bse", "../a", ""])
def test_another_form_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse_source(text)


def test_what_a_name_may_mean() -> None:
    exact = CheckpointName("a", "base", 4)
    assert all(parse_source(text).matches(exact) for text in ("a", "a:base", "a:base:4"))
    assert not any(parse_source(text).matches(exact) for text in ("b", "a:sft", "a:base:5"))
    assert parse_source("a:b:base:4") == CheckpointName("a:b", "base", 4) and parse_source("a:b:sft") == CheckpointName("a:b", "sft")
    assert str(exact) == "a:base:4" and str(CheckpointName("a")) == "a"


def test_the_newest_base_step_unless_named(base: Path) -> None:
    source()
    assert find(CheckpointName("src")).step == 6 and find(CheckpointName("src", "base", 4)).step == 4
    for wrong in (CheckpointName("src", "sft"), CheckpointName("src", "base", 5)):
        with pytest.raises(UsageError, match="has no complete checkpoint") as raised:
            find(wrong)
        assert "src:base:4, src:base:6" in raised.value.hint
    with pytest.raises(UsageError, match="there is no run 'sr'") as raised:
        find(CheckpointName("sr"))
    assert "did you mean src?" in raised.value.hint
    (read_folder("src") / "base/step_000004/model.safetensors").write_bytes(b"")
    with pytest.raises(DataError):
        find(CheckpointName("src", "base", 4))


def test_a_fine_tuning_keeps_what_the_source_had(base: Path) -> None:
    config = source(sft_iterations=3, matrix_lr=0.01, device_batch_size=2)
    same = continued("--run=new", "--chat-data=chats.jsonl")
    assert same == config.replace(run="new", from_run="src:base:6", num_iterations=0, chat_data="chats.jsonl", dataset="")
    assert continued().run == "src-2"
    assert continued("--matrix_lr=0.02").matrix_lr == 0.02
    assert run_config("rtx4090", False, ["--from=src"]).device_batch_size == 8  # what a profile says of its machine


def test_a_source_without_fine_tuning_gives_an_eighth_of_its_steps(base: Path) -> None:
    source(num_iterations=80)
    assert continued().sft_iterations == 0 and continued("--chat-data=chats.jsonl").sft_iterations == 10


def test_whose_conversations(base: Path) -> None:
    """The text's own of a source without a text of its user's, also where another text comes; else none but its user's."""
    source(data="", dataset="embedded", sft_iterations=3)
    for flags in ([], ["--data=other.txt"]):
        assert type(text_source(continued(*flags)).conversations) is EmbeddedConversations
    source(identity="id.toml", sft_iterations=3)
    for flags in ([], ["--data=other.txt"]):
        assert type(text_source(continued(*flags)).conversations) is ConversationSource


@pytest.mark.parametrize("flag", ["--data=other.txt", "--dataset=embedded", "--num_iterations=7", "--target_param_data_ratio=3"])
def test_a_text_or_a_length_asks_for_pretraining(base: Path, flag: str) -> None:
    source(data="", dataset="embedded")
    found = continued(flag)
    assert found.num_iterations == (7 if "iterations" in flag else -1) and found.dataset == "embedded" and found.eval_tokens == -1
    with pytest.raises(UsageError, match="is for pretraining"):
        continued(flag, stage="sft")


def test_reinforcement_learning_begins_with_the_newest_fine_tuned_step(base: Path) -> None:
    source()
    with pytest.raises(UsageError, match="begins from a fine-tuned model"):
        continued(stage="rl")
    source("sft", (2, 3), sft_iterations=3)
    found = continued(stage="rl")
    assert (found.from_run, found.num_iterations, found.sft_iterations, found.first_stage) == ("src:sft:3", 0, 0, "rl")
    assert continued().from_run == "src:base:6"
    with pytest.raises(UsageError, match="--chat_data is for fine-tuning"):
        continued("--chat-data=x", stage="rl")


@pytest.mark.parametrize(
    "flag",
    ["architecture=portable", "depth=2", "aspect_ratio=32", "head_dim=64", "vocab_size=512", "max_seq_len=64", "window_pattern=SL"],
)
def test_another_shape_is_refused_with_its_flag(base: Path, flag: str) -> None:
    config = source()
    with pytest.raises(UsageError, match=f"--{flag} does not match src, which was trained with"):
        continued(f"--{flag}")
    name = flag.partition("=")[0]
    assert continued(f"--{name}={getattr(config, name)}").depth == 1  # what it is may be said


def test_what_cannot_be(base: Path) -> None:
    source()
    for wrong, match in ((["--run=src"], "cannot begin from itself"), (["--hours=1"], "--hours chooses the size")):
        with pytest.raises(UsageError, match=match):
            continued(*wrong)
    with pytest.raises(UsageError, match="--trial"):
        run_config("auto", True, ["--from=src"])
    with pytest.raises(UsageError, match="--num_iterations=0"):
        Config(num_iterations=0)


def test_a_run_that_exists_decides_for_itself(base: Path) -> None:
    source(sft_iterations=3)
    began = continued("--run=new", "--matrix_lr=0.5")
    Record(began, "user-1", (), "tok", descent=(Ancestor("src", "base", 6, "0" * 64),), first_row=5).write()
    record = read_record("new")
    assert record is not None and record.config == began and record.first_row == 5 and record.descent[0].step == 6
    (read_folder("src") / "config.toml").rename(read_folder("src") / "gone")
    (read_folder("src") / "base").rename(read_folder("src") / "lost")
    assert continued("--run=new", "--matrix_lr=0.5") == began


def test_an_imported_model_gives_its_shape(base: Path) -> None:
    config = source(max_seq_len=64)
    gpt = gpt_config(config)
    meta = {"stage": "sft", "step": 3, "model": gpt.to_dict(), "tokenizer": "tok", "run": "got", "imported": True}
    import_checkpoint(read_folder("got") / "sft", build_model(gpt), meta)
    found = run_config("cpu", False, ["--from=got", "--run=new"])
    assert found.from_run == "got:sft:3" and gpt_config(found) == gpt and found.num_iterations == 0 and found.sft_iterations > 0
    assert not copy_origin(found).has_optimizer


def test_a_copy_is_whole_and_no_checkpoint_of_the_run(base: Path) -> None:
    source()
    config = continued("--run=new")
    before = {path: path.read_bytes() for path in read_folder("src").rglob("*") if path.is_file()}
    copy = copy_origin(config)
    assert copy.has_optimizer and copy.digest == find(CheckpointName("src")).digest and own_copy("new") == copy
    assert not has_checkpoints("new") and newest_run() == "src"
    assert before == {path: path.read_bytes() for path in read_folder("src").rglob("*") if path.is_file()}
    assert copy_origin(config.replace(from_run="src:base:4")).step == 4  # a call that ended before it had a record
    assert [step.name for step in Checkpoints(read_folder("new") / "from").steps()] == ["step_000004"]


def test_its_plan(base: Path) -> None:
    source(sft_iterations=6, num_iterations=6_000_000)
    whole, tuned = make_plan(read_config("src")), make_plan(continued("--run=new"))
    assert (
        tuned.tokens == 0
        and tuned.sft_steps == 6
        and tuned.seconds < whole.seconds
        and tuned.memory_bytes["optimizer"] == whole.memory_bytes["optimizer"]
    )
    assert tuned.disk_parts["rows"] == 0 and tuned.download_bytes == 0


def test_its_plan_in_words(base: Path) -> None:
    source(sft_iterations=6)
    said = describe(make_plan(continued("--run=new")))
    assert "none: the model is pretrained already" in said and "src:base:6" in said
    assert "pretrained already" not in describe(make_plan(read_config("src")))


def read_config(run: str) -> Config:
    record = read_record(run)
    assert record is not None
    return record.config
