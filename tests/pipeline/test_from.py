"""A run that begins with another one's checkpoint: its losses are a straight run's, its source is not changed and not needed any more."""

import hashlib
import json
import shutil
import signal
from pathlib import Path

import pytest

from nanochat.cli.options import run_config
from nanochat.errors import DataError, UsageError
from nanochat.export.card import folder_card
from nanochat.export.folder import write_folder
from nanochat.export.importer import import_folder
from nanochat.export.metadata import licence_of
from nanochat.pipeline import train as run
from nanochat.runs import record as runs
from tests.tiny import call, config, flags, losses, start, wait_for

pytestmark = pytest.mark.long
STEPS = {"num_iterations": 6, "sft_iterations": 4, "save_every": 2, "keep_last": 10}

RL = ("--rl_iterations=20", "--rl_num_samples=4", "--rl_examples_per_step=4", "--rl_max_new_tokens=8", "--rl_eval_examples=8")


@pytest.fixture
def source(base: Path, files: dict[str, Path]) -> Path:
    """The folder of the finished run `src`."""
    assert run.train(config(files["text"], run="src", chat_data=str(files["chats"]), **STEPS)) == 0
    return base / "runs/src"


def hashes(folder: Path) -> dict[str, str]:
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.rglob("*") if path.is_file()}


def train(*arguments: str, stage: str = "all") -> int:
    stages = ("base", "sft") if stage == "all" else (stage,)
    return run.train(run_config("auto", False, list(arguments), stage), stages)


def of_stage(base: Path, name: str, stage: str) -> list[tuple[str, int, float]]:
    return [line for line in losses(base, name) if line[0] == stage]


def test_a_source_on_a_mirror_alone(base: Path, files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a cluster, whose machine has nothing: the source is fetched from the mirror, and the new run is copied there."""
    mirror = f"file://{tmp_path}/mirror"
    assert run.train(config(files["text"], run="src", chat_data=str(files["chats"]), mirror=mirror, **STEPS)) == 0
    assert train("--from=src", f"--chat-data={files['new']}", "--run=near") == 0
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tmp_path / "far"))
    asked = ("--from=src", f"--chat-data={files['new']}", f"--mirror={mirror}", "--run=near")
    assert train(*asked) == 0
    assert losses(tmp_path / "far", "near") == losses(base, "near")
    assert (tmp_path / "mirror/near/config.toml").exists()
    with pytest.raises(UsageError, match="there is no run 'other'"):
        train("--from=other", f"--mirror={mirror}", "--run=x")


def test_another_fine_tuning_is_a_straight_runs(base: Path, source: Path, files: dict[str, Path]) -> None:
    """Digit for digit, with the source's conversations and with others; the source is unchanged, and may go."""
    run.train(config(files["text"], run="straight", chat_data=str(files["new"]), **STEPS))
    before = hashes(source)
    assert train("--from=src", "--run=same") == 0
    assert train("--from", "src", "--chat-data", str(files["new"]), "--run", "other") == 0
    assert losses(base, "same") == of_stage(base, "src", "sft")
    assert losses(base, "other") == of_stage(base, "straight", "sft")
    assert hashes(source) == before
    opened = runs.open_model("other")
    assert opened.chats and opened.checkpoint.step == 4 and licence_of(opened) == licence_of(runs.open_model("src")) != "unknown"
    assert licence_of(opened) in folder_card(opened)

    shutil.rmtree(source)
    assert train("--from=src", "--chat-data", str(files["new"]), "--run=other") == 0  # finished
    shutil.rmtree(base / "runs/other/sft")
    assert train("--from=src", "--chat-data", str(files["new"]), "--run=other") == 0  # trained again from its own copy
    assert losses(base, "other") == of_stage(base, "straight", "sft")
    shutil.rmtree(base / "runs/other/sft")
    shutil.rmtree(base / "runs/other/from")
    with pytest.raises(DataError, match="has lost its copy of src:base:6"):
        train("--from=src", "--chat-data", str(files["new"]), "--run=other")


def test_pretraining_goes_on_where_the_source_stopped(base: Path, source: Path) -> None:
    """On the same text the next rows come, from the weights and the optimizer of a step in the middle as if it had gone on."""
    assert train("--from=src:base:4", "--num_iterations=2", "--run=cont", stage="base") == 0
    assert losses(base, "cont")[0][2] == losses(base, "src")[4][2]
    record = runs.read_record("cont")
    assert record is not None and record.first_row == 4 * 256 // 32
    assert train("--from=cont:base", "--num_iterations=1", "--run=grand", stage="base") == 0
    again = runs.read_record("grand")
    assert again is not None and again.first_row == 6 * 256 // 32 and [each.run for each in again.descent] == ["src", "cont"]


def test_a_fine_tuning_goes_on_where_the_source_stopped(base: Path, source: Path, files: dict[str, Path]) -> None:
    assert train("--from=src:sft:2", "--sft_iterations=2", "--run=cont") == 0
    assert losses(base, "cont")[0][2] == losses(base, "src")[8][2]
    assert train("--from=src:sft:2", "--sft_iterations=2", f"--chat_data={files['new']}", "--run=other") == 0
    other = runs.read_record("other")
    assert other is not None and other.first_row == 0  # of other conversations none is read yet


def test_pretraining_on_another_text(base: Path, source: Path, files: dict[str, Path], capfd: pytest.CaptureFixture[str]) -> None:
    assert train("--from=src", "--data", str(files["other"]), "--num_iterations=5", "--run=cont") == 0
    assert [line[:2] for line in losses(base, "cont")] == [("base", step) for step in range(1, 6)] + [("sft", step) for step in range(1, 5)]
    one, other = runs.read_record("src"), runs.read_record("cont")
    assert one is not None and other is not None
    assert other.tokenizer == one.tokenizer and other.dataset != one.dataset and other.first_row == 0
    straight = losses(base, "src")
    assert losses(base, "cont")[0][2] < straight[0][2] - 0.5  # it begins with what was learned
    said = capfd.readouterr().err
    assert "from src:base:6: weights and optimizer state" in said and "training a tokenizer" not in said.split("from src:base:6")[-1]


def test_the_report_shows_the_line_of_descent(base: Path, source: Path, files: dict[str, Path]) -> None:
    train("--from=src", "--data", str(files["other"]), "--num_iterations=3", "--sft_iterations=0", "--run=second")
    train("--from=second", "--run=third", f"--chat-data={files['new']}")
    report = json.loads((base / "runs/third/report.json").read_text())
    line = [(each["run"], each["stage"], each["step"], each["text"]) for each in report["descent"]]
    assert line == [("src", "base", 6, "the user's own text"), ("second", "base", 3, "the user's own text")]
    assert report["config"]["from_run"] == "second:base:3" and report["finished"] and report["bpb"] is None
    for name in ("report.md", "report.html"):
        text = (base / "runs/third" / name).read_text()
        assert "Line of descent" in text and "second" in text and "src" in text
    assert json.loads((base / "runs/src/report.json").read_text())["descent"] == []
    assert "Line of descent" not in (base / "runs/src/report.md").read_text()


def test_an_imported_model_is_trained_without_its_optimizer(
    base: Path, source: Path, files: dict[str, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    write_folder(runs.open_model("src", stage="base"), tmp_path / "out")
    import_folder(tmp_path / "out", "got")
    before = hashes(base / "runs/got")
    small = ["--device_batch_size=4", "--total_batch_size=256", "--sft_iterations=4", "--deterministic", "--threads=1", "--eval_every=-1"]
    capfd.readouterr()
    train("--from=got", "--run=new", f"--chat-data={files['new']}", *small)
    assert "weights without optimizer state, so the optimizer is new" in capfd.readouterr().err
    run.train(config(files["text"], run="straight", chat_data=str(files["new"]), **STEPS))
    assert losses(base, "new")[0] == of_stage(base, "straight", "sft")[0] and hashes(base / "runs/got") == before
    train("--from=got", "--run=text", f"--data={files['other']}", "--num_iterations=2", *small)
    assert len(losses(base, "text")) == 2
    with pytest.raises(UsageError, match="was imported") as raised:
        run.train(config(files["text"], run="got"))
    assert "train --from got --run NEW" in raised.value.hint


def test_another_source_under_the_same_name_is_refused(base: Path, source: Path) -> None:
    train("--from=src", "--run=new")
    with pytest.raises(UsageError, match="from_run was 'src:base:6', now 'src:base:4'"):
        train("--from=src:base:4", "--run=new")


def test_another_machine_needs_the_mirror_alone(
    base: Path, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--from=src", "--run=new", f"--mirror={(tmp_path / 'mirror').as_uri()}", "--save_every=2", "--keep_last=3"]
    train(*arguments)
    expected = losses(base, "new")
    shutil.rmtree(tmp_path / "mirror/new/sft/step_000004")
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tmp_path / "elsewhere"))
    elsewhere = tmp_path / "elsewhere"
    if not (tmp_path / "mirror/new/sft/step_000002").exists():  # the newest alone is copied where one waits
        shutil.copytree(base / "runs/new/sft/step_000002", tmp_path / "mirror/new/sft/step_000002")
        shutil.copy(base / "runs/new/metrics.jsonl", tmp_path / "mirror/new/sft/step_000002/metrics.jsonl")
    assert train(*arguments) == 0
    assert "resuming at step 2 of 4" in capfd.readouterr().err
    assert losses(elsewhere, "new") == expected and not (elsewhere / "runs/src").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("sft", ["--sft_iterations=60"]),
        ("base", ["--num_iterations=60", "--sft_iterations=3", "--data=OTHER"]),
        ("rl", ["--stage=rl", "--problems=PROBLEMS", *RL]),
    ],
)
def test_killed_it_resumes_exactly(base: Path, files: dict[str, Path], kind: str, options: list[str]) -> None:
    """At its first steps and in the midst of its stage, the source removed after the first."""
    made = call(base, "entrypoint.py", *flags(files["text"], run="src", chat_data=str(files["chats"]), **STEPS), timeout=200)
    assert made.returncode == 0, made.stderr
    named = {"OTHER": str(files["other"]), "PROBLEMS": str(files["problems"])}
    given = [f"{option.partition('=')[0]}={named.get(value, value)}" for option in options for value in [option.partition("=")[2]]]
    command = ["entrypoint.py", "train", "--from=src", "--save_every=3", *given]
    straight = call(base, *command, "--run=straight", timeout=300)
    assert straight.returncode == 0, straight.stderr
    for step in (1, 5, 11):
        process = start(base, *command, "--run=tiny")
        wait_for(process, f"{kind} step {step}" if step == 1 else f"{kind} step ")
        process.kill()
        process.communicate(timeout=60)
        assert process.returncode == -signal.SIGKILL
        shutil.rmtree(base / "runs/src", ignore_errors=True)
    done = call(base, *command, "--run=tiny", timeout=300)
    assert done.returncode == 0, done.stderr
    assert losses(base) == losses(base, "straight")
