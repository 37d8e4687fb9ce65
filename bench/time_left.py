"""Claim: the printed time left of a run is within 30% of the truth at every tenth of it, and `--hours` ends within 10%, also on a busy CPU.

    python -m bench.time_left [--busy 2] [--begin 0] [--end 1e9] [--out FILE] quickstart
    python -m bench.time_left --busy 2 --begin 120 --end 240 train --profile cpu --hours 0.1 --run hours

It runs the command in a new data directory, with `--busy` processes that only count between `--begin` and `--end` seconds after its start.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

RUN_LEFT = re.compile(r"(?:left, run|plan: about) (.*?)(?: \|| at |$)")  # of a line with progress, or of the plan
UNITS = {"s": 1, "min": 60, "h": 3600, "d": 86400}
BUSY = "while True: pass"


def seconds_of(text: str) -> float:
    """The seconds of a duration as console.duration writes it: 2 min 05 s."""
    words = text.split()
    return sum(float(value) * UNITS[unit] for value, unit in zip(words[::2], words[1::2], strict=True))


def load(busy: int, begin: float, end: float, over: threading.Event) -> None:
    """Keep `busy` processes counting from `begin` to `end` seconds from now, or until `over`."""
    began = time.monotonic()
    if over.wait(begin):
        return
    processes = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(busy)]
    over.wait(max(end - (time.monotonic() - began), 0))
    for process in processes:
        process.kill()
        process.wait()


def run(arguments: list[str], busy: int, begin: float, end: float, log: Path | None) -> tuple[float, list[tuple[float, float]]]:
    """Run the command; returns its seconds, and (seconds since the start, printed seconds left of the run) of each such line."""
    over, printed, lines = threading.Event(), [], []
    with tempfile.TemporaryDirectory() as folder:
        environment = os.environ | {"NANOCHAT_BASE_DIR": folder}
        worker = threading.Thread(target=load, args=(busy, begin, end, over))
        began = time.monotonic()
        worker.start()
        command = [sys.executable, "-m", "nanochat", *arguments]
        try:
            with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
                assert process.stderr is not None
                for line in process.stderr:
                    now = time.monotonic() - began
                    lines.append(f"{now:7.1f} {line}")
                    if log:
                        log.write_text("".join(lines), encoding="utf-8")
                    if found := RUN_LEFT.search(line.strip()):
                        printed.append((now, seconds_of(found[1])))
            took = time.monotonic() - began
        finally:
            over.set()
            worker.join()
    if process.returncode:
        raise SystemExit(f"the command ended with {process.returncode}:\n{''.join(lines[-20:])}")
    return took, printed


def at_tenths(took: float, printed: list[tuple[float, float]]) -> list[tuple[int, float, float]]:
    """(tenth, printed seconds left, true seconds left) of the newest printed time at each tenth of the run.

    The printed time is that of its line, so the truth is counted from that line on.
    """
    rows = []
    for tenth in range(1, 10):
        before = [one for one in printed if one[0] <= took * tenth / 10]
        if before:
            at, left = before[-1]
            rows.append((tenth, left, took - at))
    return rows


def main() -> None:
    """Print one JSON object: seconds, the rows of `at_tenths`, and the largest error."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--busy", type=int, default=2)
    parser.add_argument("--begin", type=float, default=0.0)
    parser.add_argument("--end", type=float, default=1e9)
    parser.add_argument("--out", type=Path)
    parser.add_argument("command", nargs=argparse.REMAINDER)
    options = parser.parse_args()
    took, printed = run(options.command, options.busy, options.begin, options.end, options.out)
    rows = at_tenths(took, printed)
    errors = [left / true - 1 for _, left, true in rows]
    result = {
        "command": options.command,
        "busy": [options.busy, options.begin, options.end],
        "seconds": round(took, 1),
        "load_average": round(os.getloadavg()[0], 1),
        "tenths": [(tenth, round(left), round(true), round(left / true - 1, 2)) for tenth, left, true in rows],
        "largest_error": round(max(map(abs, errors)), 2) if errors else None,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
