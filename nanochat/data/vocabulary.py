"""The tokenizer of a dataset's text, trained once."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nanochat import paths, untrusted
from nanochat.console import Progress, log
from nanochat.data.shards import Dataset, texts
from nanochat.tokenizer.tokenizer import QWEN2_PATTERN, SPLIT_PATTERN, Tokenizer

TOKENIZER_CHARACTERS = 2_000_000_000
TOKENIZER_SOURCE = "source.json"  # in a tokenizer's folder: what it was trained from


def ensure_tokenizer(dataset: Dataset, vocab_size: int, architecture: str = "nanochat") -> Tokenizer:
    """The tokenizer of `dataset`'s first 2 billion characters, trained once. Raises DataError if there is no text."""
    key = {
        "shards": [shard.content for shard in dataset.training],
        "vocab_size": vocab_size,
        "characters": TOKENIZER_CHARACTERS,
        "format": 1,
    }
    pattern = QWEN2_PATTERN if architecture == "portable" else SPLIT_PATTERN
    if pattern != SPLIT_PATTERN:
        key["pattern"] = pattern
    for source in (paths.base_dir() / "tokenizer").glob(f"*/{TOKENIZER_SOURCE}"):
        if not source.parent.name.startswith(paths.TEMPORARY) and _source(source) == key:
            return Tokenizer.load(source.parent)
    log(f"training a tokenizer of {vocab_size} tokens")
    with Progress(
        "reading text for the tokenizer", TOKENIZER_CHARACTERS if dataset.text_bytes is None else dataset.text_bytes, "characters"
    ) as bar:

        def read() -> Iterator[str]:
            for shard in dataset.training:
                for batch in texts(shard):
                    for text in batch:
                        yield text
                        bar.advance(len(text))

        tokenizer = Tokenizer.train(read(), vocab_size, pattern=pattern, max_characters=TOKENIZER_CHARACTERS)
    folder = paths.tokenizer_dir(tokenizer.id)
    try:
        tokenizer.save(folder)
        paths.atomic_write_json(folder / TOKENIZER_SOURCE, key)
    except OSError as error:
        raise paths.disk_error(error, "saving the tokenizer") from error
    return tokenizer


def _source(path: Path) -> Any:
    """The dataset that a tokenizer was trained on; None if its file is damaged, so that another one is trained."""
    try:
        return untrusted.read_json(path, untrusted.JSON_BYTES)
    except (OSError, ValueError):
        return None
