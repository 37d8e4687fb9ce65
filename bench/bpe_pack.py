"""Claim: encoding and packing a shard (100 MB of parquet, about 250 MB of text) into rows takes at most 1.5 times as long as encoding.

    bench/bpe_pack.py [--text FOLDER_OF_PARQUET] [--mb 250] [--rounds 5]

Medians of alternating runs with a new encoder and all cores, of encoding texts in memory, of the row cache from the parquet file to
rows on disk, and of reading the file. Without --text: the Python files of this environment.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from bpe.peers import parquet_texts, source_texts

from nanochat.data.rows import RowCache
from nanochat.data.shards import ROW_GROUP, Shard, texts
from nanochat.tokenizer.tokenizer import Tokenizer


def taken(source: Iterable[str], mb: int) -> list[str]:
    """The first `mb` of a source's texts."""
    found: list[str] = []
    size = 0
    for text in source:
        found.append(text)
        size += len(text)
        if size >= mb * 1_000_000:
            break
    return found


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--text", type=Path)
    parser.add_argument("--mb", type=int, default=250)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    documents = taken(parquet_texts(arguments.text) if arguments.text else source_texts(), arguments.mb)
    tokens = Tokenizer.train(documents[:10_000], 32_768).tokens
    with tempfile.TemporaryDirectory() as folder:
        os.environ["NANOCHAT_BASE_DIR"] = folder
        path = Path(folder) / "shard_00000.parquet"
        pq.write_table(pa.table({"text": documents}), path, row_group_size=ROW_GROUP, compression="zstd")
        shard = Shard(path, path.stat().st_size, "0" * 64, len(documents))
        seconds: dict[str, list[float]] = {"encoding": [], "whole way": [], "reading": []}
        for round in range(arguments.rounds):
            tokenizer = Tokenizer(tokens)
            began = time.perf_counter()
            tokenizer.encode_batch(documents)
            seconds["encoding"].append(time.perf_counter() - began)

            cache = RowCache(Tokenizer(tokens), 1024 + round)  # another row length, so that another file is written
            began = time.perf_counter()
            rows = cache.count(shard)
            seconds["whole way"].append(time.perf_counter() - began)
            cache.close()

            began = time.perf_counter()
            assert sum(map(len, texts(shard))) == len(documents)
            seconds["reading"].append(time.perf_counter() - began)
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    print(f"{sum(map(len, documents)) / 1e6:.0f} MB in {shard.bytes / 1e6:.0f} MB of parquet, {rows:,} rows, medians of {arguments.rounds}")
    print(", ".join(f"{name} {median:.2f} s" for name, median in medians.items()))
    print(f"whole way / encoding = {medians['whole way'] / medians['encoding']:.2f}")


if __name__ == "__main__":
    main()
