"""What a run needs from the network is known beforehand, and comes with one command."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from nanochat.config import TEXT_RULES, build_config
from nanochat.data import source as fetch
from nanochat.data.conversations import conversations
from nanochat.data.hub import addresses as hub_module
from nanochat.data.hub.download import KNOWN
from nanochat.data.hub.sets import TESTS
from nanochat.data.shards import shard_name
from nanochat.data.source import fetch_for, missing, sets_of
from nanochat.errors import DataError, PreflightError
from nanochat.evaluation.evaluate import missing_parts
from tests.evaluation.bundle import chat_rows, write_bundle
from tests.hub import Hub, parquet

TALK = [{"role": "user", "content": "你好"}, {"role": "assistant", "content": "嗨"}]


@pytest.fixture
def server(base: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    served = Hub()
    names = [*map(shard_name, range(3)), shard_name(6542)]
    served.files[KNOWN["climbmix"].repo] = {name: parquet(name) for name in names}
    served.assets["/identity_conversations.jsonl"] = (json.dumps(TALK) + "\n").encode()
    served.files["some/Talks"] = {f"data/{part}-0.parquet": parquet("", messages=[TALK] * 3) for part in ("train", "test")}
    served.assets["/api/datasets/some/Talks"] = json.dumps({"cardData": {"license": "cc-by-nc-4.0"}}).encode()
    monkeypatch.setenv("HF_ENDPOINT", served.url)
    monkeypatch.setenv("NANOCHAT_ASSET_URL", served.url)
    monkeypatch.setattr(hub_module, "FIRST_WAIT", 0.001)
    yield served
    served.server.shutdown()
    served.server.server_close()


def trial(**changes: object):
    values = TEXT_RULES | {"shards": 2, "vocab_size": 300, "num_iterations": 2, "sft_iterations": 2}
    return build_config("cpu", True, values | changes)


@pytest.mark.long
def test_a_trial_needs_little(server: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    config = trial()
    assert list(missing(config)) == ["3 of 3 shards of climbmix", "the conversations of identity"]
    assert fetch_for(config, check=True).name == "climbmix"
    assert missing(config) == {} and not any("eval_bundle" in path for path in server.requests)
    server.requests.clear()
    fetch_for(config, check=True)
    assert server.requests == []
    (fetch_for(config) / shard_name(1)).unlink()
    assert list(missing(config)) == ["1 of 3 shards of climbmix"]


@pytest.mark.long
def test_damage_is_found(server: Hub) -> None:
    config = trial()
    path = fetch_for(config) / shard_name(0)
    data = bytearray(path.read_bytes())
    data[100] ^= 1
    path.write_bytes(data)
    with pytest.raises(DataError, match="is corrupt"):
        fetch_for(config, check=True)


@pytest.mark.long
def test_a_public_set_of_conversations(server: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    config = trial(chat_data="hf:some/Talks", dataset="embedded")
    assert sets_of(config) == ["hf:some/Talks"] and "the conversations of hf:some/Talks" in missing(config)
    fetch_for(config, check=True)
    assert "licence: cc-by-nc-4.0" in capsys.readouterr().err
    assert missing(config) == {} and list(conversations("hf:some/Talks")) == [TALK] * 3  # the test part stays out


def test_what_needs_no_network(base: Path) -> None:
    assert missing(build_config("cpu")) == {} and sets_of(build_config("cpu")) == []
    assert sets_of(trial(data="texts", chat_data="talks.jsonl")) == []
    assert sets_of(trial(trial=False, identity="who.toml")) == ["smol-smoltalk", "mmlu", "gsm8k"]


def test_no_room(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nanochat.data.hub.transfer.shutil.disk_usage", lambda path: type("Usage", (), {"free": 10})())
    with pytest.raises(PreflightError, match="are free"):
        fetch_for(trial())
    assert fetch.SET_BYTES["smol-smoltalk"] > 10


@pytest.mark.long
def test_the_tasks_alone(server: Hub, tmp_path: Path) -> None:
    """What `download --evaluation` brings: the test sets and the bundle, once."""
    for name, data in chat_rows().items():
        task = TESTS[name]
        server.files.setdefault(task.repo, {})[f"{task.prefix}00000-of-00001.parquet"] = data
    write_bundle(tmp_path / "bundle" / "eval_bundle")
    server.assets["/eval_bundle.zip"] = Path(shutil.make_archive(str(tmp_path / "b"), "zip", tmp_path / "bundle")).read_bytes()
    assert set(missing_parts()) == {"core", "chat"} and set(fetch.missing_tasks()) == {"eval_bundle", *TESTS}
    folders = fetch.fetch_tasks(check=True)
    assert [folder.name for folder in folders] == ["eval_bundle", *TESTS]
    assert missing_parts() == {} and fetch.missing_tasks() == {}
    server.requests.clear()
    assert fetch.fetch_tasks(check=True) == folders and server.requests == []
