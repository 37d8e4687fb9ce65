"""A tokenizer in an exported directory: its two files, and the chat template."""

import re
import shutil
from pathlib import Path
from typing import Any

from nanochat import paths
from nanochat.errors import DataError
from nanochat.tokenizer.conversation import SPECIAL_TOKENS
from nanochat.tokenizer.formats import huggingface, read_huggingface
from nanochat.tokenizer.tokenizer import QWEN2_PATTERN, SPLIT_PATTERN, Tokenizer

TEMPLATE = Path(__file__).with_name("chat_template.jinja")


def tokenizer_json(tokenizer: Tokenizer) -> dict[str, Any]:
    """The content of Hugging Face's tokenizer.json."""
    return huggingface(tokenizer.tokens, tokenizer.pattern, tokenizer.specials)


def read_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer in an exported tokenizer.json. Raises DataError for any other tokenizer."""
    tokens, pattern, specials = read_huggingface(path)
    if pattern not in (SPLIT_PATTERN, QWEN2_PATTERN):  # no other pattern is run, because a hostile one can take forever
        raise DataError(f"{path} has an unknown split pattern", "export the run again")
    tokenizer = Tokenizer(tokens, pattern)
    if tokenizer.specials != specials:
        raise DataError(f"the special tokens of {path} are not {', '.join(SPECIAL_TOKENS)}", "export the run again")
    return tokenizer


def write_tokenizer(folder: Path, tokenizer: Tokenizer, context: int) -> None:
    """Write the tokenizer's files into the directory of an export."""
    paths.atomic_write_json(folder / "tokenizer.json", tokenizer_json(tokenizer))
    paths.atomic_write_json(folder / "tokenizer_config.json", tokenizer_config(context))
    shutil.copyfile(TEMPLATE, folder / TEMPLATE.name)


def plain_template() -> str:
    """The chat template without the marks of the assistant's tokens (`generation`), which transformers added to Jinja."""
    return re.sub(r"\{%- (?:end)?generation -%\}\s*", "", TEMPLATE.read_text(encoding="utf-8"))


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
