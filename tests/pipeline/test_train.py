"""What a call of `train` means when the run's name exists, and that the losses are the same however often it was stopped."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nanochat.data import finetuning
from nanochat.distributed.ranks import Ranks
from nanochat.errors import DataError, Preempted, PreflightError, UsageError
from nanochat.evaluation.results import read_results
from nanochat.pipeline import train as run
from nanochat.pipeline.identity import Request
from nanochat.pipeline.prepare import Prepared, prepare, prepare_tokenizer
from nanochat.runs import record as runs
from nanochat.runs.checkpoint import Checkpoints
from nanochat.tokenizer.tokenizer import Tokenizer
from nanochat.train.batch import StepBatch
from nanochat.train.finetune import ConversationBatches
from nanochat.train.pretrain import TextBatches
from tests.tiny import chats, config, losses, sentences

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sentences(tmp_path_factory.mktemp("text") / "text.txt")


@pytest.fixture(scope="module")
def chat_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return chats(tmp_path_factory.mktemp("chats") / "chats.jsonl")


def stop_at(monkeypatch: pytest.MonkeyPatch, step: int, source: type = TextBatches) -> None:
    """Send SIGTERM to this process while it fetches the batch of `step` (from 1), once."""
    batch = source.batch
    sent: list[int] = []

    def stopping(self: Any, index: int, ranks: Ranks) -> StepBatch:
        if index == step - 1 and not sent:
            sent.append(index)
            os.kill(os.getpid(), signal.SIGTERM)
        return batch(self, index, ranks)

    monkeypatch.setattr(source, "batch", stopping)


def interrupted(monkeypatch: pytest.MonkeyPatch, step: int, values: Any, source: type = TextBatches) -> Preempted:
    with monkeypatch.context() as patch:
        stop_at(patch, step, source)
        with pytest.raises(Preempted) as raised:
            run.train(values)
    return raised.value


def snapshot(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Time and bytes of every file."""
    return {str(path): (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.rglob("*") if path.is_file()}


def close(one: list[tuple[str, int, float]], other: list[tuple[str, int, float]]) -> bool:
    return [line[:2] for line in one] == [line[:2] for line in other] and [line[2] for line in one] == pytest.approx(
        [line[2] for line in other], rel=1e-5
    )


# ---- the identity table ---------------------------------------------------------------------------------------


def test_an_unfinished_run_resumes_with_the_same_losses(
    base: Path, text: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run.train(config(text, run="straight")) == 0
    expected = losses(base, "straight")
    assert [line[:2] for line in expected] == [("base", step) for step in range(1, 7)]
    assert run.train(config(text, run="again")) == 0
    assert losses(base, "again") == expected  # digit for digit

    stopped = interrupted(monkeypatch, 3, config(text))
    assert stopped.exit_code == 75 and "base step 3 of 6, which is saved" in stopped.message
    assert losses(base) == expected[:3]
    stopped = interrupted(monkeypatch, 5, config(text))
    capfd.readouterr()
    assert run.train(config(text)) == 0
    assert "base: resuming at step 5 of 6" in capfd.readouterr().err
    assert losses(base) == expected
    report = json.loads((base / "runs/tiny/report.json").read_text())
    assert report["tokens"] == 6 * 256 and report["bpb"] > 0


def test_a_finished_run_says_so_and_writes_nothing(base: Path, text: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run.train(config(text))
    before = snapshot(base)
    capfd.readouterr()
    assert run.train(config(text)) == 0
    assert snapshot(base) == before
    said = capfd.readouterr().err
    assert "the run 'tiny' is finished" in said and str(base / "runs/tiny/base") in said and "step 1/6" not in said


def test_a_lost_tokenizer_is_trained_again_by_the_command_that_the_hint_names(base: Path, text: Path) -> None:
    assert run.train(config(text)) == 0
    runs.open_model("tiny")
    shutil.rmtree(base / "tokenizer")
    with pytest.raises(DataError, match="there is no tokenizer") as caught:
        runs.open_model("tiny")
    assert "`train` command of its run" in caught.value.hint
    assert run.train(config(text)) == 0
    runs.open_model("tiny")


def test_a_finished_run_of_before_there_was_one_results_file(base: Path, text: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run.train(config(text))
    folder = base / "runs/tiny"
    (folder / "scores.json").write_text(json.dumps(read_results(folder)["summary"]))
    (folder / "evaluation.json").unlink()
    capfd.readouterr()
    assert run.train(config(text)) == 0
    assert "the run 'tiny' is finished" in capfd.readouterr().err


def test_another_config_is_refused_with_the_difference(base: Path, text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    interrupted(monkeypatch, 2, config(text))
    before = snapshot(base)
    for finish in (False, True):
        with pytest.raises(UsageError) as raised:
            run.train(config(text, depth=2, seed=7))
        assert raised.value.exit_code == 2
        assert "depth was 1, now 2; seed was 42, now 7" in raised.value.message and "--run NEW" in raised.value.hint
        if not finish:
            assert snapshot(base) == before
            run.train(config(text))


def test_what_keeps_the_losses_may_change(base: Path, text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run.train(config(text, run="straight"))
    interrupted(monkeypatch, 2, config(text))
    interrupted(monkeypatch, 4, config(text, device_batch_size=8, save_every=1))
    assert run.train(config(text, device_batch_size=1, eval_every=2, sample_every=3, save_minutes=1.0, keep_last=1)) == 0
    assert close(losses(base), losses(base, "straight"))
    with pytest.raises(UsageError, match="does not divide") as raised:
        run.train(config(text, run="other", device_batch_size=3))
    assert "1, 2, 4, 8" in raised.value.hint


def test_what_is_left_to_the_rule_stays_as_it_was(base: Path, text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rules may say something else tomorrow, on another machine; a run that has begun goes on as it began."""
    by_rule = config(text, vocab_size=-1, num_iterations=-1, weight_decay=-1.0, threads=-1, eval_tokens=-1, device="auto")
    interrupted(monkeypatch, 2, by_rule)
    record = runs.read_record("tiny")
    assert record and record.config.num_iterations > 50
    monkeypatch.setattr("nanochat.planning.rules.CPU_BUDGET", 1e6)
    monkeypatch.setattr("nanochat.model.scaling.MAXIMUM_EPOCHS", 1)
    prepared = prepare(Request(by_rule, ("base",), time.monotonic()))
    assert isinstance(prepared, Prepared) and prepared.record.config == record.config


def test_conversations_are_read_once(base: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are looked through before pretraining, and learned after it: one reading serves both."""
    read: list[Path] = []
    original = finetuning.read_conversations
    monkeypatch.setattr(finetuning, "read_conversations", lambda path: read.append(path) or original(path))
    talks = chats(tmp_path / "talks.jsonl")
    run.train(config(text, chat_data=str(talks), sft_iterations=2))
    assert read == [talks] and len(losses(base)) == 8


def test_metrics_have_one_line_a_step(base: Path, text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run.train(config(text, run="straight"))
    interrupted(monkeypatch, 3, config(text))
    path = base / "runs/tiny/metrics.jsonl"
    last = json.loads(path.read_text().splitlines()[-1])
    with path.open("a") as file:  # what a kill after the save leaves: a later step, and half a line
        file.write(json.dumps(last | {"step": 4, "loss": 9.0}) + "\n" + json.dumps(last | {"step": 5})[:40])
    assert run.train(config(text)) == 0
    assert losses(base) == losses(base, "straight")
    assert path.read_bytes().endswith(b"}\n")


def test_changed_text_is_refused(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = sentences(tmp_path / "own.txt")
    interrupted(monkeypatch, 2, config(own))
    known = set((base / "tokenizer").iterdir())
    sentences(own, seed=2)
    with pytest.raises(UsageError, match="the text has changed since the run 'tiny' began") as raised:
        run.train(config(own))
    assert "--run NEW" in raised.value.hint
    assert set((base / "tokenizer").iterdir()) == known  # said before a tokenizer is trained in vain
    assert run.train(config(own, run="new")) == 0


def test_a_relative_path_names_the_same_text(base: Path, text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run.train(config(text))
    monkeypatch.chdir(text.parent)
    assert run.train(config(Path(text.name))) == 0


# ---- stages ---------------------------------------------------------------------------------------------------


def test_both_stages_and_a_stop_in_the_second(base: Path, text: Path, chat_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    both = {"sft_iterations": 4, "chat_data": str(chat_data)}
    run.train(config(text, run="straight", **both))
    expected = losses(base, "straight")
    assert [line[:2] for line in expected] == [("base", step) for step in range(1, 7)] + [("sft", step) for step in range(1, 5)]
    interrupted(monkeypatch, 2, config(text, **both), ConversationBatches)
    assert losses(base) == expected[:8]
    assert run.train(config(text, **both)) == 0
    assert losses(base) == expected
    report = json.loads((base / "runs/tiny/report.json").read_text())
    assert len(report["samples"]) == 3
    opened = runs.open_model("tiny")
    assert opened.chats and opened.checkpoint.step == 4


def test_stages_one_by_one(base: Path, text: Path, chat_data: Path, capfd: pytest.CaptureFixture[str]) -> None:
    values = config(text, sft_iterations=2, chat_data=str(chat_data))
    with pytest.raises(UsageError, match="fine-tuning needs a finished base model"):
        run.train(values, ("sft",))
    assert run.train(values, ("base",)) == 0
    assert not runs.open_model("tiny").chats
    assert run.train(values, ("sft",)) == 0
    assert runs.open_model("tiny").chats
    capfd.readouterr()
    for stages in (("base",), ("sft",), ("base", "sft")):
        assert run.train(values, stages) == 0
        assert "is finished" in capfd.readouterr().err
    none = config(text, run="none")
    run.train(none)
    assert run.train(none, ("sft",)) == 0  # no steps of it: nothing is left to do


def test_bad_conversations_are_refused_before_the_first_step(base: Path, text: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.jsonl"
    bad.write_text('[{"role": "user", "content": "hi"}]\n')
    with pytest.raises(DataError, match="questions without an answer"):
        run.train(config(text, sft_iterations=2, chat_data=str(bad)))
    bad.write_text('[{"role": "user", "content": "half \\ud83d"}, {"role": "assistant", "content": "a"}]\n')
    with pytest.raises(DataError, match=r"bad\.jsonl:1: the content of message 1 is not valid text"):
        run.train(config(text, sft_iterations=2, chat_data=str(bad)))
    bad.write_text(json.dumps([{"role": "user", "content": "long " * 100}, {"role": "assistant", "content": "a"}]) + "\n")
    with pytest.raises(DataError, match="has an answer within the sequence length of 32 tokens"):
        run.train(config(text, sft_iterations=2, chat_data=str(bad)))
    assert not (base / "runs").exists()


def test_other_conversations_until_fine_tuning_has_a_checkpoint(
    base: Path, text: Path, chat_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """What was pretrained is kept: the losses are those of a run that began with these conversations."""
    other = chats(tmp_path / "other.jsonl", 40)
    straight = config(text, run="straight", sft_iterations=4, chat_data=str(other))
    run.train(straight)
    run.train(config(text, sft_iterations=4, chat_data=str(chat_data)), ("base",))
    capfd.readouterr()
    values = config(text, sft_iterations=4, chat_data=str(other))
    interrupted(monkeypatch, 2, values, ConversationBatches)
    assert "gets other conversations" in capfd.readouterr().err
    assert run.train(values) == 0
    assert losses(base) == losses(base, "straight")
    with pytest.raises(UsageError, match="chat_data was"):
        run.train(config(text, sft_iterations=4, chat_data=str(chat_data)))


def test_the_same_text_elsewhere_resumes_the_run(base: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, moved = tmp_path / "first.txt", tmp_path / "moved.txt"
    shutil.copy(text, first)
    run.train(config(first, run="straight"))
    interrupted(monkeypatch, 3, config(first))
    first.touch()
    interrupted(monkeypatch, 4, config(first))
    first.rename(moved)
    interrupted(monkeypatch, 5, config(moved))
    assert run.train(config(first)) == 0  # the imported text is enough
    assert losses(base) == losses(base, "straight")
    moved.write_text(moved.read_text() + "One more sentence.")
    with pytest.raises(UsageError, match="data was"):
        run.train(config(moved))


def test_a_run_killed_while_it_was_scored_is_scored(
    base: Path, text: Path, chat_data: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    values = config(text, sft_iterations=2, chat_data=str(chat_data))
    run.train(values, ("base",))  # it leaves a report of its own
    with monkeypatch.context() as patch:
        patch.setattr("nanochat.pipeline.finish.answer", lambda *_: os.kill(os.getpid(), signal.SIGTERM))
        with pytest.raises(Preempted):
            run.train(values)
    before = losses(base)
    capfd.readouterr()
    assert run.train(values) == 0
    said = capfd.readouterr().err
    assert "is finished" not in said and "step 1/" not in said
    assert losses(base) == before
    report = json.loads((base / "runs/tiny/report.json").read_text())
    assert len(report["samples"]) == 3
    last = json.loads((base / "runs/tiny/metrics.jsonl").read_text().splitlines()[-1])
    assert report["seconds"] > last["elapsed_seconds"] > 0  # of all calls together


# ---- what lies on the disk --------------------------------------------------------------------------------------


@pytest.mark.parametrize("changes", [{"depth": 2}, {"max_seq_len": 64}], ids=["shapes", "context"])
def test_a_checkpoint_of_another_model_is_refused(base: Path, text: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]) -> None:
    run.train(config(text, run="other", **changes))
    interrupted(monkeypatch, 2, config(text))
    shutil.rmtree(base / "runs/tiny/base")
    shutil.copytree(base / "runs/other/base", base / "runs/tiny/base")
    before = snapshot(base / "runs/tiny/base")
    with pytest.raises(UsageError, match="the checkpoint of another model"):
        run.train(config(text))
    assert snapshot(base / "runs/tiny/base") == before


def test_a_damaged_checkpoint_is_passed_over(base: Path, text: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run.train(config(text, save_every=2))
    expected = losses(base)
    weights = base / "runs/tiny/base/step_000006/model.safetensors"
    whole = bytearray(weights.read_bytes())
    whole[len(whole) // 2] ^= 1
    weights.write_bytes(whole)
    capfd.readouterr()
    assert run.train(config(text, save_every=2)) == 0
    assert "is damaged; falling back" in (said := capfd.readouterr().err) and "resuming at step 4 of 6" in said
    assert losses(base) == expected


@pytest.fixture
def small_disk(base: Path) -> Iterator[Path]:
    """The data directory on a disk of 8 MB."""
    base.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(base)], capture_output=True, check=False)
    if made.returncode:
        pytest.skip("a small disk needs a mount, which is not allowed here")
    yield base
    subprocess.run(["umount", "-l", str(base)], check=True)


def test_a_full_disk_at_checkpoint_time_loses_nothing(small_disk: Path, text: Path) -> None:
    base, values = small_disk, config(text, save_every=1, keep_last=9)
    run.train(config(text, run="straight", num_iterations=6))
    expected = losses(base, "straight")
    shutil.rmtree(base / "runs/straight")
    filler = base / "filler"
    filler.write_bytes(bytes(shutil.disk_usage(base).free - 3_000_000))  # room for two checkpoints
    with pytest.raises(PreflightError, match="the disk is full while saving the checkpoint of step") as raised:
        run.train(values)
    assert raised.value.exit_code == 3 and "free some space" in raised.value.hint
    newest = Checkpoints(base / "runs/tiny/base").newest()
    assert newest and newest.step >= 1
    filler.unlink()
    assert run.train(dataclasses.replace(values, keep_last=1)) == 0
    assert losses(base) == expected


@pytest.mark.parametrize("room", [0, 2000, 60_000])
def test_a_disk_that_is_full_from_the_start_is_an_error(small_disk: Path, text: Path, room: int) -> None:
    (small_disk / "filler").write_bytes(bytes(shutil.disk_usage(small_disk).free // 4096 * 4096 - room))
    with pytest.raises((PreflightError, OSError)) as raised:
        run.train(config(text))
    assert isinstance(raised.value, PreflightError) or raised.value.errno == 28
    (small_disk / "filler").unlink()
    assert run.train(config(text)) == 0


def test_a_place_that_cannot_be_written_is_refused(tmp_path: Path, text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("no folder")
    for place in (tmp_path / "file", tmp_path / "file" / "below", Path("/proc/nanochat"), Path("/sys/nanochat")):
        monkeypatch.setenv("NANOCHAT_BASE_DIR", str(place))
        with pytest.raises(PreflightError) as raised:
            run.train(config(text))
        assert raised.value.exit_code == 3 and "NANOCHAT_BASE_DIR" in raised.value.hint


# ---- the tokenizer ----------------------------------------------------------------------------------------------


def test_a_tokenizer_is_trained_once(base: Path, text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = prepare_tokenizer(config(text))
    monkeypatch.setattr(Tokenizer, "train", None)
    assert prepare_tokenizer(config(text)) == folder
    assert folder == base / "tokenizer" / Tokenizer.load(folder).id


@pytest.mark.parametrize("moment", ["training", "saving", "naming its source"])
def test_an_interrupted_tokenizer_is_never_used(base: Path, text: Path, moment: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def die(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        if moment == "training":
            patch.setattr("nanochat.data.vocabulary.texts", die)
        elif moment == "saving":
            patch.setattr("nanochat.tokenizer.tokenizer.atomic_write_json", die)
        else:
            patch.setattr("nanochat.data.vocabulary.paths.atomic_write_json", die)
        with pytest.raises(KeyboardInterrupt):
            prepare_tokenizer(config(text))
    assert not list((base / "tokenizer").glob("*/source.json"))
    assert Tokenizer.load(prepare_tokenizer(config(text))).vocab_size == 300


# ---- who the model is -------------------------------------------------------------------------------------------


def test_an_identity_is_taught_and_belongs_to_the_run(base: Path, text: Path, tmp_path: Path) -> None:
    who = tmp_path / "who.toml"
    who.write_text('name = "Formosa"\nmaker = "M"\nlanguages = ["zh-TW"]\n', encoding="utf-8")
    values = config(text, sft_iterations=2, identity=str(who), max_seq_len=64)
    assert run.train(values) == 0
    assert [line[:2] for line in losses(base) if line[0] == "sft"] == [("sft", 1), ("sft", 2)]
    (base / "runs/tiny/report.json").unlink()  # so that the run is looked at again
    who.write_text('name = "Another"\nmaker = "M"\n', encoding="utf-8")
    with pytest.raises(UsageError, match="conversations file has changed"):
        run.train(values)
    who.write_text("name = 3", encoding="utf-8")
    with pytest.raises(DataError, match="name"):
        run.train(config(text, run="other", sft_iterations=2, identity=str(who)))
