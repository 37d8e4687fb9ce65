"""Shared parts of the BPE benchmarks: the peers' environment, texts, and alternating measurements."""

import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from peers.environment import environment

from .worker import SEPARATOR

ROOT = Path(__file__).resolve().parents[2]
PEERS = ("gigatoken==0.10.0", "tiktoken==0.14.0", "rustbpe==0.1.0", "tokenizers==0.23.3", "numpy", "awkward")


def peers_python() -> Path:
    """The interpreter of the peers' separate environment (one of them is also named rustbpe)."""
    return environment(ROOT / ".venv" / "bpe-peers", *PEERS)


def measure(who: str, peers: Path, **task: Any) -> dict[str, Any]:
    """One run of the worker in a new process."""
    python = sys.executable if who == "ours" else str(peers)
    # numpy's threads spin after their start, and a process's time includes all its threads.
    environment = {**os.environ, "RAYON_NUM_THREADS": str(task["threads"]), "OPENBLAS_NUM_THREADS": "1"}
    command = [python, str(Path(__file__).with_name("worker.py")), json.dumps({"who": who, **task})]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        return {"error": f"exit {done.returncode}"}
    return json.loads(done.stdout.splitlines()[-1])


def alternate(whom: Iterable[str], rounds: int, peers: Path, **task: Any) -> dict[str, list[dict[str, Any]]]:
    """`rounds` alternating runs of each of `whom`; one that fails is not run again."""
    runs: dict[str, list[dict[str, Any]]] = {who: [] for who in whom}
    for _ in range(rounds):
        for who, done in runs.items():
            if not any("error" in run for run in done):
                done.append(measure(who, peers, **task))
    return runs


def median(runs: list[dict[str, Any]], key: str, place: int | None = None) -> float:
    """The median of a figure over runs."""
    return statistics.median(run[key] if place is None else run[key][place] for run in runs)


def parquet_texts(folder: Path) -> Iterator[str]:
    """The documents of a directory of parquet shards."""
    import pyarrow.parquet as pq

    for path in sorted(folder.glob("*.parquet")):
        for batch in pq.ParquetFile(path).iter_batches(columns=["text"]):
            yield from batch.column(0).to_pylist()


def source_texts() -> Iterator[str]:
    """Python files of this environment, which exist on every machine."""
    for path in sorted(Path(sys.prefix, "lib").glob("**/*.py")):
        try:
            yield path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue


def generated_texts(seed: int) -> Iterator[str]:
    """An endless stream of documents with units that splitters and merges may treat differently."""
    choose = random.Random(seed)
    words = [
        "the",
        "The",
        "of",
        "and",
        "tokens",
        "naïve",
        "Straße",
        "你好",
        "世界",
        "訓練",
        "ありがとう",
        "안녕",
        "привет",
        "ſ",
        "K",
        "éa\u0301",
    ]
    words += [
        "'s",
        "'LL",
        "'re",
        "'ſ",
        "'",
        "1",
        "23",
        "4567",
        "²",
        "Ⅷ",
        "٣",
        ".",
        "!?",
        "_",
        "🙂",
        "👩‍🚀",
        "\0",
        "==",
        "//",
        "()",
        "x_y",
        "<|bos|>",
    ]
    spaces = [" ", " ", " ", " ", "", "", "  ", "\t", "\n", "\n\n", "\r\n", " \n ", "\u00a0", "\u3000", "\u0085", "    "]
    while True:
        parts = [*words, *(chr(choose.choice((*range(0x20, 0xD800), *range(0xE000, 0x110000, 97)))) for _ in range(40))]
        parts += ["".join(choose.choices("abcdefghijklmnopqrstuvwxyz", k=choose.randint(1, 40))) for _ in range(40)]
        for _ in range(20):
            k = choose.randint(0, 5_000)
            yield "".join(map("".join, zip(choose.choices(parts, k=k), choose.choices(spaces, k=k), strict=True)))


@contextmanager
def written(texts: Iterable[str], limit: int) -> Iterator[tuple[str, int]]:
    """(path, bytes) of a file with the first `limit` bytes of texts, in whole documents."""
    with tempfile.NamedTemporaryFile(suffix=".txt") as file:
        size = 0
        for text in texts:
            file.write((SEPARATOR if size else b"") + (data := text.encode()))
            size += len(data)
            if size >= limit:
                break
        file.flush()
        yield file.name, size
