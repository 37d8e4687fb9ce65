"""Claim: beside changing load of other programs, a training step takes at most 1.1 times the step time of the best fixed number of threads.

The quickstart's steps, alone and beside busy processes, by this checkout, by another one (--other) and by this one with each fixed
number of threads, in turn. The busy processes run for --on seconds and rest for --off. Prints a table, medians over the rounds of the
mean step, and the ratios of the claim. A machine that does other work meanwhile falsifies the figures: its use by others is printed.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

HERE = Path(__file__).resolve().parent.parent
SETTLED = 10  # first steps that are not counted: they start threads and pack rows
BUSY = "while True: pass"


class Load:
    """`count` processes that only count, for `on` seconds of each `on + off`."""

    def __init__(self, count: int, on: float, off: float):
        self.count, self.on, self.off, self.began = count, on, off, 0.0
        self.processes: list[subprocess.Popen[bytes]] = []

    def look(self) -> None:
        """Start or end the processes, if it is time."""
        self.began = self.began or time.monotonic()  # the first phase begins with the steps, not with the program's start
        wanted = (time.monotonic() - self.began) % (self.on + self.off) < self.on
        if wanted and not self.processes:
            self.processes = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(self.count)]
        elif not wanted:
            self.end()

    def end(self) -> None:
        """End the processes."""
        for process in self.processes:
            process.kill()
            process.wait()
        self.processes = []


def read(metrics: Path) -> list[float]:
    """Milliseconds of the run's steps so far."""
    with suppress(OSError):
        return [1000 * json.loads(line)["step_seconds"] for line in metrics.read_text().splitlines() if line.endswith("}")]
    return []


def train(checkout: Path, threads: int, base: Path, options: argparse.Namespace, busy: int) -> list[float]:
    """Milliseconds of the steps of a run beside `busy` processes; `threads` is -1 for the checkout's own choice."""
    environment = {**os.environ, "NANOCHAT_BASE_DIR": str(base), "PYTHONPATH": str(checkout)}
    shutil.rmtree(base / "runs", ignore_errors=True)
    flags = [
        f"--num_iterations={options.steps + SETTLED}",
        f"--threads={threads}" if threads > 0 else "",
        "--eval_every=-1",
        "--sample_every=-1",
    ]
    command = [sys.executable, "-m", "nanochat", "train", "--profile=cpu", "--stage=base", "--run=bench", *filter(None, flags)]
    base.mkdir(parents=True, exist_ok=True)
    load, steps, log = Load(busy, options.on, options.off), list[float](), base / "stderr"
    with log.open("w") as stderr:
        training = subprocess.Popen(command, cwd=checkout, env=environment, stdout=subprocess.DEVNULL, stderr=stderr)
    try:
        while training.poll() is None and len(steps) < options.steps + SETTLED:
            time.sleep(0.2)
            steps = read(base / "runs" / "bench" / "metrics.jsonl")
            if steps and busy:
                load.look()
    finally:
        load.end()
        training.kill()
        training.wait()
    said = log.read_text()
    if len(steps) < options.steps + SETTLED:
        raise SystemExit(f"{checkout}: {said}")
    if options.verbose:
        print("\n".join(line for line in said.splitlines() if line.startswith("threads:")), flush=True)
    return steps[SETTLED:]


def two_at_once(checkout: Path, folder: Path, options: argparse.Namespace) -> float:
    """Steps per second of two runs at the same time, relative to one run after the other."""
    alone = train(checkout, -1, folder / "one", options, 0)
    with ThreadPoolExecutor() as pool:
        both = list(pool.map(lambda name: train(checkout, -1, folder / name, options, 0), ("one", "two")))
    return sum(statistics.mean(alone) / statistics.mean(steps) for steps in both)


def foreign() -> tuple[float, float, float]:
    """(busy ticks of all processors, all ticks, processor seconds of this process and its ended children)."""
    ticks = [int(number) for number in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    return sum(ticks) - ticks[3] - ticks[4], sum(ticks), sum(os.times()[:4])


def main() -> None:
    """Measure each way beside each number of busy processes in turn."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--other", type=Path, help="another checkout to compare with")
    parser.add_argument("--busy", type=lambda text: [int(word) for word in text.split(",")], default=[0, 1, 2, 4])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--on", type=float, default=10.0)
    parser.add_argument("--off", type=float, default=5.0)
    parser.add_argument("--verbose", action="store_true", help="print the runs' own lines about their threads")
    parser.add_argument("--two", action="store_true", help="instead: two runs at once, compared with one after the other")
    options = parser.parse_args()
    cores = len(os.sched_getaffinity(0))
    ways = {"this": (HERE, -1)} | ({"other": (options.other.resolve(), -1)} if options.other else {})
    ways |= {f"{threads} threads": (HERE, threads) for threads in range(1, cores + 1)}
    found: dict[tuple[int, str], list[list[float]]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as folder:
        if options.two:
            for way, checkout in {"this": HERE, **({"other": options.other.resolve()} if options.other else {})}.items():
                shares = [two_at_once(checkout, Path(folder), options) for _ in range(options.rounds)]
                print(f"{way}: two runs at once take {1 / statistics.median(shares):.2f} times as long as one after the other", flush=True)
            return
        for turn in range(options.rounds):
            for busy in options.busy:
                for way, (checkout, threads) in ways.items():
                    before, load = foreign(), os.getloadavg()[0]
                    steps = train(checkout, threads, Path(folder, "other" if way == "other" else "this"), options, busy)
                    taken, every, own = (after - first for after, first in zip(foreign(), before, strict=True))
                    others = max(taken / every - own * os.sysconf("SC_CLK_TCK") / every, 0)
                    found[busy, way].append(steps)
                    print(
                        f"round {turn + 1}, {busy} busy, {way}: mean {statistics.mean(steps):.0f}, median {statistics.median(steps):.0f}, "
                        f"worst {max(steps):.0f} ms (load average {load:.1f}; other programs used {others:.0%} of the processors)",
                        flush=True,
                    )
    show(found, options.busy, list(ways))


def show(found: dict[tuple[int, str], list[list[float]]], busy: list[int], ways: list[str]) -> None:
    """Print the table, and the ratios of the claim."""
    mean = {key: statistics.median(statistics.mean(steps) for steps in rounds) for key, rounds in found.items()}
    print("\n| busy processes | " + " | ".join(ways) + " | this / best fixed | worst step / median |\n" + "|---" * (len(ways) + 3) + "|")
    for count in busy:
        best = min(mean[count, way] for way in ways if way.endswith("threads"))
        worst = max(max(steps) / statistics.median(steps) for steps in found[count, "this"])
        times = " | ".join(f"{mean[count, way]:.0f} ms" for way in ways)
        print(f"| {count} | {times} | {mean[count, 'this'] / best:.2f} | {worst:.1f} |")
    if "other" in ways:
        print("this / other: " + ", ".join(f"{mean[count, 'this'] / mean[count, 'other']:.2f} beside {count}" for count in busy))


if __name__ == "__main__":
    main()
