"""A small TOML becomes conversations about the model, and what is wrong in it is said with its key."""

from pathlib import Path

import pytest

from nanochat.data.conversation_files import read_conversations
from nanochat.data.embedded import identity
from nanochat.data.embedded.identity import conversations, read_identity, write_conversations
from nanochat.errors import DataError
from nanochat.tokenizer.conversation import conversation_fault

FULL = """
name = {en = "Formosa", zh-TW = "福爾摩沙"}
maker = "林美華"
languages = ["en", "zh-TW"]
traits = {en = ["patient", "curious"], zh-TW = ["有耐心", "好奇"]}
"""


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "who.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_conversations_in_both_languages(tmp_path: Path) -> None:
    talks = conversations(read_identity(written(tmp_path, FULL)))
    assert len(talks) == identity.COUNT == len({str(talk) for talk in talks})
    assert all(conversation_fault(talk, answered=True) is None for talk in talks)
    said = " ".join(message["content"] for talk in talks for message in talk)
    for words in ("I am Formosa", "林美華 made me", "我是福爾摩沙", "是林美華訓練我的", "patient and curious", "有耐心和好奇", "繁體中文"):
        assert words in said, words
    assert "{" not in said and "}" not in said
    chinese = sum(any("\u4e00" <= character <= "\u9fff" for character in talk[0]["content"]) for talk in talks)
    assert 0.4 < chinese / len(talks) < 0.6
    assert talks == conversations(read_identity(written(tmp_path, FULL)))


def test_one_language_and_no_traits(tmp_path: Path) -> None:
    talks = conversations(read_identity(written(tmp_path, 'name = "A {b} \\"c\\""\nmaker = "M"\nlanguages = ["zh-TW"]\n')), count=200)
    said = " ".join(message["content"] for talk in talks for message in talk)
    assert len(talks) == 200 and 'A {b} "c"' in said and "who" not in said.lower() and "盡量" not in said


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('maker = "M"', "name (en) is missing"),
        ('name = "A"\nmaker = 3', "maker (en) is missing or not a text: 3"),
        ('name = "A"\nmaker = "M"\ntraits = [1]', "traits (en)"),
        ('name = {en = "A"}\nmaker = "M"', "name (zh-TW) is missing"),
        ('name = "A"\nmaker = "M"\nlanguages = ["fr"]', "languages = ['fr']"),
        ('name = "A"\nmaker = "M"\nlanguages = []', "languages = []"),
        ('nane = "A"', "unknown key 'nane'"),
        ("name = A", "is not TOML"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(DataError) as raised:
        read_identity(written(tmp_path, text))
    assert words in raised.value.message and raised.value.hint


def test_a_file_that_is_there_is_kept(tmp_path: Path) -> None:
    talks = conversations(read_identity(written(tmp_path, FULL)), count=10)
    path = tmp_path / "out.jsonl"
    write_conversations(path, talks)
    assert list(read_conversations(path)) == talks
    with pytest.raises(DataError, match="not overwritten"):
        write_conversations(path, talks)
    with pytest.raises(DataError, match="cannot be read"):
        read_identity(tmp_path / "nowhere.toml")


def test_another_encoding_is_named(tmp_path: Path) -> None:
    """Notepad's "Unicode" is UTF-16."""
    (tmp_path / "who.toml").write_text('name = "A"\nmaker = "M"\n', encoding="utf-16")
    with pytest.raises(DataError, match="is not UTF-8") as raised:
        read_identity(tmp_path / "who.toml")
    assert raised.value.hint == "save it as UTF-8 in the editor"
