"""Hugging Face's tokenizer.json of a byte-level BPE, checked value by value: vocabulary, merges, split, special tokens."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nanochat import untrusted
from nanochat.errors import DataError
from nanochat.tokenizer.formats import GPT2_PATTERN, VOCABULARY_BYTES, byte_values, split_pattern
from nanochat.tokenizer.tokenizer import QWEN2_PATTERN, SPLIT_PATTERN

_AS_QWEN2 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
QWEN_PATTERN = _AS_QWEN2.format(r"\p{N}")  # as Qwen's own files write it
LLAMA3_PATTERN = _AS_QWEN2.format(r"\p{N}{1,3}")
# No other pattern is run, because a hostile one can take forever. Values: llama.cpp's name of the split, "" if it has none.
PATTERNS = {QWEN_PATTERN: "qwen2", QWEN2_PATTERN: "qwen2", LLAMA3_PATTERN: "llama-bpe", GPT2_PATTERN: "gpt-2", SPLIT_PATTERN: ""}
IDS = 2**22  # limit of ids
ADDED = 10_000  # limit of added tokens
NAME = 200  # characters of an added token
FLAGS = ("lstrip", "rstrip", "single_word")


@dataclass(frozen=True)
class Vocabulary:
    """A byte-level BPE: words in the characters that stand for bytes, and the tokens that were added to them."""

    pattern: str
    nfc: bool  # whether text is normalized before it is split
    ignore_merges: bool
    vocab: dict[str, int]  # without the added tokens
    merges: list[list[str]]
    added: dict[str, int]
    special: frozenset[str]  # those of `added` that decoded text leaves out

    def library_json(self) -> dict[str, Any]:
        """A tokenizer.json without the added tokens, for the package tokenizers."""
        return self._json([])

    def tokenizer_json(self) -> dict[str, Any]:
        """The whole tokenizer.json, for an export."""
        plain = dict.fromkeys((*FLAGS, "normalized"), False)
        order = sorted(self.added.items(), key=lambda item: item[1])
        found = self._json([{"id": id, "content": name, **plain, "special": name in self.special} for name, id in order])
        last = max(self.vocab.values())  # the library gives an added token its id only if it is behind the words or one of them
        found["model"]["vocab"] = self.vocab | {name: id for name, id in self.added.items() if id < last}
        return found

    def _json(self, added: list[dict[str, Any]]) -> dict[str, Any]:
        byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
        split = {"type": "Split", "pattern": {"Regex": self.pattern}, "behavior": "Isolated", "invert": False}
        model: dict[str, Any] = {"type": "BPE", "dropout": None, "unk_token": None}
        model |= {"continuing_subword_prefix": None, "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False}
        return {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": added,
            "normalizer": {"type": "NFC"} if self.nfc else None,
            "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, byte_level]},
            "post_processor": None,
            "decoder": byte_level,
            "model": model | {"ignore_merges": self.ignore_merges, "vocab": self.vocab, "merges": self.merges},
        }

    def to_dict(self) -> dict[str, Any]:
        """The values for a file that `from_dict` reads."""
        values = {"pattern": self.pattern, "nfc": self.nfc, "ignore_merges": self.ignore_merges, "vocab": self.vocab}
        return values | {"merges": self.merges, "added": self.added, "special": sorted(self.special)}

    @classmethod
    def from_dict(cls, value: Any) -> "Vocabulary":
        """The inverse of `to_dict`. Raises ValueError, KeyError, TypeError."""
        table = untrusted.table(value, "the vocabulary")
        flags = {name: table[name] for name in ("nfc", "ignore_merges")}
        if not all(type(flag) is bool for flag in flags.values()) or not isinstance(table["special"], list):
            raise ValueError("its settings are of a wrong type")
        added = {_name(name): untrusted.integer(id, "an id", 0, IDS - 1) for name, id in untrusted.table(table["added"], "added").items()}
        return _checked(table["pattern"], table["vocab"], table["merges"], added, frozenset(map(_name, table["special"])), **flags)


def read_vocabulary(path: Path) -> Vocabulary:
    """The vocabulary of a received tokenizer.json. Raises DataError with the reason if it is of a kind that is not supported."""
    try:
        content = untrusted.table(untrusted.read_json(path, VOCABULARY_BYTES), path.name)
        model = untrusted.table(content["model"], "its model")
        if model.get("type", "BPE") != "BPE":
            raise ValueError(f"its model is {untrusted.shown(model['type'])}, not a BPE")
        for name in ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback"):
            if model.get(name):
                raise ValueError(f"its BPE has {name} = {untrusted.shown(model[name])}, which is not supported")
        normalizer = content.get("normalizer")
        if normalizer == {"type": "Sequence", "normalizers": [{"type": "NFC"}]}:
            normalizer = {"type": "NFC"}
        if normalizer not in (None, {"type": "NFC"}):
            raise ValueError(f"its normalizer is {untrusted.shown(normalizer)}; only NFC is supported")
        added, special = _added(content.get("added_tokens") or [])
        words = {word: id for word, id in untrusted.table(model["vocab"], "its vocabulary").items() if word not in added}
        merges = [merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"]]
        flags = {"nfc": normalizer is not None, "ignore_merges": model.get("ignore_merges") is True}
        return _checked(split_pattern(content["pre_tokenizer"]), words, merges, added, special, **flags)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise DataError(
            f"cannot use {path}: {untrusted.reason(error)}",
            "use a model with a byte-level BPE tokenizer and the split of Qwen, Llama 3 or GPT-2",
        ) from error


def _added(entries: Any) -> tuple[dict[str, int], frozenset[str]]:
    """The added tokens and which of them are special. Raises ValueError, KeyError, TypeError."""
    if not isinstance(entries, list) or len(entries) > ADDED:
        raise ValueError(f"it has more than {ADDED:,} added tokens")
    added: dict[str, int] = {}
    for entry in entries:
        name = _name(untrusted.table(entry, "an added token")["content"])
        if any(entry.get(flag) for flag in FLAGS):
            raise ValueError(f"the added token {untrusted.shown(name)} takes the blanks around it or only whole words")
        if name in added:
            raise ValueError(f"the added token {untrusted.shown(name)} is there twice")
        added[name] = untrusted.integer(entry["id"], "an added token's id", 0, IDS - 1)
    return added, frozenset(entry["content"] for entry in entries if entry.get("special") is True)


def _name(value: Any) -> str:
    name = untrusted.text(value, "an added token", NAME)
    if not name or name != untrusted.encodable(name):
        raise ValueError(f"an added token is {untrusted.shown(name)}")
    return name


def _checked(
    pattern: Any, vocab: Any, merges: Any, added: Mapping[str, int], special: frozenset[str], *, nfc: bool, ignore_merges: bool
) -> Vocabulary:
    """A vocabulary whose parts fit together. Raises ValueError, TypeError."""
    if pattern not in PATTERNS:
        raise ValueError(f"its split pattern {untrusted.shown(pattern, 200)} is unknown")
    words = {word: untrusted.integer(id, "an id", 0, IDS - 1) for word, id in untrusted.table(vocab, "its vocabulary").items()}
    ids = [*words.values(), *added.values()]
    if len(set(ids)) != len(ids):
        raise ValueError("two of its tokens have one id")
    values = byte_values()
    if missing := [mark for mark in values if mark not in words]:
        raise ValueError(f"its vocabulary lacks {len(missing)} of the 256 bytes")
    if wrong := next((word for word in words if not word or not all(mark in values for mark in word)), None):
        raise ValueError(f"its token {untrusted.shown(wrong)} is not byte-level")
    if not isinstance(merges, list) or len(merges) > IDS or special - added.keys():
        raise ValueError("its merges or special tokens are not lists of known tokens")
    pairs = []
    for merge in merges:
        first, second = merge
        if not (isinstance(first, str) and isinstance(second, str)) or not {first, second, first + second} <= words.keys():
            raise ValueError(f"its merge {untrusted.shown(merge)} has tokens that are not in the vocabulary")
        pairs.append([first, second])
    return Vocabulary(pattern, nfc, ignore_merges, words, pairs, dict(added), special)
