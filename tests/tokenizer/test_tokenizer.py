"""The tokenizer: round trips, files, streaming, and what of a conversation is learnt."""

import base64
import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanochat.errors import DataError, UsageError
from nanochat.tokenizer.conversation import SPECIAL_TOKENS, Conversation, validate_conversation
from nanochat.tokenizer.tokenizer import SPLIT_PATTERN, Tokenizer

TEXTS = ["The cat sat on the mat. " * 5, "你是誰？我是小助手。" * 5, "12 + 34 = 46\n" * 5, "naïve café 🎈🎈 don't"]
TOKENIZER = Tokenizer.train(TEXTS, 320)
ANY_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=80) | st.sampled_from(SPECIAL_TOKENS)


def test_layout_of_the_vocabulary() -> None:
    assert TOKENIZER.vocab_size == 320
    assert TOKENIZER.tokens[:256] == [bytes([b]) for b in range(256)]
    assert [TOKENIZER.special(name) for name in SPECIAL_TOKENS] == list(range(311, 320))
    assert TOKENIZER.bos == 311
    with pytest.raises(KeyError):
        TOKENIZER.special("<|nothing|>")


@given(ANY_TEXT)
def test_text_comes_back_and_never_holds_a_special(text: str) -> None:
    ids = TOKENIZER.encode(text)
    assert TOKENIZER.decode(ids) == text
    assert all(id < TOKENIZER.bos for id in ids)
    assert sum(TOKENIZER.token_bytes()[ids]) == len(text.encode())


def test_a_batch_equals_one_by_one() -> None:
    texts = ["", *TEXTS, "", "x"]
    ids, offsets = TOKENIZER.encode_batch(texts)
    assert ids.dtype == np.uint16
    assert offsets.dtype == np.int64
    assert [ids[a:b].tolist() for a, b in pairwise(offsets)] == [TOKENIZER.encode(text) for text in texts]


def test_token_bytes() -> None:
    lengths = TOKENIZER.token_bytes()
    assert lengths.dtype == np.int64
    assert lengths.tolist() == [len(token) for token in TOKENIZER.tokens] + [0] * len(SPECIAL_TOKENS)


def test_decode_shows_specials_and_bad_bytes() -> None:
    cut = "你".encode()[:2]
    assert TOKENIZER.decode([TOKENIZER.bos, *cut, *b"a"]) == "<|bos|>\ufffda"
    assert TOKENIZER.decode(np.array([104, 105], dtype=np.uint16)) == "hi"
    with pytest.raises(ValueError):
        TOKENIZER.decode([320])


def test_lone_surrogates_are_refused() -> None:
    with pytest.raises(ValueError):
        TOKENIZER.encode("a\ud800b")


def test_training_limits(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UsageError, match="too small"):
        Tokenizer.train(TEXTS, 264)
    assert Tokenizer.train(TEXTS, 265).vocab_size == 265
    assert not capsys.readouterr().err
    small = Tokenizer.train(["abab"], 1000)
    assert small.vocab_size == len(small.tokens) + 9 < 1000
    assert "instead of 1,000" in capsys.readouterr().err
    assert Tokenizer.train([], 300).vocab_size == 265


def test_training_reads_no_more_than_it_should() -> None:
    read = []

    def texts():
        for text in ("ab" * 50, "cd" * 50, "ef" * 50):
            read.append(text)
            yield text

    tokenizer = Tokenizer.train(texts(), 300, document_characters=10, max_characters=15)
    assert read == ["ab" * 50, "cd" * 50]
    assert b"abab" in tokenizer.tokens
    assert tokenizer.id == Tokenizer.train(["ab" * 5, "cdcdc"], 300).id


def test_an_interruption_while_training_passes_through() -> None:
    def texts():
        yield "text"
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Tokenizer.train(texts(), 300)


# Files


def test_save_and_load(base: Path) -> None:
    folder = base / "tokenizer" / TOKENIZER.id
    TOKENIZER.save(folder)
    assert sorted(file.name for file in folder.parent.iterdir()) == [TOKENIZER.id]
    assert sorted(file.name for file in folder.iterdir()) == ["ranks.txt", "tokenizer.json"]
    first = (folder / "ranks.txt").read_text().splitlines()[0]
    assert first == f"{base64.b64encode(bytes(1)).decode()} 0"
    about = json.loads((folder / "tokenizer.json").read_text())
    assert (about["pattern"], about["id"], about["vocab_size"]) == (SPLIT_PATTERN, TOKENIZER.id, 320)
    loaded = Tokenizer.load(folder)
    assert (loaded.id, loaded.tokens, loaded.vocab_size) == (TOKENIZER.id, TOKENIZER.tokens, 320)
    TOKENIZER.save(folder)  # again: nothing to do
    assert Tokenizer.load(folder).id == TOKENIZER.id


def test_the_id_stands_for_the_tokens() -> None:
    tokens = TOKENIZER.tokens
    assert len(TOKENIZER.id) == 12
    assert int(TOKENIZER.id, 16) >= 0
    assert Tokenizer(tokens).id == TOKENIZER.id
    assert Tokenizer(tokens[:-1]).id != TOKENIZER.id
    assert Tokenizer([*tokens[:-2], tokens[-1], tokens[-2]]).id != TOKENIZER.id
    assert Tokenizer(tokens, pattern=SPLIT_PATTERN.replace("{1,2}", "{1,3}")).id != TOKENIZER.id


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("damage", [Path.unlink, _cut, _flip, lambda path: path.write_bytes(b"\xff")])
@pytest.mark.parametrize("name", ["ranks.txt", "tokenizer.json"])
def test_damage_is_found_and_repaired(tmp_path: Path, name: str, damage) -> None:
    folder = tmp_path / "tokenizer"
    TOKENIZER.save(folder)
    damage(folder / name)
    with pytest.raises(DataError):
        Tokenizer.load(folder)
    TOKENIZER.save(folder)
    assert Tokenizer.load(folder).id == TOKENIZER.id


def test_another_format_is_refused(tmp_path: Path) -> None:
    TOKENIZER.save(tmp_path / "t")
    path = tmp_path / "t" / "tokenizer.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 3}))
    with pytest.raises(DataError, match="format 3"):
        Tokenizer.load(tmp_path / "t")


# Streaming


def _stream(ids: list[int]) -> list[str]:
    decoder = TOKENIZER.stream_decoder()
    return [*(decoder.push(id) for id in ids), decoder.flush()]


@given(ANY_TEXT)
def test_a_stream_yields_the_text_in_whole_code_points(text: str) -> None:
    pieces = _stream(TOKENIZER.encode(text))
    assert "".join(pieces) == text
    assert "\ufffd" in text or not any("\ufffd" in piece for piece in pieces)


@given(st.lists(st.integers(0, TOKENIZER.bos - 1), max_size=40))
def test_a_stream_of_any_tokens_equals_decoding_at_once(ids: list[int]) -> None:
    assert "".join(_stream(ids)) == TOKENIZER.decode(ids)


def test_bad_bytes_come_at_once_and_half_code_points_wait() -> None:
    assert _stream([0xFF, ord("a")]) == ["\ufffd", "a", ""]
    assert _stream([0xE4, 0xBD, 0xA0]) == ["", "", "你", ""]
    assert _stream([0xE4, 0xBD, ord("a")]) == ["", "", "\ufffda", ""]
    assert _stream([0xE4, 0xBD]) == ["", "", "\ufffd"]
    assert _stream([0xE4, TOKENIZER.bos, ord("a"), TOKENIZER.special("<|user_end|>")]) == ["", "\ufffd", "a", "", ""]


# Conversations

CALL: Conversation = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "12 + 34?"},
    {
        "role": "assistant",
        "content": [
            {"type": "text", "text": "It is "},
            {"type": "python", "text": "12+34"},
            {"type": "python_output", "text": "46"},
            {"type": "text", "text": "46."},
        ],
    },
    {"role": "user", "content": "Thanks"},
    {"role": "assistant", "content": "Welcome"},
]


def test_rendering_token_by_token() -> None:
    encode, special = TOKENIZER.encode, TOKENIZER.special
    expected: list[tuple[list[int], int]] = [
        ([special("<|bos|>")], 0),
        ([special("<|user_start|>"), *encode("Be brief.\n\n12 + 34?"), special("<|user_end|>")], 0),
        ([special("<|assistant_start|>")], 0),
        (encode("It is "), 1),
        ([special("<|python_start|>"), *encode("12+34"), special("<|python_end|>")], 1),
        ([special("<|output_start|>"), *encode("46"), special("<|output_end|>")], 0),
        (encode("46."), 1),
        ([special("<|assistant_end|>")], 1),
        ([special("<|user_start|>"), *encode("Thanks"), special("<|user_end|>")], 0),
        ([special("<|assistant_start|>")], 0),
        ([*encode("Welcome"), special("<|assistant_end|>")], 1),
    ]
    ids, mask = TOKENIZER.render(CALL)
    assert ids == [id for piece, _ in expected for id in piece]
    assert mask == [trained for piece, trained in expected for _ in piece]
    assert CALL[1]["content"] == "12 + 34?"  # the caller's conversation is left alone


@given(st.integers(0, 100))
def test_rendering_is_cut(length: int) -> None:
    ids, mask = TOKENIZER.render(CALL)
    assert TOKENIZER.render(CALL, length) == (ids[:length], mask[:length])


@given(ANY_TEXT, ANY_TEXT)
def test_text_never_becomes_a_special(question: str, answer: str) -> None:
    ids, mask = TOKENIZER.render([{"role": "user", "content": question}, {"role": "assistant", "content": answer}])
    names = ["<|bos|>", "<|user_start|>", "<|user_end|>", "<|assistant_start|>", "<|assistant_end|>"]
    assert [id for id in ids if id >= TOKENIZER.bos] == [TOKENIZER.special(name) for name in names]
    assert sum(mask) == len(TOKENIZER.encode(answer)) + 1


@given(st.integers(1, 6), st.booleans(), st.integers(10, 120))
def test_a_prompt_loses_its_oldest_turns(turns: int, with_system: bool, room: int) -> None:
    system = [{"role": "system", "content": "Be kind."}] if with_system else []
    talk: Conversation = []
    for turn in range(turns):
        talk += [{"role": "user", "content": f"question {turn}"}, {"role": "assistant", "content": f"answer {turn}"}]
    talk.append({"role": "user", "content": "last"})

    def slow(dropped: int) -> list[int]:
        return [*TOKENIZER.render(system + talk[2 * dropped :])[0], TOKENIZER.special("<|assistant_start|>")]

    fitting = [dropped for dropped in range(turns + 1) if len(slow(dropped)) <= room]
    if not fitting:
        with pytest.raises(UsageError, match="at most"):
            TOKENIZER.render_prompt(system + talk, room)
        return
    ids, dropped = TOKENIZER.render_prompt(system + talk, room)
    assert dropped == fitting[0]
    assert ids == slow(dropped)


def test_a_prompt_ends_with_the_user() -> None:
    with pytest.raises(DataError, match="end with a user message"):
        TOKENIZER.render_prompt(CALL, 1000)


USER = {"role": "user", "content": "hi"}


@pytest.mark.parametrize(
    ("conversation", "why"),
    [
        ("hi", "a str"),
        ({"messages": []}, "a dict"),
        ([], "no user message"),
        ([{"role": "system", "content": "x"}], "no user message"),
        (["hi"], "message 1 is not an object"),
        ([{"role": "user"}], "message 1 is not an object"),
        ([{"role": "assistant", "content": "x"}], "'assistant' instead of 'user'"),
        ([USER, USER], "message 2 has the role 'user'"),
        ([USER, {"role": "tool", "content": "x"}], "'tool'"),
        ([USER, {"role": "system", "content": "x"}], "'system'"),
        ([{"role": ["user"], "content": "x"}], "instead of 'user'"),
        ([{"role": "user", "content": None}], "content of message 1"),
        ([{"role": "user", "content": [{"type": "text", "text": "x"}]}], "content of message 1"),
        ([{"role": "user", "content": "\ud800"}], "not valid text"),
        ([{"role": "system", "content": 1}, USER], "content of message 1"),
        ([USER, {"role": "assistant", "content": [{"type": "image", "text": "x"}]}], "message 2 has a part"),
        ([USER, {"role": "assistant", "content": [{"type": ["text"], "text": "x"}]}], "message 2 has a part"),
        ([USER, {"role": "assistant", "content": [{"type": "text"}]}], "message 2 has a part"),
        ([USER, {"role": "assistant", "content": ["x"]}], "message 2 has a part"),
    ],
)
def test_what_is_no_conversation(conversation, why: str) -> None:
    with pytest.raises(DataError, match=why):
        validate_conversation(conversation)
    with pytest.raises(DataError):
        TOKENIZER.render(conversation)
