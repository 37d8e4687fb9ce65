"""The guide's commands, as they stand there but for the number of steps."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nanochat.cli.app import run_and_exit
from nanochat.cli.upstream import base_train
from nanochat.errors import UsageError
from tests.tiny import call, sentences

pytestmark = pytest.mark.long

PLAN_A = "--depth=4 --device_batch_size=1 --max_seq_len=256 --total_batch_size=512 --num_iterations=100 --sample_every=20"


@pytest.fixture
def shards(base: Path) -> Path:
    """Two shards of climbmix, put there by hand: one to train on and one for validation."""
    folder = base / "data" / "climbmix"
    folder.mkdir(parents=True)
    parts = sentences(base / "text", 60_000).read_text().split("\n\n")
    for index, documents in enumerate((parts[:-60], parts[-60:])):
        pq.write_table(pa.table({"text": documents}), folder / f"shard_{index:05}.parquet")
    return folder


def test_plan_a(base: Path, shards: Path) -> None:
    few = PLAN_A.replace("=100", "=2").replace("=20", "=1")
    done = call(base, "-m", "scripts.base_train", *few.split(), "--eval_tokens=256", "--threads=1")
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in (base / "runs/d4/metrics.jsonl").read_text().splitlines()]
    assert [(line["stage"], line["step"], line["tokens"]) for line in lines] == [("base", step, 512 * step) for step in range(1, 3)]
    assert lines[-1]["bpb"] > 0
    assert (base / "runs/d4/base/step_000002/manifest.json").exists() and not (base / "runs/d4/sft").exists()
    said = done.stderr
    for expected in (
        "base step 2/2 | loss",
        "dt ",
        "tokens/s",
        "sample at step 1",
        "sample at step 2",
        "skipped: fine-tuning, ",
        "auto: ",
    ):
        assert expected in said, said
    assert done.stdout.strip() == ""  # no result to print: the messages are on stderr
    assert (shards / "manifest.json").exists()


def config_of(monkeypatch: pytest.MonkeyPatch, *arguments: str):
    """What `base_train ARGUMENTS` would run: config, stages and the workers' command line."""
    seen = []
    monkeypatch.setattr("nanochat.pipeline.train.train", lambda *given: seen.append(given) or 0)
    assert base_train(list(arguments)) == 0
    return seen[0]


def test_the_flags_are_the_guides(monkeypatch: pytest.MonkeyPatch) -> None:
    config, stages, relaunch = config_of(monkeypatch, *PLAN_A.split())
    assert (config.depth, config.device_batch_size, config.max_seq_len, config.total_batch_size) == (4, 1, 256, 512)
    assert (config.num_iterations, config.sample_every, config.run, config.dataset) == (100, 20, "d4", "climbmix")
    assert stages == ("base",) and relaunch == ["-m", "scripts.base_train", *PLAN_A.split()]
    assert config_of(monkeypatch, "--depth=32", "--device_batch_size=8", "--run=h100_speedrun_01")[0].run == "h100_speedrun_01"


@pytest.mark.parametrize("nameless", [[], ["--run=dummy"], ["--run", "auto"]])
def test_a_run_without_a_name_is_named_after_its_depth(nameless: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert config_of(monkeypatch, "--depth=12", *nameless)[0].run == "d12"


def test_a_mistake_is_told(base: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NANOCHAT_DEBUG", raising=False)
    monkeypatch.setattr(sys, "argv", ["base_train"])
    for arguments, error in (["--model_dim=512"], "unknown config key model_dim"), (["--total_batch_size=100"], "not a multiple"):
        with pytest.raises(SystemExit) as ended:
            run_and_exit(base_train, arguments)
        lines = capfd.readouterr().err.splitlines()
        assert ended.value.code == UsageError.exit_code
        assert len(lines) == 2 and error in lines[0] and lines[0].startswith("error: ") and lines[1].startswith("hint: ")


def test_the_guides_torchrun(base: Path, shards: Path) -> None:
    """--run, which torch's own launcher takes for a short form of its --run-path."""
    flags = "--depth=1 --device_batch_size=1 --max_seq_len=32 --total_batch_size=64 --num_iterations=2 --vocab_size=300 --threads=1"
    command = [str(Path(sys.executable).with_name("torchrun")), "--standalone", "--nproc_per_node=2", "-m", "scripts.base_train"]
    environment = os.environ | {"NANOCHAT_BASE_DIR": str(base), "OMP_NUM_THREADS": "1"}
    command += [*flags.split(), "--run=h100_speedrun_01"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr
    assert len((base / "runs/h100_speedrun_01/metrics.jsonl").read_text().splitlines()) == 2
