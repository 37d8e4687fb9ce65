"""The state of a run in training for the page, read from its files: heartbeat, metrics, samples.

The files are not trusted: an invalid line, field or heartbeat is skipped.
"""

import contextlib
import json
import os
import threading
from pathlib import Path
from typing import Any, BinaryIO

from nanochat.hardware.load import NOTICED
from nanochat.runs.heartbeat import HEARTBEAT, read_heartbeat
from nanochat.runs.listing import checkpoints
from nanochat.runs.metrics import SAMPLES, STAGES
from nanochat.untrusted import encodable

CURVE_POINTS = 300
SAMPLES_SHOWN = 120
SAMPLE_BYTES = 1 << 20  # of the end of the samples, that are read
SAMPLE_TEXTS = ("stage", "prompt", "text")
LINE_BYTES = 1 << 16  # of a line of metrics; what is longer is none
KEPT = (
    "stage",
    "step",
    "loss",
    "reward",
    "bpb",
    "lr",
    "tokens",
    "tokens_per_second",
    "step_seconds",
    "elapsed_seconds",
)  # of a line of metrics
ESTIMATES = ("seconds_left", "stage_seconds_left")  # of the heartbeat
RATE_STEPS = 20  # last steps for tokens per second and remaining time

Line = dict[str, Any]


def newest_training(runs: Path) -> tuple[Path, dict[str, Any]] | None:
    """(directory, heartbeat) of the run with the newest heartbeat; one that is alive comes first, whatever the clock was set to."""
    heartbeats = [(path.parent, heartbeat) for path in runs.glob(f"*/{HEARTBEAT}") if (heartbeat := _heartbeat(path.parent))]
    return max(heartbeats, key=lambda found: (found[1]["alive"], found[1]["time"]), default=None)


def _heartbeat(folder: Path) -> dict[str, Any] | None:
    """A run's heartbeat with the fields that are used here, None where there is none or one of them is odd."""
    heartbeat = read_heartbeat(folder)
    if heartbeat is None or not _is_number(heartbeat["time"]) or not isinstance(heartbeat.get("steps"), dict):
        return None
    steps = {stage: count for stage, count in heartbeat["steps"].items() if _is_count(count)}
    return heartbeat | {"steps": steps, "device": str(heartbeat.get("device", "")), "trial": bool(heartbeat.get("trial"))}


class TrainingView:
    """Follows the newest training. Reads only what was appended since the last call, in one thread at a time."""

    def __init__(self, runs: Path):
        self._runs = runs
        self._lock = threading.Lock()
        self._file: tuple[Any, ...] = ()  # the run's folder, and which file its metrics.jsonl is
        self._restart()

    def __call__(self) -> dict[str, Any] | None:
        """The run's state, None if no run is in training. `alive` is False for one that was killed.

        `skipped_lines` counts lines of the metrics that are none; it is only there where there are some.
        """
        with self._lock:
            found = newest_training(self._runs)
            if found is None:
                return None
            folder, heartbeat = found
            self._follow(folder)
            skipped = self._odd + self._last_is_odd
            return self._state(folder, heartbeat) | ({"skipped_lines": skipped} if skipped else {})

    def _state(self, folder: Path, heartbeat: dict[str, Any]) -> dict[str, Any]:
        last = self._lines[-1] if self._lines else {}
        stage = last.get("stage", "base")
        steps = heartbeat["steps"].get(stage, 0)
        recent = [line for line in self._lines[-RATE_STEPS:] if line["stage"] == stage]
        rates = [line["tokens_per_second"] for line in recent if line["tokens_per_second"] is not None]
        seconds = [line["step_seconds"] for line in recent if line["step_seconds"] is not None]
        left = stage_left = None
        planned = {name: heartbeat["steps"][name] for name in STAGES if heartbeat["steps"].get(name)}
        if seconds and heartbeat["alive"]:
            each = sorted(seconds)[len(seconds) // 2]
            later = sum(count for name, count in planned.items() if STAGES.index(name) > STAGES.index(stage))
            stage_left = round(max(steps - last["step"], 0) * each)
            left = stage_left + round(later * each)
        if heartbeat["alive"] and all(_is_number(heartbeat.get(name)) for name in ESTIMATES):  # the run's own, with all that it will do
            left, stage_left = (max(round(heartbeat[name]), 0) for name in ESTIMATES)
        others = heartbeat.get("cpu_others")
        busy = heartbeat["alive"] and others is not None and _is_number(others) and others >= NOTICED
        measure = "reward" if stage == "rl" else "loss"  # its loss only says which way it goes
        lines = [line for line in self._lines if (line["stage"] == "rl") == (stage == "rl") and line[measure] is not None]
        every = -(-len(lines) // CURVE_POINTS) or 1
        chosen = lines[(len(lines) - 1) % every :: every]
        measured = [line for line in self._lines if line["bpb"] is not None]
        measured = measured[:: -(-len(measured) // CURVE_POINTS) or 1]
        return {
            "run": encodable(folder.name),
            "stage": stage,
            "step": last.get("step", 0),
            "steps": steps,
            "measure": measure,
            "value": last.get(measure),
            "bpb": next((line["bpb"] for line in reversed(self._lines) if line.get("bpb") is not None), None),
            "tokens_per_second": sorted(rates)[len(rates) // 2] if rates else None,
            "seconds_left": left,
            "stage_seconds_left": stage_left,
            "cpu_others": others if busy else None,
            "elapsed_seconds": last.get("elapsed_seconds"),
            "tokens": last.get("tokens"),
            "stages": [{"stage": name, "steps": count} for name, count in planned.items()],
            "alive": heartbeat["alive"],
            "trial": heartbeat["trial"],
            "device": encodable(heartbeat["device"]),
            "checkpoint": next(iter(checkpoints(folder)), None),
            "curve": [
                {"stage": line["stage"], "step": line["step"], "value": line[measure]}
                | {"lr": line["lr"], "tokens_per_second": line["tokens_per_second"]}
                for line in chosen
            ],
            "validation": [{"stage": line["stage"], "step": line["step"], "bpb": line["bpb"]} for line in measured],
            "samples": read_samples(folder / SAMPLES),
        }

    def _restart(self) -> None:
        self._read = 0  # bytes of metrics.jsonl up to the last whole line, which is read again: an evaluation may be added to it
        self._lines: list[Line] = []
        self._odd, self._last_is_odd = 0, False  # lines before `_read` that were skipped; whether the last one was

    def _follow(self, folder: Path) -> None:
        """Read what metrics.jsonl has gained; from its beginning where it is another file or was cut."""
        path = folder / "metrics.jsonl"
        try:
            if not path.is_file():
                raise FileNotFoundError(path)
            with path.open("rb") as file:
                about = os.fstat(file.fileno())
                which = (folder, about.st_dev, about.st_ino)
                if which != self._file or about.st_size < self._read or not self._continues(file):
                    self._restart()
                self._file = which
                self._read_lines(file)
        except OSError:
            self._restart()

    def _continues(self, file: BinaryIO) -> bool:
        """Whether the last line that was read is still where it was: a resumed run may have cut the file and written it anew."""
        file.seek(max(self._read - 1, 0))
        if self._read and file.read(1) != b"\n":
            return False
        text = file.readline(LINE_BYTES)
        line = _parse(text)
        if not text:
            return False
        return line is None or self._last_is_odd or not self._lines or _order(line) == _order(self._lines[-1])

    def _read_lines(self, file: BinaryIO) -> None:
        """Take all whole lines from `_read` on, the last one of the call before again."""
        file.seek(self._read)
        again, begin = True, self._read
        while (text := file.readline(LINE_BYTES)) and (text.endswith(b"\n") or len(text) == LINE_BYTES):
            self._odd += self._last_is_odd and not again
            self._take(_parse(text))
            self._read, begin, again = begin, begin + len(text), False

    def _take(self, line: Line | None) -> None:
        """Append a line, or replace the one of its step. An earlier step is not of this run."""
        last = _order(self._lines[-1]) if self._lines else (0, -1)
        self._last_is_odd = line is None or _order(line) < last
        if line is None or self._last_is_odd:
            return
        if _order(line) == last:
            self._lines.pop()
        self._lines.append(line)


def _order(line: Line) -> tuple[int, int]:
    return STAGES.index(line["stage"]), line["step"]


def _parse(text: bytes) -> Line | None:
    """The shown fields of a line of metrics, None if one of them is invalid."""
    line = _object(text)
    if line is None or line.get("stage") not in STAGES or not _is_count(line.get("step")):
        return None
    kept = {key: line.get(key) for key in KEPT}
    numbers = [value for key, value in kept.items() if key != "stage" and value is not None]
    return kept if kept["loss"] is not None and all(map(_is_number, numbers)) else None


def _object(text: bytes | str) -> dict[str, Any] | None:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 53


def _is_number(value: object) -> bool:
    """Whether it is a number that JSON and arithmetic can take: no NaN, and none so large that a product overflows."""
    return isinstance(value, int | float) and not isinstance(value, bool) and -1e15 < value < 1e15


def last_trained(runs: Path) -> str | None:
    """The name of the run that took the newest step."""
    newest, when = None, 0.0
    try:
        with os.scandir(runs) as entries:
            for entry in entries:
                if not entry.name.startswith("."):
                    with contextlib.suppress(OSError):
                        written = os.stat(os.path.join(entry.path, "metrics.jsonl")).st_mtime
                        if written > when:
                            newest, when = entry.name, written
    except OSError:
        return None
    return None if newest is None else encodable(newest)


def read_samples(path: Path) -> list[dict[str, Any]]:
    """The samples, the newest last; of many, the first, the last and as many between as are shown."""
    if not path.is_file():
        return []
    try:
        with path.open("rb") as file:
            file.seek(max(path.stat().st_size - SAMPLE_BYTES, 0))
            lines = file.read(SAMPLE_BYTES).splitlines()
    except OSError:
        return []
    samples = [sample for line in lines if (sample := _sample(line))]
    return _thinned(samples)


def _thinned(samples: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """At most SAMPLES_SHOWN of the samples, all those of a step or none, evenly over the steps."""
    if len(samples) <= SAMPLES_SHOWN:
        return samples
    steps = list(dict.fromkeys((sample["stage"], sample["step"]) for sample in samples))
    count = max(SAMPLES_SHOWN * len(steps) // len(samples), 2)
    kept = {steps[round(index * (len(steps) - 1) / (count - 1))] for index in range(count)}
    return [sample for sample in samples if (sample["stage"], sample["step"]) in kept][:SAMPLES_SHOWN]


def _sample(text: bytes) -> dict[str, Any] | None:
    """A sample with the fields that the page shows, None if one of them is odd."""
    sample = _object(text)
    if sample is None or not _is_count(sample.get("step")) or not all(isinstance(sample.get(key), str) for key in SAMPLE_TEXTS):
        return None
    return {"step": sample["step"]} | {key: encodable(sample[key]) for key in SAMPLE_TEXTS}
