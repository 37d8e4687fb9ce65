"""The text of a run: which one a config asks for, what it brings along, what it needs from the network and how that comes."""

import hashlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from nanochat import untrusted
from nanochat.config import TEXT_RULES, build_config
from nanochat.data.conversations import conversations
from nanochat.data.published.origins import KNOWN
from nanochat.data.published.sets import SET_BYTES, TESTS, fetch_tasks, missing_tasks
from nanochat.data.shards import shard_name
from nanochat.data.source import own_files, text_source
from nanochat.errors import DataError, PreflightError
from nanochat.evaluation.evaluate import missing_parts
from nanochat.hub import addresses as hub_module
from tests.evaluation.bundle import chat_rows, write_bundle
from tests.fake_hub import Hub, parquet

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
    assert list(text_source(config).missing()) == ["3 of 3 shards of climbmix", "the conversations of identity"]
    assert text_source(config).fetch(check=True).name == "climbmix"
    assert text_source(config).missing() == {} and not any("eval_bundle" in path for path in server.requests)
    server.requests.clear()
    text_source(config).fetch(check=True)
    assert server.requests == []
    (text_source(config).fetch() / shard_name(1)).unlink()
    assert list(text_source(config).missing()) == ["1 of 3 shards of climbmix"]


@pytest.mark.long
def test_damage_is_found(server: Hub) -> None:
    config = trial()
    path = text_source(config).fetch() / shard_name(0)
    data = bytearray(path.read_bytes())
    data[100] ^= 1
    path.write_bytes(data)
    with pytest.raises(DataError, match="is corrupt"):
        text_source(config).fetch(check=True)


@pytest.mark.long
def test_a_public_set_of_conversations(server: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    config = trial(chat_data="hf:some/Talks", dataset="embedded")
    assert text_source(config).conversations.sets == ["hf:some/Talks"]
    assert "the conversations of hf:some/Talks" in text_source(config).missing()
    text_source(config).fetch(check=True)
    assert "licence: cc-by-nc-4.0" in capsys.readouterr().err
    assert text_source(config).missing() == {} and list(conversations("hf:some/Talks")) == [TALK] * 3  # the test part stays out


def test_what_needs_no_network(base: Path) -> None:
    assert text_source(build_config("cpu")).missing() == {} and not text_source(build_config("cpu")).downloads
    assert not text_source(trial(data="texts", chat_data="talks.jsonl")).downloads
    assert text_source(trial(trial=False, identity="who.toml")).conversations.sets == ["smol-smoltalk", "mmlu", "gsm8k"]


def test_no_room(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nanochat.hub.download.shutil.disk_usage", lambda path: type("Usage", (), {"free": 10})())
    with pytest.raises(PreflightError, match="are free"):
        text_source(trial()).fetch()
    assert SET_BYTES["smol-smoltalk"] > 10


@pytest.mark.long
def test_the_tasks_alone(server: Hub, tmp_path: Path) -> None:
    """What `download --evaluation` brings: the test sets and the bundle, once."""
    for name, data in chat_rows().items():
        task = TESTS[name]
        server.files.setdefault(task.repo, {})[f"{task.prefix}00000-of-00001.parquet"] = data
    write_bundle(tmp_path / "bundle" / "eval_bundle")
    server.assets["/eval_bundle.zip"] = Path(shutil.make_archive(str(tmp_path / "b"), "zip", tmp_path / "bundle")).read_bytes()
    assert set(missing_parts()) == {"core", "chat"} and set(missing_tasks()) == {"eval_bundle", *TESTS}
    folders = fetch_tasks(check=True)
    assert [folder.name for folder in folders] == ["eval_bundle", *TESTS]
    assert missing_parts() == {} and missing_tasks() == {}
    server.requests.clear()
    assert fetch_tasks(check=True) == folders and server.requests == []


# --- which text it is, and what belongs to it


def test_the_text_that_a_config_asks_for(base: Path, tmp_path: Path) -> None:
    file = tmp_path / "text.txt"
    file.write_text("".join(f"Sentence number {i} of a text.\n\n" for i in range(1000)))
    named = {"embedded": trial(dataset="embedded"), "climbmix": trial(), str(file): trial(dataset="embedded", data=str(file))}
    assert [text_source(config).name for config in named.values()] == list(named)
    assert [text_source(config).title for config in named.values()] == ["embedded", "climbmix", "the user's own text"]
    assert [text_source(config).downloads for config in named.values()] == [False, True, False]
    assert len({text_source(config).licence for config in named.values()}) == 3
    embedded, hub, own = map(text_source, named.values())
    assert hub.text_bytes() is None and hub.most_shards == 6542 and embedded.most_shards is own.most_shards is None
    assert own.text_bytes() == own.open().text_bytes and embedded.text_bytes() == embedded.open().text_bytes
    assert own.fault is None and "does not exist" in str(text_source(trial(data=str(tmp_path / "none"))).fault)


def test_only_as_many_shards_as_are_asked_for(base: Path) -> None:
    source = text_source(trial(dataset="embedded"))
    assert source.open(1).training == source.open(-1).training[:1]


def test_held_out_questions_belong_to_the_embedded_conversations() -> None:
    skills = {item.skill for item in text_source(trial(dataset="embedded")).heldout()}
    assert "identity" in skills and text_source(trial(dataset="embedded")).has_heldout
    assert {item.skill for item in text_source(trial(dataset="embedded", identity="who.toml")).heldout()} == skills - {"identity"}
    for config in (trial(dataset="embedded", chat_data="talks.jsonl"), trial(dataset="embedded", data="texts"), trial()):
        assert text_source(config).heldout() == [] and not text_source(config).has_heldout


def test_the_users_conversations_are_looked_through(base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    talks, who = tmp_path / "talks.jsonl", tmp_path / "who.toml"
    talks.write_text(json.dumps(TALK) + "\n")
    who.write_text('name = "Formosa"\nmaker = "Mei-hua Lin"\n')
    own = text_source(trial(data="texts", chat_data=str(talks), identity=str(who))).conversations
    assert own.inspect() == " ".join(hashlib.sha256(path.read_bytes()).hexdigest() for path in (talks, who))
    said = capsys.readouterr().err
    assert "identity: Formosa" in said and "conversations: 1, 2.0 messages each" in said
    found = [own.load()[i] for i in range(len(own.load()))]
    assert TALK in found and len(found) > 1000
    assert text_source(trial(dataset="embedded")).conversations.inspect() == ""


def test_a_text_alone_has_no_conversations() -> None:
    assert text_source(trial(data="texts")).conversations.empty and list(text_source(trial(data="texts")).conversations.load()) == []
    for more in ({"chat_data": "talks.jsonl"}, {"identity": "who.toml"}, {"chat_data": "hf:some/Talks"}):
        assert not text_source(trial(data="texts", **more)).conversations.empty
    assert not text_source(trial()).conversations.empty and not text_source(trial(dataset="embedded")).conversations.empty


def test_the_users_files_are_named() -> None:
    assert own_files(trial(data="a", chat_data="hf:some/Talks", identity="c")) == {"data": "a", "identity": "c"}
    assert own_files(trial(chat_data="b")) == {"chat_data": "b"}


def test_a_directory_of_many_conversation_files_has_one_hash_in_the_record(tmp_path):
    for index in range(40):
        (tmp_path / f"{index:02}.jsonl").write_text(json.dumps({"messages": TALK}) + "\n", encoding="utf-8")
    source = text_source(trial(chat_data=str(tmp_path))).conversations
    found = source.inspect()
    assert len(found) == 64 and untrusted.text(found, "conversations") == found  # as a resumed run reads it
    (tmp_path / "07.jsonl").write_text("", encoding="utf-8")
    assert text_source(trial(chat_data=str(tmp_path))).conversations.inspect() != found
