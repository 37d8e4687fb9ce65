"""Reading and writing of tiktoken's rank files and Hugging Face's tokenizer.json, with equal encodings.

A file that cannot be encoded equally here, with a normalizer or tokens out of the order of their merges, is refused.
"""

import base64
import binascii
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nanochat import untrusted
from nanochat.errors import DataError

VOCABULARY_BYTES = 256 << 20  # size limit of a vocabulary's file; one with a million tokens has some 100 MB

# The default pattern of a ByteLevel pre-tokenizer.
GPT2_PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


def ranks_text(tokens: Sequence[bytes]) -> str:
    """The content of tiktoken's rank file: lines of a base64 token and its rank."""
    return "".join(f"{base64.b64encode(token).decode()} {rank}\n" for rank, token in enumerate(tokens))


def parse_ranks(text: str) -> list[bytes]:
    """The tokens of a rank file's content, in rank order. Raises ValueError for a bad line or a missing rank."""
    ranked = []
    for number, line in enumerate(text.splitlines(), 1):
        token, _, rank = line.partition(" ")
        try:
            ranked.append((int(rank), base64.b64decode(token, validate=True)))
        except (ValueError, binascii.Error) as error:
            raise ValueError(f"line {number} is not a token and its rank") from error
    ranked.sort()
    if [rank for rank, _ in ranked] != list(range(len(ranked))):
        raise ValueError(f"the {len(ranked)} ranks are not 0 to {len(ranked) - 1}")
    return [token for _, token in ranked]


def read_ranks(path: Path) -> list[bytes]:
    """The tokens of tiktoken's rank file, which has no pattern and no special tokens. Raises DataError if it cannot be read."""
    try:
        return parse_ranks(untrusted.read_bytes(path, VOCABULARY_BYTES).decode("ascii"))
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path} is not a rank file: {untrusted.reason(error)}", "write each line as a token in base64, a space and its rank"
        ) from error


def _byte_characters() -> list[str]:
    """The printable character that byte-level tokenizers write for each byte."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = iter(range(0x100, 0x200))
    return [chr(byte) if byte in printable else chr(next(others)) for byte in range(256)]


_CHARACTERS = _byte_characters()


def byte_values() -> dict[str, int]:
    """The byte that each of the printable characters stands for."""
    return {character: byte for byte, character in enumerate(_CHARACTERS)}


def written(token: bytes) -> str:
    """A token's bytes as printable characters."""
    return "".join(_CHARACTERS[byte] for byte in token)


def merges(tokens: Sequence[bytes]) -> list[tuple[str, str]]:
    """All pairs of tokens that merge into one, in the order of that token's rank, as rustbpe merges them."""
    known = set(tokens)
    return [
        (written(token[:cut]), written(token[cut:]))
        for token in tokens
        for cut in range(1, len(token))
        if token[:cut] in known and token[cut:] in known
    ]


def huggingface(tokens: Sequence[bytes], pattern: str, specials: Mapping[str, int]) -> dict[str, Any]:
    """The content of a tokenizer.json that encodes like `rustbpe.Encoding(tokens, pattern, specials)`.

    The exception is text that spells a special token: rustbpe encodes it as text, Hugging Face's library as the special token.
    """
    special = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": id, "content": name, **special} for name, id in sorted(specials.items(), key=lambda item: item[1])],
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, byte_level]},
        "post_processor": None,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {written(token): id for id, token in enumerate(tokens)},
            "merges": [list(pair) for pair in merges(tokens)],
        },
    }


def split_pattern(pre_tokenizer: Any) -> str:
    """The split pattern of a byte-level pre-tokenizer. Raises ValueError for any other."""
    steps = pre_tokenizer["pretokenizers"] if pre_tokenizer["type"] == "Sequence" else [pre_tokenizer]
    *splits, byte_level = steps
    if byte_level["type"] != "ByteLevel" or byte_level.get("add_prefix_space") or len(splits) > 1:
        raise ValueError("its pre-tokenizer is not byte-level")
    if not splits:
        if not byte_level.get("use_regex", True):
            raise ValueError("its pre-tokenizer does not split")
        return GPT2_PATTERN
    split = splits[0]
    if byte_level.get("use_regex", True) or (split["type"], split["behavior"], split.get("invert")) != ("Split", "Isolated", False):
        raise ValueError("its pre-tokenizer has more than one split")
    return str(split["pattern"]["Regex"])


def read_huggingface(path: Path) -> tuple[list[bytes], str, dict[str, int]]:
    """(tokens, pattern, specials) of a byte-level tokenizer.json. Raises DataError if rustbpe cannot encode like it."""
    try:
        content = untrusted.read_json(path, VOCABULARY_BYTES)
        model = content["model"]
        if content.get("normalizer"):
            raise ValueError("it has a normalizer")
        if model["type"] != "BPE" or any(
            model.get(key) for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback")
        ):
            raise ValueError("its model is not a plain BPE")
        specials = {
            untrusted.text(added["content"], "a special token"): untrusted.integer(added["id"], "its id")
            for added in content.get("added_tokens") or []
        }
        bytes_of = byte_values()
        ids = {word: untrusted.integer(id, "an id") for word, id in model["vocab"].items() if word not in specials}
        if sorted(ids.values()) != list(range(len(ids))):
            raise ValueError(f"its {len(ids)} tokens do not have the ids 0 to {len(ids) - 1}")
        made = [ids["".join(merge.split(" ") if isinstance(merge, str) else merge)] for merge in model["merges"]]
        if made != sorted(made) or len(set(made)) != len(ids) - 256:
            raise ValueError("its merges are not in the order of its tokens")
        tokens = [bytes(bytes_of[character] for character in word) for word in sorted(ids, key=lambda word: ids[word])]
        return tokens, split_pattern(content["pre_tokenizer"]), specials
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise DataError(
            f"cannot use {path}: {untrusted.reason(error)}", "choose a byte-level BPE whose tokens are in the order of its merges"
        ) from error
