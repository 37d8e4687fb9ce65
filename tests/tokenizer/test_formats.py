"""Vocabularies in others' formats: written, read again, and refused where ids would differ."""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import rustbpe
from nanochat.errors import DataError
from nanochat.tokenizer.formats import GPT2_PATTERN, huggingface, parse_ranks, ranks_text, read_huggingface, read_ranks
from nanochat.tokenizer.tokenizer import SPLIT_PATTERN

TOKENS = rustbpe.train(["hello world, hello there 123 你好世界 你好 naïve café\n" * 3], 300, SPLIT_PATTERN)
SPECIALS = {"<|bos|>": len(TOKENS), "<|end|>": len(TOKENS) + 1}


def test_ranks_come_back(tmp_path: Path) -> None:
    text = ranks_text(TOKENS)
    assert text.startswith("AA== 0\nAQ== 1\n")
    (tmp_path / "x.tiktoken").write_text("\n".join(reversed(text.splitlines())))
    assert read_ranks(tmp_path / "x.tiktoken") == parse_ranks(text) == TOKENS


@pytest.mark.parametrize("text", ["AA== 0\nAQ== 2\n", "AA== 0\nAQ== 0\n", "A 0\n", "AA== x\n", "AA==\n", "AA== 0\n\nAQ== 1\n", "é 0\n"])
def test_what_is_no_file_of_ranks(tmp_path: Path, text: str) -> None:
    (tmp_path / "x").write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match="not a rank file"):
        read_ranks(tmp_path / "x")
    with pytest.raises(DataError):
        read_ranks(tmp_path / "missing")


def exported(tmp_path: Path) -> tuple[Path, dict[str, Any]]:
    content = huggingface(TOKENS, SPLIT_PATTERN, SPECIALS)
    (tmp_path / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    return tmp_path / "tokenizer.json", content


def test_huggingface_comes_back(tmp_path: Path) -> None:
    path, content = exported(tmp_path)
    assert read_huggingface(path) == (TOKENS, SPLIT_PATTERN, SPECIALS)
    assert content["model"]["vocab"]["Ġ"] == 32
    content["model"]["merges"] = [" ".join(merge) for merge in content["model"]["merges"]]  # as older versions write them
    content["model"]["vocab"]["<|bos|>"] = SPECIALS["<|bos|>"]
    path.write_text(json.dumps(content), encoding="utf-8")
    assert read_huggingface(path) == (TOKENS, SPLIT_PATTERN, SPECIALS)


def merge_like_huggingface(content: dict[str, Any], piece: bytes) -> list[int]:
    """The exported merges by their own rule: always the first of the list, wherever it is leftmost."""
    characters = {id: word for word, id in content["model"]["vocab"].items()}
    order = {tuple(merge): i for i, merge in enumerate(content["model"]["merges"])}
    parts = [characters[byte] for byte in piece]
    while found := min(((order[a, b], i) for i, (a, b) in enumerate(pairwise(parts)) if (a, b) in order), default=None):
        parts[found[1] : found[1] + 2] = ["".join(parts[found[1] : found[1] + 2])]
    return [content["model"]["vocab"][part] for part in parts]


@given(st.text(alphabet="helowrdt你好世ïvé", min_size=1, max_size=30))
def test_exported_merges_encode_equally(text: str) -> None:
    content = huggingface(TOKENS, SPLIT_PATTERN, {})
    assert merge_like_huggingface(content, text.encode()) == rustbpe.Encoding(TOKENS, SPLIT_PATTERN).encode(text)


def test_gpt2s_own_split(tmp_path: Path) -> None:
    path, content = exported(tmp_path)
    content["pre_tokenizer"] = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    path.write_text(json.dumps(content), encoding="utf-8")
    assert read_huggingface(path)[1] == GPT2_PATTERN


def test_what_cannot_be_encoded_equally(tmp_path: Path) -> None:
    def refuse(*keys: str, value: Any) -> None:
        path, content = exported(tmp_path)
        place = content
        for key in keys[:-1]:
            place = place[key]
        place[keys[-1]] = value
        path.write_text(json.dumps(content), encoding="utf-8")
        with pytest.raises(DataError, match="cannot use"):
            read_huggingface(path)

    content = huggingface(TOKENS, SPLIT_PATTERN, {})
    refuse("normalizer", value={"type": "NFC"})
    refuse("model", "type", value="Unigram")
    refuse("model", "byte_fallback", value=True)
    refuse("model", "merges", value=content["model"]["merges"][::-1])
    refuse("model", "merges", value=content["model"]["merges"][1:])
    refuse("model", "merges", value=[["no", "such"]])
    refuse("model", "vocab", value={"a": 0, "b": 5})
    refuse("pre_tokenizer", value={"type": "Metaspace"})
    refuse("pre_tokenizer", value={"type": "ByteLevel", "use_regex": False})
    refuse("pre_tokenizer", value=None)
    refuse("model", value=[])
    with pytest.raises(DataError):
        read_huggingface(tmp_path / "missing.json")
