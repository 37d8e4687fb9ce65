"""Claim: encoding is at least as fast as gigatoken's first pass and half its warm pass, ten times tiktoken, never below 5 MB/s.

    bench/bpe_encode.py [--text FOLDER_OF_PARQUET] [--chinese FOLDER_OF_PARQUET] [--mb 60] [--rounds 5]

One vocabulary of 32,759 tokens, cl100k's split (which gigatoken supports), documents in lists of str; this encoder and gigatoken write
arrays. Prints MB/s of the first and of the second pass, and differences of ids. Without --text: the Python files of this environment.
"""

import argparse
import base64
import random
import tempfile
from collections.abc import Iterator
from pathlib import Path

from bpe.peers import alternate, median, parquet_texts, peers_python, source_texts, written
from bpe.worker import CL100K

import rustbpe

PEERS = ("ours", "gigatoken", "tiktoken")


def texts(arguments: argparse.Namespace) -> Iterator[tuple[str, list[str]]]:
    """(name, documents) of each kind of text."""
    limit = arguments.mb * 1_000_000

    def first(source: Iterator[str]) -> list[str]:
        taken, size = [], 0
        for text in source:
            taken.append(text)
            size += len(text)
            if size >= limit:
                break
        return taken

    if arguments.text:
        english = first(parquet_texts(arguments.text))
        yield "English", english
        yield "one line", [" ".join("".join(english).split())[: 50 * limit // 60]]
    if arguments.chinese:
        yield "Chinese", first(parquet_texts(arguments.chinese))
    yield "Python", first(source_texts())
    noise = random.Random(0).randbytes(limit // 6).decode("latin-1")
    yield "random Latin-1", [noise[i : i + 5000] for i in range(0, len(noise), 5000)]
    yield "a million spaces", [" " * 1_000_000] * (limit // 6_000_000)
    yield "a million a", ["a" * 1_000_000] * (limit // 6_000_000)


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--text", type=Path)
    parser.add_argument("--chinese", type=Path)
    parser.add_argument("--mb", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, nargs="*", default=[1, 2])
    parser.add_argument("--only", nargs="*", help="kinds of text")
    arguments = parser.parse_args()
    peers = peers_python()
    source = parquet_texts(arguments.text) if arguments.text else source_texts()
    tokens = rustbpe.train((text for text, _ in zip(source, range(20_000), strict=False)), 32_759, CL100K)
    print(f"{'text':18} {'MB':>4} thr  encoder     first   warm MB/s")
    with tempfile.NamedTemporaryFile("wb", suffix=".tiktoken") as ranks:
        ranks.writelines(base64.b64encode(token) + b" %d\n" % rank for rank, token in enumerate(tokens))
        ranks.flush()
        for name, documents in texts(arguments):
            if arguments.only and name not in arguments.only:
                continue
            with written(documents, 1 << 60) as (path, size):
                for threads in arguments.threads:
                    task = {"task": "encode", "path": path, "ranks": ranks.name, "threads": threads, "pattern": CL100K, "passes": 2}
                    runs = alternate(PEERS, arguments.rounds, peers, **task)
                    for who, done in runs.items():
                        begin = f"{name:18} {size / 1e6:4.0f} {threads:3}  {who:10}"
                        if "error" in done[-1]:
                            print(begin, done[-1]["error"], flush=True)
                            continue
                        first, warm = (size / 1e6 / median(done, "seconds", place) for place in (0, 1))
                        same = "" if done[0]["hash"] == runs["ours"][0].get("hash") else "  OTHER IDS"
                        print(f"{begin} {first:6.1f} {warm:6.1f}{same}", flush=True)


if __name__ == "__main__":
    main()
