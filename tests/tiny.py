"""What tests of whole runs share: a small text, a small model, and the command line as a user calls it."""

import json
import os
import random
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from nanochat.config import TEXT_RULES, Config, build_config

ROOT = Path(__file__).resolve().parent.parent
WORDS = ("the", "a", "cat", "dog", "bird", "house", "tree", "man", "child", "runs", "sees", "likes", "plays", "old", "new", "red", "under")
MODEL: dict[str, Any] = {
    "depth": 1,
    "head_dim": 32,
    "aspect_ratio": 64,
    "vocab_size": 300,
    "max_seq_len": 32,
    "device_batch_size": 4,
    "total_batch_size": 256,
    "num_iterations": 6,
    "sft_iterations": 0,
    "eval_every": -1,
    "eval_tokens": 256,
    "weight_decay": 0.1,
    "warmup_steps": 2,
    "threads": 1,
    "deterministic": True,
}
# A hundredth of the cpu profile's rates. Another number of processes or device batch adds in another order, and Muon and Adam amplify that
# rounding up to a thousandfold in a step: at full rates float32 says nothing (tests/distributed/test_ranks.py compares them in float64).
GENTLE = {"matrix_lr": 0.004, "embedding_lr": 0.02, "value_embedding_lr": 0.007, "unembedding_lr": 0.0008, "scalar_lr": 0.01}


def sentences(path: Path, size: int = 200_000, seed: int = 1) -> Path:
    """Write about `size` bytes of sentences to `path`."""
    rng = random.Random(seed)
    parts = [" ".join(rng.choice(WORDS) for _ in range(rng.randint(5, 30))) + "." for _ in range(size // 80)]
    path.write_text("\n\n".join(parts), encoding="utf-8")
    return path


def chats(path: Path, count: int = 60) -> Path:
    """Write `count` short conversations to `path`."""
    rng = random.Random(2)
    with path.open("w", encoding="utf-8") as file:
        for _ in range(count):
            word = rng.choice(WORDS)
            file.write(json.dumps([{"role": "user", "content": word}, {"role": "assistant", "content": f"{word} {word}"}]) + "\n")
    return path


def config(text: Path, run: str = "tiny", **changes: Any) -> Config:
    """The config of a run on `text` that takes a fraction of a second."""
    return build_config("cpu", False, TEXT_RULES | MODEL | {"run": run, "data": str(text)} | changes)


def flags(text: Path, run: str = "tiny", **changes: Any) -> list[str]:
    """`config`, as a command line."""
    values = MODEL | {"run": run, "data": str(text)} | changes
    return ["train", "--profile=cpu", *(f"--{name}={value}" for name, value in values.items())]


def losses(base: Path, run: str = "tiny") -> list[tuple[str, int, float]]:
    """(stage, step, loss) of each line of a run's metrics."""
    lines = (base / "runs" / run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [(entry["stage"], entry["step"], entry["loss"]) for entry in map(json.loads, lines)]


def environment(base: Path) -> dict[str, str]:
    """Of a command on one core, whose imports are quick the second time, and which reaches no network."""
    kept = {key: value for key, value in os.environ.items() if key not in ("PYTHONDONTWRITEBYTECODE", "NANOCHAT_DEBUG")}
    nowhere = {"HF_ENDPOINT": "http://127.0.0.1:9", "NANOCHAT_ASSET_URL": "http://127.0.0.1:9"}
    return kept | nowhere | {"NANOCHAT_BASE_DIR": str(base), "OMP_NUM_THREADS": "1", "NO_COLOR": "1"}


def start(base: Path, *arguments: str) -> "subprocess.Popen[str]":
    """Start `python ARGUMENTS` in the checkout; its stdout and stderr are pipes."""
    command = [sys.executable, *arguments]
    return subprocess.Popen(command, cwd=ROOT, env=environment(base), text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def call(base: Path, *arguments: str, timeout: float = 300) -> "subprocess.CompletedProcess[str]":
    """`start`, and wait for its end."""
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment(base), text=True, capture_output=True, timeout=timeout)


def wait_for(process: "subprocess.Popen[str]", line: str) -> str:
    """Read stderr up to the first line that contains `line`; returns that one. Fails where the process ends before, or hangs."""
    assert process.stderr is not None
    read = []
    hang = threading.Timer(300, process.kill)
    hang.start()
    try:
        for found in process.stderr:
            read.append(found)
            if line in found:
                return found
    finally:
        hang.cancel()
    raise AssertionError(f"{line!r} did not come:\n{''.join(read)}")
