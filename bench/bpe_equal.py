"""Claim: for the same ranks the ids are tiktoken's, and for the exported tokenizer.json Hugging Face's, on a gigabyte of text.

    bench/bpe_equal.py [--text FOLDER_OF_PARQUET ...] [--mb 1000]

Real text (of the directories, and Python files of this environment), then generated text up to --mb. Exits with 1 if any id differs.
"""

import argparse
import itertools
import json
import sys
import tempfile
import time
from pathlib import Path

from bpe.peers import generated_texts, measure, parquet_texts, peers_python, source_texts, written
from bpe.worker import CL100K

import rustbpe
from nanochat.tokenizer.formats import huggingface, ranks_text
from nanochat.tokenizer.tokenizer import SPLIT_PATTERN


def main() -> int:
    """Compare and return the exit code."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--text", type=Path, nargs="*", default=[])
    parser.add_argument("--mb", type=int, default=1000)
    parser.add_argument("--hf-mb", type=int, default=20)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    peers = peers_python()
    real = [*map(parquet_texts, arguments.text), itertools.islice(source_texts(), 8_000)]
    tokens = rustbpe.train(itertools.islice(itertools.chain(source_texts(), generated_texts(1)), 3_000), 20_000, SPLIT_PATTERN)
    equal = True
    with tempfile.TemporaryDirectory() as folder:
        ranks, exported = Path(folder) / "ranks.tiktoken", Path(folder) / "tokenizer.json"
        ranks.write_text(ranks_text(tokens))
        exported.write_text(json.dumps(huggingface(tokens, SPLIT_PATTERN, {})), encoding="utf-8")
        half = arguments.mb * 500_000
        for peer, pattern, size, texts in (
            ("tiktoken", SPLIT_PATTERN, half, itertools.chain(*real, generated_texts(2))),
            ("tiktoken", CL100K, half, itertools.chain(generated_texts(3))),
            (
                "tokenizers",
                SPLIT_PATTERN,
                arguments.hf_mb * 1_000_000,
                itertools.chain(itertools.islice(source_texts(), 1_000), generated_texts(4)),
            ),
        ):
            began = time.perf_counter()
            with written(texts, size) as (path, size):
                task = {"task": "digests", "path": path, "threads": arguments.threads, "pattern": pattern}
                ours = measure("ours", peers, ranks=str(ranks), **task)
                theirs = measure(peer, peers, ranks=str(exported if peer == "tokenizers" else ranks), **task)
            same = "hashes" in ours and ours["hashes"] == theirs.get("hashes")
            equal &= same
            verdict = "equal" if same else f"DIFFERENT {ours.get('error', '')} {theirs.get('error', '')}"
            print(f"{peer}, {size / 1e6:.0f} MB, {ours.get('ids', 0):,} ids: {verdict} ({time.perf_counter() - began:.0f} s)", flush=True)
    return 0 if equal else 1


if __name__ == "__main__":
    sys.exit(main())
