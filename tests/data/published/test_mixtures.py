"""Mixtures of published datasets: their names, their shares of the text, what is left out, and a whole run on one from a local hub."""

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from nanochat.config import build_config
from nanochat.data.conversations import blend
from nanochat.data.published import mixtures
from nanochat.data.published.mixtures import ensure_mixture, interleave
from nanochat.data.published.origins import Part, catalogue, is_hub_name, is_mixture, mixture, origin, parts
from nanochat.data.published.shards import ensure_shards
from nanochat.data.shards import Dataset, texts
from nanochat.data.source import own_files, text_source
from nanochat.data.text.chinese import is_simplified
from nanochat.errors import UsageError
from nanochat.hub import addresses as hub_module
from nanochat.pipeline.train import train
from nanochat.planning.describe import describe
from nanochat.planning.plan import make_plan
from nanochat.tokenizer.tokenizer import Tokenizer
from tests import tiny
from tests.fake_hub import Hub, parquet

TRADITIONAL = "這個國家的學生說，他們來到學校時，會對老師問好；過了一天，他們還是這樣。"
SIMPLIFIED = "这个国家的学生说，他们来到学校时，会对老师问好；过了一天，他们还是这样。"
ENGLISH = "The students of this country say good morning to the teacher when they come to school, and so they do the next day."
TALK = [{"from": "human", "value": "這個字怎麼說？"}, {"from": "gpt", "value": "這個字對你來說不難。"}]
SIMPLE_TALK = [{"from": "human", "value": "这个字怎么说？"}, {"from": "gpt", "value": "这个字对你来说不难。"}]


def numbered(text: str, count: int, first: int = 0) -> list[str]:
    """Documents that differ."""
    return [f"{index}. {text * (1 + index % 3)}" for index in range(first, first + count)]


@pytest.fixture
def server(base: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub with the sets of zh-tw, small; a subset of one of them is in Simplified Chinese, and a tenth of another."""
    served = Hub()
    mixed = [text if index % 10 else SIMPLIFIED + text[:5] for index, text in enumerate(numbered(TRADITIONAL, 200, 5000))]
    served.files["botp/yentinglin-zh_TW_c4"] = {
        f"data/train-0000{index}-of-00003.parquet": parquet("", text=mixed[index::3], zh_id=list(range(len(mixed[index::3]))))
        for index in range(3)
    } | {"data/validation-00000-of-00001.parquet": parquet("", text=["never"] * 9)}
    served.files["HPLT/HPLT2.0_cleaned"] = {
        f"{subset}/train-0000{index}-of-00004.parquet": parquet("", text=numbered(text, 60, 1000 * index), id=["x"] * 60)
        for subset, text in (("zho_Hans", SIMPLIFIED), ("zho_Hant", TRADITIONAL))
        for index in range(4)
    }
    served.files["karpathy/fineweb-edu-100b-shuffle"] = {
        f"shard_{index:05}.parquet": parquet("", text=numbered(ENGLISH, 90, 1000 * index)) for index in (*range(4), 1822)
    }
    talks = [TALK] * 30 + [SIMPLE_TALK] * 10
    served.files["yentinglin/TaiwanChat"] = {"data/train-00000-of-00001.parquet": parquet("", conversations=talks)}
    english = [[{"role": "user", "content": f"Say {index}"}, {"role": "assistant", "content": f"{index}"}] for index in range(50)]
    served.files["HuggingFaceTB/smol-smoltalk"] = {"data/train-00000-of-00001.parquet": parquet("", messages=english)}
    monkeypatch.setenv("HF_ENDPOINT", served.url)
    monkeypatch.setattr(hub_module, "FIRST_WAIT", 0.001)
    monkeypatch.setattr(mixtures, "SHARD_TEXT_BYTES", 40_000)
    yield served
    served.server.shutdown()
    served.server.server_close()


def documents(dataset: Dataset) -> list[str]:
    return [text for shard in dataset.training for batch in texts(shard) for text in batch]


def kinds(found: list[str]) -> dict[str, float]:
    """Share of the bytes in each language."""
    sizes = Counter[str]()
    for text in found:
        sizes["english" if "students" in text else "simplified" if is_simplified(text) else "traditional"] += len(text.encode())
    return {name: size / sizes.total() for name, size in sizes.items()}


def test_a_mixture_has_its_shares_and_no_simplified_chinese(server: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    made = ensure_mixture(mixture("zh-tw"), 1)
    said = capsys.readouterr().err
    found = documents(made)
    assert kinds(found) == {"traditional": pytest.approx(0.6, abs=0.02), "english": pytest.approx(0.4, abs=0.02)}
    assert kinds(found[: len(found) // 4]) == {"traditional": pytest.approx(0.6, abs=0.03), "english": pytest.approx(0.4, abs=0.03)}
    assert sum(len(text.encode()) for text in found) == pytest.approx(40_000, rel=0.02)
    held_out = [text for batch in texts(made.validation) for text in batch]
    assert "simplified" not in kinds(held_out) and kinds(held_out)["english"] == pytest.approx(0.4, abs=0.05)
    assert not set(held_out) & set(found) and "never" not in found + held_out
    assert "documents left out, which are in Simplified Chinese" in said and "hf:botp/yentinglin-zh_TW_c4" in said
    for licence in ("hf:botp/yentinglin-zh_TW_c4: ODC-By 1.0", "hf:HPLT/HPLT2.0_cleaned/zho_Hant: CC0 1.0", "fineweb-edu: ODC-By 1.0"):
        assert licence in made.licence
    assert "zho_Hans" not in " ".join(server.requests)
    server.requests.clear()
    assert ensure_mixture(mixture("zh-tw"), 1) == made and server.requests == []


def test_the_same_mixture_is_the_same_anywhere(server: Hub, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever shards of its parts were there before; so a run that is resumed on another machine reads the same text."""
    first = ensure_mixture(mixture("zh-tw"), 1)
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tmp_path / "other"))
    ensure_shards("hf:HPLT/HPLT2.0_cleaned/zho_Hant", 3)
    again = ensure_mixture(mixture("zh-tw"), 1)
    assert [shard.sha256 for shard in (*again.training, again.validation)] == [
        shard.sha256 for shard in (*first.training, first.validation)
    ]
    assert again.folder.name == first.folder.name != ensure_mixture(mixture("zh-tw"), 2).folder.name


def test_a_small_part_is_read_again_and_then_the_mixture_ends(server: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    server.files["some/Small"] = {f"{name}.parquet": parquet("", text=numbered(TRADITIONAL, 20)) for name in "ab"}
    made = ensure_mixture(mixture("hf:some/Small@1,fineweb-edu@3"), 2)
    said = capsys.readouterr().err
    assert "hf:some/Small: read 4 time(s), because it has no more" in said
    found = documents(made)
    assert kinds(found) == {"traditional": pytest.approx(0.25, abs=0.02), "english": pytest.approx(0.75, abs=0.02)}
    assert Counter(found)["0. " + TRADITIONAL] == 4 and "because a part has no more" in said


def test_all_shards_are_those_that_the_hub_lists(server: Hub) -> None:
    """A mirror may have a part of a known dataset."""
    assert len(ensure_shards("fineweb-edu", 5000, or_all=True).training) == 4
    with pytest.raises(UsageError, match="1822 training shards, not 5000"):
        ensure_shards("fineweb-edu", 5000)


def test_interleaving_holds_the_shares_at_each_document() -> None:
    taken = Counter[str]()
    for text in interleave([iter(["aaaa"] * 90), iter(["b"] * 999), iter(["cc"] * 999)], [0.5, 0.2, 0.3], 400):
        taken[text[0]] += len(text)
        assert all(abs(taken[name] - share * taken.total()) < 5 for name, share in zip("abc", (0.5, 0.2, 0.3), strict=True))
    assert 400 <= taken.total() < 404


@pytest.mark.parametrize(
    ("text", "simplified"),
    [
        (TRADITIONAL, False),
        (SIMPLIFIED, True),
        (TRADITIONAL * 3 + SIMPLIFIED, False),
        (ENGLISH, False),
        (ENGLISH * 5 + "这个", False),
        ("", False),
        ("１２３，", False),
    ],
)
def test_the_two_ways_of_writing(text: str, simplified: bool) -> None:
    assert is_simplified(text) == simplified


def test_names() -> None:
    assert parts("a@3,b@1") == (Part("a", 0.75), Part("b", 0.25))
    assert is_mixture("zh-tw") and is_mixture("hf:A/B@0.6,climbmix@0.4") and not is_mixture("me@home.txt") and not is_mixture("climbmix")
    assert is_hub_name("hf:A/B") and is_hub_name("zh-tw") and not is_hub_name("talks.jsonl")
    where = origin("hf:A/B/sub.set:body")
    assert (where.repo, where.subset, where.column, where.folder) == ("A/B", "sub.set", "body", "hf--A--B+sub.set--body")
    assert origin("hf:A/B:body").folder == "hf--A--B--body" and origin("hf:A/B").folder == "hf--A--B"
    assert own_files(build_config("cpu", overrides={"chat_data": "zh-tw"})) == {}
    for name in catalogue()["mixtures"]:
        assert all(origin(part.name).licence != hub_module.UNKNOWN_LICENCE for part in mixture(name).texts)


@pytest.mark.parametrize(
    ("name", "wrong"), [("a@0,b@1", "'0' is not a share"), ("a@1,a@2", "names a twice"), ("a@1,b@1.2.3", "'1.2.3' is not a share")]
)
def test_a_wrong_mixture_is_one_clear_error(name: str, wrong: str) -> None:
    with pytest.raises(UsageError, match=wrong):
        mixture(name)


def test_a_directory_of_that_name_is_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    tiny.sentences(tmp_path / "zh-tw")
    with pytest.raises(UsageError) as caught:
        text_source(build_config("cpu", overrides={"data": "zh-tw"}))
    assert caught.value.hint == "use --dataset zh-tw, or --data ./zh-tw for a file or directory of that name"
    assert text_source(build_config("cpu", overrides={"data": "./zh-tw"})).fault is None


def test_an_unknown_part_is_one_clear_error(server: Hub) -> None:
    with pytest.raises(UsageError, match="cannot download a dataset 'climmix'"):
        text_source(build_config("cpu", overrides={"dataset": "climmix@1,fineweb-edu@1", "shards": 1})).missing()


def test_subsets_are_those_of_the_card(server: Hub) -> None:
    configs = [
        {"config_name": "fruit", "data_files": [{"split": "train", "path": ["x/a-*"]}, {"split": "test", "path": "x/t-*"}]},
        {"config_name": "rest", "data_files": "y/*"},
    ]
    server.assets["/api/datasets/some/Card"] = json.dumps({"cardData": {"configs": configs, "license": "mit"}}).encode()
    names = ("x/a-0", "x/a-1", "x/t-0", "y/b-0", "y/b-1")
    server.files["some/Card"] = {f"{name}.parquet": parquet(name) for name in names}
    found = ensure_shards("hf:some/Card/fruit", 1)
    assert [shard.path.name for shard in (*found.training, found.validation)] == ["x__a-0.parquet", "x__a-1.parquet"]
    assert found.licence == "mit" and found.source == "some/Card/fruit (Hugging Face)"
    assert [shard.path.name for shard in ensure_shards("hf:some/Card/rest", 1).training] == ["y__b-0.parquet"]
    with pytest.raises(UsageError) as caught:
        ensure_shards("hf:some/Card/frut", 1)
    assert "no subset 'frut'" in caught.value.message and "fruit, rest" in caught.value.hint


def test_conversations_by_share(server: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    config = build_config("cpu", overrides={"dataset": "zh-tw", "shards": 1, "num_iterations": 2, "sft_iterations": 2})
    found = text_source(config).conversations.load()
    chinese = sum("這個" in str(talk) for talk in found)
    assert (chinese, len(found) - chinese) == (75, 50) and not any("这个" in str(talk) for talk in found)
    said = capsys.readouterr().err
    assert (
        "60% from hf:yentinglin/TaiwanChat, 75 of its 30, some of them more" in said
        and "left out of the conversations: 10 conversations in Simplified" in said
    )
    assert Counter(str(talk) for talk in found if "這個" not in str(talk)).most_common(1)[0][1] == 1  # the larger set is read once
    assert list(blend(mixture("zh-tw").conversations, 42, True)) == list(found)  # by the seed
    chosen = text_source(build_config("cpu", overrides={"chat_data": "zh-tw"})).conversations
    assert len(chosen.inspect().split()) == 2 and len(chosen.load()) == 125
    assert text_source(config.replace(trial=True)).conversations.sets == ()


def test_the_plan_shows_each_part(server: Hub) -> None:
    config = build_config("cpu", overrides={"dataset": "zh-tw", "num_iterations": 2, "sft_iterations": 2, "shards": 1, "vocab_size": 512})
    shown = describe(make_plan(config))
    assert "30% of the text: hf:botp/yentinglin-zh_TW_c4, ODC-By 1.0, 0.4 GB to download" in " ".join(shown.split())
    assert "60% of the conversations: hf:yentinglin/TaiwanChat, CC BY-NC 4.0 (not for commercial use), 0.7 GB to download" in shown
    assert make_plan(config).disk_parts["mixture"] > 0
    text_source(config.replace(core_metric_max_per_task=0)).fetch()
    after = make_plan(config)
    assert after.download_bytes == 0 and "mixture" not in after.disk_parts
    assert all(part["download_bytes"] == 0 for part in after.data_parts) and "ODC-By 1.0, nothing to download" in describe(after)


def test_a_run_on_a_mixture(server: Hub, base: Path) -> None:
    """Pretrained by one call and fine-tuned by another: the tokenizer is the mixture's, the losses are those of a single call."""
    changes = tiny.MODEL | {"dataset": "zh-tw", "sft_iterations": 2, "vocab_size": 400, "shards": 1, "core_metric_max_per_task": 0}
    config = build_config("cpu", overrides=changes | {"run": "straight"})
    train(config)
    for stages in (("base",), ("base", "sft")):
        train(config.replace(run="halves"), stages)
    assert tiny.losses(base, "halves") == tiny.losses(base, "straight") and len(tiny.losses(base, "straight")) == 8
    (folder,) = [path.parent for path in (base / "tokenizer").glob("*/source.json")]
    tokens = Tokenizer.load(folder)
    assert len(tokens.encode("這個國家")) < 4 and len(tokens.encode("students")) < 5
