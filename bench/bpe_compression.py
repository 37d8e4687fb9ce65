"""Bytes per token on text that the vocabulary was not trained on, by size of the vocabulary, and for other rank files.

    bench/bpe_compression.py [--text FOLDER_OF_PARQUET] [--chinese FOLDER_OF_PARQUET] [--ranks cl100k_base.tiktoken ...]

A vocabulary is trained on nine of ten documents of all kinds together, and measured on the tenth. Without directories: Python files
only.
"""

import argparse
import itertools
from collections.abc import Iterable
from pathlib import Path

from bpe.peers import parquet_texts, source_texts
from bpe.worker import CL100K, O200K

import rustbpe
from nanochat.tokenizer.conversation import SPECIAL_TOKENS
from nanochat.tokenizer.formats import read_ranks
from nanochat.tokenizer.tokenizer import SPLIT_PATTERN

PATTERNS = {"cl100k_base": CL100K, "o200k_base": O200K}
SIZES = (4_096, 8_192, 16_384, 32_768, 49_152, 65_536)


def row(name: str, encoding: rustbpe.Encoding, kinds: dict[str, list[str]]) -> str:
    """A line of the table."""
    found = []
    for texts in kinds.values():
        ids, _ = encoding.encode_batch(texts)
        found.append(sum(len(text.encode()) for text in texts) / max(len(ids), 1))
    return f"| {name} | " + " | ".join(f"{ratio:.2f}" for ratio in found) + " |"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--text", type=Path)
    parser.add_argument("--chinese", type=Path)
    parser.add_argument("--ranks", type=Path, nargs="*", default=[])
    parser.add_argument("--documents", type=int, default=8_000)
    arguments = parser.parse_args()
    kinds: dict[str, Iterable[str]] = {"Python": source_texts()}
    if arguments.chinese:
        kinds = {"Chinese": parquet_texts(arguments.chinese), **kinds}
    if arguments.text:
        kinds = {"English": parquet_texts(arguments.text), **kinds}
    taken = {kind: list(itertools.islice(texts, arguments.documents)) for kind, texts in kinds.items()}
    held_out = {kind: texts[::10] for kind, texts in taken.items()}
    training = [text for texts in taken.values() for i, text in enumerate(texts) if i % 10]
    print(f"trained on {sum(len(text.encode()) for text in training) / 1e6:.0f} MB")
    print("| vocabulary | " + " | ".join(f"{kind}, bytes per token" for kind in taken) + " |")
    print("|---" * (1 + len(taken)) + "|")
    tokens = rustbpe.train(training, SIZES[-1] - len(SPECIAL_TOKENS), SPLIT_PATTERN)
    for size in SIZES:  # a smaller vocabulary is the beginning of a larger one
        print(row(f"{size:,}", rustbpe.Encoding(tokens[: size - len(SPECIAL_TOKENS)], SPLIT_PATTERN), held_out))
    for path in arguments.ranks:
        tokens = read_ranks(path)
        print(row(f"{path.stem}, {len(tokens):,}", rustbpe.Encoding(tokens, PATTERNS[path.stem]), held_out))


if __name__ == "__main__":
    main()
