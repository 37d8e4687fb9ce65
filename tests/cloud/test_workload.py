"""What containers run: one source for every back-end."""

import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from nanochat.cli.app import app
from nanochat.cloud.kubernetes import ManifestOptions, manifests
from nanochat.cloud.workload import plain_environment, workload
from nanochat.config import Config, build_config
from nanochat.data.source import text_source
from nanochat.data.text_source import TextSource
from nanochat.errors import UsageError
from nanochat.runs.record import Record
from tests.tiny import MODEL


def test_command_is_the_laptops() -> None:
    work = workload("i:1", "", "4090", True, ["--depth", "8", "--deterministic", "--run=my_run"])
    assert work.command == ("train", "--profile", "rtx4090", "--trial", "--depth=8", "--deterministic=true", "--run=my_run")
    assert (work.name, work.cards, work.nodes) == ("nanochat-my-run", 1, 1)
    assert work.environment() == {"NANOCHAT_BASE_DIR": "/data", "PYTHONUNBUFFERED": "1"}


def test_download_fetches_for_the_same_training() -> None:
    """With the training's own options, so that the text, the conversations and the evaluation's files are all there."""
    work = workload("i", "", "h100x8", True, ["--depth=8", "--dataset=fineweb-edu"])
    assert work.download == ("download", "--for", "h100x8", "--trial", "--depth=8", "--dataset=fineweb-edu")
    assert workload("i", "", "h100x8", False, [], nodes=2).download == ("download", "--for", "h100x8", "--nproc_per_node=16")
    assert workload("i", "", "cpu", False, []).download == ()
    assert workload("i", "", "cpu", False, ["--chat-data=hf:some/Talks"]).download[-1] == "--chat_data=hf:some/Talks"


@pytest.mark.parametrize(("profile", "nodes"), [("h100x8", 1), ("h100x8", 3), ("rtx4090", 1)])
def test_download_is_what_the_training_will_ask_for(profile: str, nodes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command, as the container without a GPU parses it, comes to the plan's number of shards and to the same sets."""
    asked: list[Config] = []
    monkeypatch.setattr(TextSource, "fetch", lambda source, check: asked.append(source.config) or "there")
    work = workload("i", "", profile, False, ["--depth=12"], nodes)
    done = CliRunner().invoke(app, work.download)
    assert done.exit_code == 0, done.output
    assert (asked[0].shards, asked[0].dataset) == (work.plan.config["shards"], work.config.dataset)
    assert text_source(asked[0]).conversations.sets == text_source(work.config).conversations.sets != []


def test_a_run_that_begins_with_another_one(base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The plan is for the source's model where its record is here or on the mirror; the cluster's command has `--from` and the mirror."""
    arguments = ["--from=src:base", "--chat-data=hf:some/Talks", f"--mirror=file://{tmp_path}/mirror"]
    unknown = workload("i", "", "rtx4090", False, arguments)
    assert "does not know the run 'src'" in capsys.readouterr().err and unknown.name == "nanochat-src-2"
    source = build_config("cpu", overrides=MODEL | {"run": "src", "device": "cpu", "dtype": "float32", "compile": "off"})
    Record(source, "embedded", ("shard_00000.parquet",), "t", "", "").write()
    folder = tmp_path / "mirror/src"
    folder.mkdir(parents=True)
    shutil.move(base / "runs/src/config.toml", folder)
    work = workload("i", "", "rtx4090", False, arguments)
    assert "does not know" not in capsys.readouterr().err
    assert (work.config.depth, work.config.num_iterations, work.config.run, work.config.device) == (1, 0, "src-2", "auto")
    assert work.plan.steps == 0 and work.plan.parameters < unknown.plan.parameters / 100 and work.cards == 1
    for option in (*arguments[:1], "--chat_data=hf:some/Talks", arguments[2], "--device=auto", "--dtype=auto"):
        assert option in work.command and option in work.download, option
    jobs = [str(made) for made in manifests(work, ManifestOptions()) if made["kind"] in ("Job", "JobSet")]
    assert len(jobs) == 2 and all("--from=src:base" in job and arguments[2] in job for job in jobs)  # the download's and the training's
    with pytest.raises(UsageError, match="does not match src"):
        workload("i", "", "rtx4090", False, [*arguments, "--depth=3"])
    with pytest.raises(UsageError, match="cannot begin from itself"):
        workload("i", "", "rtx4090", False, ["--from=src", "--run=src"])
    workload("i", "", "rtx4090", False, ["--from=src", "--run=new", "--chat-data=hf:some/Talks"])
    assert "the job's volume must have that run already" in capsys.readouterr().err


def test_several_nodes_differ_by_environment_alone() -> None:
    work = workload("i", "", "h100x8", False, [], nodes=4)
    assert work.cards == 8 and work.plan.cards == 32 and work.command == workload("i", "", "h100x8", False, []).command
    assert work.environment("n0", "2") | {"PET_MASTER_ADDR": "n0", "PET_NODE_RANK": "2", "PET_NNODES": "4"} == work.environment("n0", "2")


@pytest.mark.parametrize(
    ("arguments", "more"),
    [
        (["--data", "/home/me/texts"], {}),
        (["--chat-data", "talks.jsonl"], {}),
        (["--identity", "who.toml"], {}),
        (["--hours", "8"], {}),
        (["--no-such-flag=1"], {}),
        ([], {"profile": "auto"}),
        ([], {"profile": "nonsense"}),
        ([], {"name": "Has_Capitals"}),
        ([], {"name": "x" * 41}),
        ([], {"nodes": 0}),
        ([], {"image": ""}),
        (["--device_batch_size=4"], {"profile": "cpu", "nodes": 2}),  # one row batch a step cannot be shared by two nodes
    ],
)
def test_mistakes_are_said_before_anything_is_sent(arguments: list[str], more: dict[str, object]) -> None:
    values: dict = {"image": "i", "name": "", "profile": "h100x8", "trial": False, "arguments": arguments} | more
    with pytest.raises(UsageError) as caught:
        workload(**values)
    assert caught.value.hint


def test_secrets_are_no_arguments() -> None:
    assert plain_environment(["A=b=c", "B="]) == {"A": "b=c", "B": ""}
    assert plain_environment(["HF_ENDPOINT=https://mirror.example.org/a@b"]) == {"HF_ENDPOINT": "https://mirror.example.org/a@b"}
    for pair in (
        *("HF_TOKEN=hf_x", "MY_PASSWORD=x", "nothing", "PET_NNODES=2", "NANOCHAT_END=1790000000", "NANOCHAT_GUARD=stop@1790000000"),
        *("HF_ENDPOINT=https://me:hf_x@mirror.example.org", "NANOCHAT_MIRRORS=https://a.example.org,https://hf_x@b.example.org"),
    ):
        with pytest.raises(UsageError) as caught:
            plain_environment([pair])
        assert "hf_x" not in caught.value.message + caught.value.hint


def test_credentials_are_no_arguments() -> None:
    with pytest.raises(UsageError, match="contains a password"):
        plain_environment(["HF_ENDPOINT=https://user:S3CRET@mirror.example.org"])
    with pytest.raises(UsageError, match="--mirror contains credentials") as raised:
        workload("image", "", "cpu", False, ["--mirror=s3://user:S3CRET@bucket/x"])
    assert "--secret NAME" in raised.value.hint
    assert plain_environment(["HF_ENDPOINT=https://mirror.example.org"]) and workload("image", "", "cpu", False, ["--mirror=s3://bucket/x"])
