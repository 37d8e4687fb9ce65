"""Training compared with karpathy/nanochat: tokens per second, first step, peak memory, and bits per byte of the same held-out documents.

    bench/train.py [--text FOLDER] [--upstream CHECKOUT]              # speed, alternating
    bench/train.py --text FOLDER --upstream CHECKOUT --quality 500000 # and quality after so many tokens, with some seeds
    bench/train.py --text FOLDER --upstream CHECKOUT --minutes 20     # or after so many minutes

FOLDER has parquet shards with a column `text`; the last one is held out. Both sides run the same command line,
`python -m scripts.base_train`, over the same shards, with this machine's torch, each with its own compile cache that is
empty at first. Held-out documents are scored for both by one protocol (bench/training/score.py). Prints a table and ratios.
"""

import argparse
import itertools
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from bpe.peers import source_texts
from peers.environment import environment

ROOT = Path(__file__).resolve().parent.parent
PEER_PACKAGES = ("rustbpe==0.1.0", "tiktoken==0.14.0", "filelock", "psutil", "wandb", "kernels")
SHARDS = "base_data_climbmix"  # directory of shards on both sides
HELD_OUT = "shard_06542.parquet"  # the name of the published validation shard
PEAK = re.compile(r"^Peak memory usage: ([\d.]+)MiB", re.MULTILINE)  # of a GPU; 0 on a CPU
STEP = re.compile(r"^step (\d+)/.*\| loss: ([\d.]+).*\| dt: ([\d.]+)ms \| tok/sec: ([\d,]+)", re.MULTILINE)
SOURCE_FILES = 3000  # Python files, if no text is given
SETTLED = 5  # first steps that are not counted for the speed


@dataclass
class Side:
    """One side of the comparison: checkout, interpreter and data directory."""

    name: str
    code: Path
    python: Path
    base: Path
    packages: Path | None = None  # a directory of packages with precedence over the interpreter's

    @property
    def cache(self) -> Path:
        """This side's compile cache."""
        return self.base / "compiled"

    def environment(self) -> dict[str, str]:
        return os.environ | {
            "NANOCHAT_BASE_DIR": str(self.base),
            "PYTHONPATH": os.pathsep.join(str(path) for path in (self.code, self.packages) if path),
            "TORCHINDUCTOR_CACHE_DIR": str(self.cache),
            "TMPDIR": str(self.cache),  # for torch's precompiled headers
            "OMP_NUM_THREADS": str(len(os.sched_getaffinity(0))),
            "WANDB_MODE": "disabled",
        }


def call(side: Side, *arguments: str) -> tuple[str, int, float]:
    """Run python with `arguments` in the side's checkout; returns (stdout, peak memory of its processes, seconds)."""
    log = side.base / "stdout.txt"
    side.cache.mkdir(exist_ok=True)
    began = time.perf_counter()
    with log.open("w") as out, (side.base / "stderr.txt").open("w") as err:
        process = subprocess.Popen([side.python, *arguments], cwd=side.code, env=side.environment(), stdout=out, stderr=err)
        _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{side.name}: {' '.join(arguments)} failed\n{(side.base / 'stderr.txt').read_text()[-2000:]}")
    return log.read_text(), usage.ru_maxrss * 1024, time.perf_counter() - began


def flags(options: argparse.Namespace, steps: int, extra: list[str]) -> list[str]:
    """The command line of a run, for both sides."""
    shape = {"depth": options.depth, "head-dim": options.head_dim, "max-seq-len": options.max_seq_len, "window-pattern": "L"}
    batch = {"device-batch-size": options.device_batch_size, "total-batch-size": options.total_batch_size, "num-iterations": steps}
    off = {"eval-every": -1, "sample-every": -1}
    return ["-m", "scripts.base_train", *(f"--{name}={value}" for name, value in (shape | batch | off).items()), *extra]


def train(side: Side, options: argparse.Namespace, steps: int, extra: list[str], tag: str) -> dict[str, Any]:
    """One run from scratch: speed, first step, peak memory and last losses."""
    shutil.rmtree(side.cache, ignore_errors=True)
    if side.name == "ours":
        shutil.rmtree(side.base / "runs" / tag, ignore_errors=True)
        own = [f"--vocab-size={options.vocab_size}", f"--run={tag}", f"--compile={options.compile}"]
        _, memory, seconds = call(side, *flags(options, steps, extra), *own)
        lines = [json.loads(line) for line in (side.base / "runs" / tag / "metrics.jsonl").read_text().splitlines()]
        took, losses = [line["step_seconds"] for line in lines], [line["loss"] for line in lines]
        mfu = [line["mfu"] for line in lines if "mfu" in line][SETTLED:]
        memory = max(line["peak_memory_bytes"] for line in lines) if mfu else memory
    else:
        out, memory, seconds = call(side, *flags(options, steps, extra), "--core-metric-every=-1", f"--model-tag={tag}")
        found = STEP.findall(out)
        took, losses, mfu = [float(dt) / 1000 for _, _, dt, _ in found], [float(loss) for _, loss, _, _ in found], []
        memory = int(float(PEAK.findall(out)[0]) * 2**20) or memory
    step = statistics.median(took[SETTLED:])
    return {
        "rate": options.total_batch_size / step,
        "step": step,
        "first": took[0],
        "memory": memory,
        "mfu": statistics.median(mfu) if mfu else 0.0,
        "loss": statistics.mean(losses[-5:]),
        "seconds": seconds,
    }


def score(side: Side, options: argparse.Namespace, tag: str) -> float:
    """Bits per byte of the first held-out documents, those of the last shard."""
    held_out = max(options.text.resolve().glob("*.parquet"))
    out, _, _ = call(side, str(ROOT / "bench" / "training" / "score.py"), side.name, tag, str(held_out), str(options.documents))
    return float(out.splitlines()[-1])


def peer_python(folder: Path) -> Path:
    """A separate environment for upstream's other packages, with this one's torch."""
    python = environment(folder, *PEER_PACKAGES)
    packages = next((folder / "lib").glob("python*/site-packages"))
    own = next(path for path in sys.path if path.endswith("site-packages"))
    (packages / "torch.pth").write_text(own + "\n")
    return python


def prepared(side: Side, text: Path) -> Side:
    """The side with its data directory, which has links to the shards."""
    shards = side.base / SHARDS
    if not shards.exists():
        shards.mkdir(parents=True)
        files = sorted(text.glob("*.parquet"))
        for number, file in enumerate(files):
            name = HELD_OUT if number == len(files) - 1 else f"shard_{number:05d}.parquet"
            os.symlink(file.resolve(), shards / name)
    return side


def source_shards(folder: Path) -> Path:
    """Python files of this environment as three shards, the last of which is held out."""
    folder.mkdir(parents=True, exist_ok=True)
    files = list(itertools.islice(source_texts(), SOURCE_FILES))
    for number in range(3):
        pq.write_table(pa.table({"text": files[number::3]}), folder / f"shard_{number:05d}.parquet")
    return folder


def main() -> None:
    """Parse, prepare, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, help="directory of parquet shards (default: the Python files of this environment)")
    parser.add_argument("--upstream", type=Path, help="a checkout of karpathy/nanochat")
    parser.add_argument("--peer-packages", type=Path, help="directory with upstream's packages, if they cannot be downloaded")
    parser.add_argument("--work", type=Path, help="directory for prepared data, which is kept (default: a temporary one)")
    for name, value in (("depth", 4), ("head-dim", 64), ("max-seq-len", 256), ("vocab-size", 8192)):
        parser.add_argument(f"--{name}", type=int, default=value)
    for name, value in (("device-batch-size", 4), ("total-batch-size", 4096), ("steps", 40), ("repeats", 3), ("seeds", 3)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--compile", default="auto", help="of our side: on, off or auto")
    parser.add_argument("--quality", type=int, default=0, metavar="TOKENS", help="train so many tokens and score held-out documents")
    parser.add_argument("--minutes", type=float, default=0, help="train so long and score held-out documents, once")
    parser.add_argument("--documents", type=int, default=200, help="held-out documents that are scored")
    own = {"nargs": "*", "metavar": "FLAG", "action": "append"}
    parser.add_argument("--ours", **own, help="flags for our side alone, such as depth=5 (quality); again for another setting")
    parser.add_argument("--theirs", **own, help="flags for theirs alone, such as matrix-lr=0.04 (quality); again for another setting")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        measure(options, options.work or Path(temporary))


def measure(options: argparse.Namespace, work: Path) -> None:
    """Measure both parts and print each result."""
    options.text = options.text or source_shards(work / "text")
    text = options.text.resolve()
    sides = [prepared(Side("ours", ROOT, Path(sys.executable), work / "ours"), text)]
    if options.upstream:
        packages = options.peer_packages.resolve() if options.peer_packages else None
        python = Path(sys.executable) if packages else peer_python(work / "peer")
        theirs = Side("upstream", options.upstream.resolve(), python, work / "upstream", packages)
        sides.append(prepared(theirs, text))
        if not (theirs.base / "tokenizer").exists():
            call(theirs, "-m", "scripts.tok_train", f"--vocab-size={options.vocab_size}", "--max-chars=100000000")
    if options.repeats:
        speed(options, sides)
    if options.quality:
        quality(options, sides)
    if options.minutes:
        equal_time(options, sides)


def speed(options: argparse.Namespace, sides: list[Side]) -> None:
    """Medians of alternating runs of the same shape."""
    runs: dict[str, list[dict[str, Any]]] = {side.name: [] for side in sides}
    for _ in range(options.repeats):
        for side in sides:
            runs[side.name].append(run := train(side, options, options.steps, [], "speed"))
            used = f", mfu {run['mfu']:.1%}" if run["mfu"] else ""
            print(
                f"{side.name}: {run['rate']:,.0f} tokens/s{used}, first step {run['first']:.1f} s, peak {run['memory'] / 1e6:.0f} MB, "
                f"loss {run['loss']:.3f} after {options.steps} steps, {run['seconds']:.0f} s in all",
                flush=True,
            )
    middle = {who: {key: statistics.median(run[key] for run in found) for key in found[0]} for who, found in runs.items()}
    if "upstream" in middle:
        ours, theirs = middle["ours"], middle["upstream"]
        print(
            f"ratio: {ours['rate'] / theirs['rate']:.2f} times the tokens/s, {ours['first'] / theirs['first']:.2f} of the first step, "
            f"{ours['memory'] / theirs['memory']:.2f} of the memory (medians of {options.repeats})"
        )


def contenders(options: argparse.Namespace, sides: list[Side]) -> Iterator[tuple[str, Side, list[str]]]:
    """(name, side, flags) for each side and each of its settings."""
    for side in sides:
        for setting in (options.ours if side.name == "ours" else options.theirs) or [[]]:
            yield " ".join([side.name, *setting]), side, [f"--{flag}" for flag in setting]


def quality(options: argparse.Namespace, sides: list[Side]) -> None:
    """Bits per byte after equal tokens. Upstream has no seed, so its runs differ only by the order of its threads."""
    steps = options.quality // options.total_batch_size
    found: dict[str, list[float]] = {}
    for seed in range(1, options.seeds + 1):
        for name, side, extra in contenders(options, sides):
            run = train(side, options, steps, extra + ([f"--seed={seed}"] if side.name == "ours" else []), f"quality-{seed}")
            bits = score(side, options, f"quality-{seed}")
            found.setdefault(name, []).append(bits)
            print(f"{name}, seed {seed}: {bits:.4f} bits per byte after {steps} steps, {run['seconds']:.0f} s", flush=True)
    for name, values in found.items():
        spread = statistics.stdev(values) if len(values) > 1 else 0.0
        print(f"{name}: {statistics.mean(values):.4f} +- {spread:.4f} bits per byte ({len(values)} runs)")


def equal_time(options: argparse.Namespace, sides: list[Side]) -> None:
    """Bits per byte after equal time, from an empty compile cache to the end of the command.

    Learning rates depend on the number of steps, which is all that upstream accepts, so a short run measures how many fit.
    """
    for name, side, extra in contenders(options, sides):
        short = train(side, options, options.steps, extra, "short")
        before = short["seconds"] - (options.steps - 1) * short["step"]
        steps = int((60 * options.minutes - before) / short["step"])
        if steps <= SETTLED:
            raise SystemExit(f"{name}: {options.minutes:g} minutes are too few ({before:.0f} s until the second step)")
        run = train(side, options, steps, extra, "equal-time")
        bits = score(side, options, "equal-time")
        print(f"{name}: {bits:.4f} bits per byte after {run['seconds'] / 60:.1f} minutes, {steps} steps", flush=True)


if __name__ == "__main__":
    main()
