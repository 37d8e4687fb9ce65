"""A CPU's run beside a program in the foreground, with and without `--background`, and beside the chat server: what each costs the other.

The run is the quickstart's. Each program is a session of its own, as from a terminal of its own, because on desktops the kernel shares the
CPU between sessions first. The foreground is `--jobs` loops that only count, timed. The server streams one answer after another. Everything
is measured alone and together in turn. Prints medians over the rounds, and the load average: a machine that does other work falsifies them.
"""

import argparse
import contextlib
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).resolve().parent.parent
COUNT = "for i in range({}): pass"
LOOPS = 60_000_000  # of a loop, two to three seconds
SETTLED = 40  # steps until a run has chosen its threads
PORT = 18765
LEAST = 16  # tokens of an answer that counts: this model's may be empty
QUESTION = {
    "messages": [{"role": "user", "content": "Tell a short story about a bear."}],
    "max_tokens": 64,
    "temperature": 1.0,
    "stream": True,
}


class Bench:
    """A data directory with a model that can answer, and programs in sessions of their own."""

    def __init__(self, base: Path, seconds: float):
        self.base, self.seconds = base, seconds
        self.environment = {**os.environ, "NANOCHAT_BASE_DIR": str(base), "PYTHONPATH": str(HERE)}
        flags = ["--num_iterations=500", "--sft_iterations=150", "--eval_every=-1", "--sample_every=-1", "--run=model"]
        subprocess.run(self._command("train", "--profile=cpu", *flags), env=self.environment, check=True, capture_output=True)

    def _command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "nanochat", *arguments]

    @contextlib.contextmanager
    def _session(self, *arguments: str) -> Iterator[None]:
        process = subprocess.Popen(
            self._command(*arguments), env=self.environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        try:
            yield
        finally:
            process.kill()
            process.wait()

    @contextlib.contextmanager
    def training(self, *flags: str) -> Iterator[None]:
        """A run in its steps."""
        metrics = self.base / "runs" / "beside" / "metrics.jsonl"
        subprocess.run(["rm", "-rf", str(metrics.parent)], check=True)
        steps = ["--stage=base", "--num_iterations=100000", "--eval_every=-1", "--sample_every=-1", "--run=beside"]
        with self._session("train", "--profile=cpu", *steps, *flags):
            while self.steps() < SETTLED:
                time.sleep(0.2)
            yield

    def steps(self) -> int:
        """Steps of the run so far."""
        metrics = self.base / "runs" / "beside" / "metrics.jsonl"
        return metrics.read_text().count("\n") if metrics.exists() else 0

    @contextlib.contextmanager
    def serving(self) -> Iterator[None]:
        """The chat server with the model, once it answers."""
        with self._session("serve", f"--port={PORT}", "--run=model", "--device=cpu"):
            while True:
                with contextlib.suppress(OSError):
                    self.answer()
                    break
                time.sleep(0.2)
            yield

    def answer(self) -> tuple[float, float] | None:
        """(seconds to the first token of an answer, tokens per second after it); None if it has fewer than LEAST tokens."""
        body, times = json.dumps(QUESTION).encode(), list[float]()
        request = urllib.request.Request(f"http://127.0.0.1:{PORT}/v1/chat/completions", body, {"Content-Type": "application/json"})
        began = time.perf_counter()
        with urllib.request.urlopen(request, timeout=120) as response:
            for line in response:
                if line.startswith(b"data: {") and json.loads(line[6:])["choices"][0]["delta"].get("content"):
                    times.append(time.perf_counter() - began)
        return (times[0], (len(times) - 1) / (times[-1] - times[0])) if len(times) >= LEAST else None

    def foreground(self, jobs: int) -> float:
        """Seconds of `jobs` loops at once."""
        began = time.perf_counter()
        command = [sys.executable, "-c", COUNT.format(LOOPS)]
        loops = [subprocess.Popen(command, start_new_session=True) for _ in range(jobs)]
        for loop in loops:
            loop.wait()
        return time.perf_counter() - began

    def rate(self) -> float:
        """Steps per second of the run, over the bench's seconds."""
        before, began = self.steps(), time.monotonic()
        time.sleep(self.seconds)
        return (self.steps() - before) / (time.monotonic() - began)

    def answers(self) -> dict[str, float]:
        """Medians of answers over the bench's seconds, and the run's steps per second meanwhile."""
        before, began, found = self.steps(), time.monotonic(), list[tuple[float, float]]()
        while time.monotonic() < began + self.seconds or not found:
            if (measured := self.answer()) is not None:
                found.append(measured)
        first, rates = zip(*found, strict=True)
        steps = (self.steps() - before) / (time.monotonic() - began)
        return {"first token, ms": 1000 * statistics.median(first), "tokens/s": statistics.median(rates), "steps/s": steps}


def measure(bench: Bench, jobs: list[int]) -> Iterator[tuple[str, str, float]]:
    """(arrangement, what, value) of one round."""
    for count in jobs:
        yield "foreground alone", f"{count} loops, s", bench.foreground(count)
    for name, flags in {"with a run": (), "with a run --background": ("--background",)}.items():
        with bench.training(*flags):
            yield name, "steps/s", bench.rate()
            for count in jobs:
                before, began = bench.steps(), time.monotonic()
                yield name, f"{count} loops, s", bench.foreground(count)
                yield name, f"steps/s beside {count}", (bench.steps() - before) / (time.monotonic() - began)
    with bench.serving():
        for what, value in list(bench.answers().items())[:2]:
            yield "serving alone", what, value
        for name, flags in {"serving and a run": (), "serving and a run --background": ("--background",)}.items():
            with bench.training(*flags):
                for what, value in bench.answers().items():
                    yield name, what, value


def main() -> None:
    """Measure in rounds and print a line per arrangement."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=10.0, help="of each rate of steps or answers")
    parser.add_argument("--jobs", type=lambda text: [int(word) for word in text.split(",")], default=[1, 2])
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the programs' sessions end too
    found: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), options.seconds)
        for turn in range(options.rounds):
            print(f"round {turn + 1}: load average {os.getloadavg()[0]:.1f}", flush=True)
            for name, what, value in measure(bench, options.jobs):
                found[name][what].append(value)
                print(f"  {name}: {what} {value:.2f}", flush=True)
    for name, values in found.items():
        print(f"{name}: " + ", ".join(f"{what} {statistics.median(each):.2f}" for what, each in values.items()))


if __name__ == "__main__":
    main()
