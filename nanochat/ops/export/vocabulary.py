"""A tokenizer as other libraries read it: tokenizer.json with its merges, and the chat template."""

from pathlib import Path
from typing import Any

from nanochat.errors import DataError
from nanochat.tokenizer import SPECIAL_TOKENS, Tokenizer

TEMPLATE = Path(__file__).with_name("chat_template.jinja")


def _alphabet() -> list[str]:
    """The printable character that stands for each byte in such files (GPT-2's table)."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = iter(range(0x100, 0x200))
    return [chr(byte) if byte in plain else chr(next(others)) for byte in range(256)]


_LETTERS = _alphabet()
_BYTES = {letter: byte for byte, letter in enumerate(_LETTERS)}


def written(token: bytes) -> str:
    """A token's bytes as the letters that stand for them."""
    return "".join(_LETTERS[byte] for byte in token)


def merges(tokenizer: Tokenizer) -> list[tuple[str, str]]:
    """Every pair of tokens that together are one, in the order of that one's rank: what our encoder merges, said pair by pair."""
    known = set(tokenizer.tokens)
    return [
        (written(token[:cut]), written(token[cut:]))
        for token in tokenizer.tokens
        for cut in range(1, len(token))
        if token[:cut] in known and token[cut:] in known
    ]


def tokenizer_json(tokenizer: Tokenizer) -> dict[str, Any]:
    """The content of Hugging Face's tokenizer.json."""
    specials = [
        {"id": id, "content": name, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
        for name, id in tokenizer.specials.items()
    ]
    split = {"type": "Split", "pattern": {"Regex": tokenizer.pattern}, "behavior": "Isolated", "invert": False}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": specials,
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
            "vocab": {written(token): id for id, token in enumerate(tokenizer.tokens)},
            "merges": [list(pair) for pair in merges(tokenizer)],
        },
    }


def read_tokenizer(about: dict[str, Any]) -> Tokenizer:
    """The inverse of `tokenizer_json`. Raises DataError where it is not such a tokenizer."""
    try:
        vocab = about["model"]["vocab"]
        (split, _) = about["pre_tokenizer"]["pretokenizers"]
        ordered = sorted(vocab, key=vocab.__getitem__)
        tokenizer = Tokenizer([bytes(_BYTES[letter] for letter in token) for token in ordered], split["pattern"]["Regex"])
        if tokenizer.specials != {entry["content"]: entry["id"] for entry in about["added_tokens"]}:
            raise ValueError(f"its special tokens are not {', '.join(SPECIAL_TOKENS)}")
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"tokenizer.json is not one that export wrote: {error}", "export the run again") from error
    return tokenizer


def tokenizer_config(context: int) -> dict[str, Any]:
    """The content of tokenizer_config.json: which specials begin and end what, for transformers' pipelines."""
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<|bos|>",
        "eos_token": "<|assistant_end|>",
        "pad_token": "<|bos|>",
        "model_max_length": context,
        "padding_side": "left",
        "clean_up_tokenization_spaces": False,
        "add_bos_token": False,
    }
