"""Speed and memory of importing a user's text: MB of text per second and core for each kind of file, and for all kinds mixed.

    .venv/bin/python -m bench.own_text [--megabytes 300] [--kind mixed]

Each import runs in a separate process with its own data directory; creating the files is not timed.
"""

import argparse
import csv
import json
import lzma
import os
import random
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

KINDS = ("jsonl", "parquet", "txt", "jsonl.zst", "json", "csv", "arrow", "html", "txt.xz", "zip")


def stories(megabytes: float, seed: int) -> Iterator[str]:
    """Documents of some 3 kB until there are so many megabytes of them."""
    source = random.Random(seed)
    words = ["".join(source.choices("abcdefghijklmnopqrstuvwxyz", k=source.randint(2, 9))) for _ in range(20_000)]
    left = megabytes * 1e6
    while left > 0:
        text = "\n".join(" ".join(source.choices(words, k=80)) + "." for _ in range(source.randint(2, 10)))
        left -= len(text)
        yield text


def open_packed(path: Path) -> TextIO:
    """Open a file for writing text, compressed according to its suffix."""
    if path.suffix == ".zst":
        return zstandard.open(path, "wt")
    return lzma.open(path, "wt", preset=0) if path.suffix == ".xz" else path.open("w")


def make(folder: Path, kind: str, megabytes: float, seed: int) -> None:
    """Write a file of `kind` with so many megabytes of text."""
    path, texts = folder / f"a{seed}.{kind}", stories(megabytes, seed)
    if kind in ("parquet", "arrow"):
        table = pa.table({"text": list(texts)})
        if kind == "parquet":
            pq.write_table(table, path, row_group_size=10_000)
            return
        with pa.ipc.new_stream(str(path), table.schema) as sink:
            sink.write_table(table, max_chunksize=1000)
    elif kind == "zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
            for number in range(round(megabytes / 2) or 1):
                archive.writestr(f"{number}.txt", "\n\n".join(stories(2, seed * 10_000 + number)))
    elif kind == "csv":
        with path.open("w", newline="") as file:
            csv.writer(file).writerows([["id", "text"], *([str(number), text] for number, text in enumerate(texts))])
    else:
        with open_packed(path) as file:
            if kind == "json":
                file.write("[")
            for number, text in enumerate(texts):
                if "json" in kind:
                    file.write(f"{',' * (kind == 'json' and number > 0)}{json.dumps({'id': number, 'text': text})}\n")
                else:
                    file.write(f"<p>{text}</p>\n" if kind == "html" else f"{text}\n\n")
                if kind == "html" and file.tell() > 50 << 20:
                    break
            if kind == "json":
                file.write("]")


def measure(path: Path) -> None:
    """Import `path` in this process; print what it took as JSON."""
    from nanochat.data.text.documents import import_texts

    began, used = time.monotonic(), time.process_time()
    dataset = import_texts(path)
    size = (dataset.text_bytes or 0) + dataset.validation.text_bytes
    status = Path("/proc/self/status").read_text()  # ru_maxrss would be the parent's
    peak = int(status.split("VmHWM:")[1].split()[0]) * 1024
    print(json.dumps({"text": size, "seconds": time.monotonic() - began, "cpu": time.process_time() - used, "peak": peak}))


def main() -> None:
    """Measure each kind, or the one that is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=float, default=300)
    parser.add_argument("--kind", default="", choices=["", "mixed", *KINDS])
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.measure:
        measure(asked.measure)
        return
    for kind in [asked.kind] if asked.kind else [*KINDS, "mixed"]:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            (folder / "in").mkdir()
            for seed, one in enumerate(KINDS if kind == "mixed" else [kind]):
                make(folder / "in", one, asked.megabytes / (len(KINDS) if kind == "mixed" else 1), seed)
            environment = {**os.environ, "NANOCHAT_BASE_DIR": str(folder / "base"), "OMP_NUM_THREADS": "1"}
            command = [sys.executable, "-m", "bench.own_text", "--measure", str(folder / "in")]
            done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
            if done.returncode:
                sys.exit(done.stderr)
            found = json.loads(done.stdout)
            rate = found["text"] / found["cpu"] / 1e6
            print(
                f"{kind:10} {found['text'] / 1e6:7.0f} MB in {found['seconds']:6.1f} s, {rate:6.1f} MB/s a core, "
                f"peak {found['peak'] / 1e6:5.0f} MB",
                flush=True,
            )


if __name__ == "__main__":
    main()
