"""What the page shows of a running training, read from the files that it writes: heartbeat, metrics, samples."""

import json
from pathlib import Path
from typing import Any

from nanochat.runs.heartbeat import HEARTBEAT, read_heartbeat
from nanochat.runs.metrics import SAMPLES

CURVE_POINTS = 300
SAMPLES_SHOWN = 6
KEPT = ("stage", "step", "loss", "reward", "bpb", "tokens_per_second", "step_seconds")  # of a line of metrics
RATE_STEPS = 20  # the last steps that the rate and the time left are taken from


def newest_training(runs: Path) -> tuple[Path, dict[str, Any]] | None:
    """The folder and the heartbeat of the training that spoke last, among all runs."""
    beats = [(path.parent, beat) for path in runs.glob(f"*/{HEARTBEAT}") if (beat := read_heartbeat(path.parent))]
    return max(beats, key=lambda found: found[1]["time"], default=None)


class TrainingView:
    """Follows the newest training. Reads only what was appended since the last call."""

    def __init__(self, runs: Path):
        self._runs = runs
        self._folder: Path | None = None
        self._read = 0  # bytes of metrics.jsonl
        self._lines: list[dict[str, Any]] = []

    def __call__(self) -> dict[str, Any] | None:
        """The training's state, None where none is under way. `alive` is False for one that was killed."""
        found = newest_training(self._runs)
        if found is None:
            return None
        folder, beat = found
        self._follow(folder)
        last = self._lines[-1] if self._lines else {}
        stage = last.get("stage", "base")
        steps = int(beat["steps"].get(stage, 0))
        rates = [line["tokens_per_second"] for line in self._lines[-RATE_STEPS:] if line["stage"] == stage]
        seconds = [line["step_seconds"] for line in self._lines[-RATE_STEPS:] if line["stage"] == stage]
        left = None
        if seconds and beat["alive"]:
            later = int(beat["steps"].get("sft", 0)) if stage == "base" else 0
            left = round((steps - last["step"] + later) * sorted(seconds)[len(seconds) // 2])
        measure = "reward" if stage == "rl" else "loss"  # its loss only says which way it goes
        lines = [line for line in self._lines if (line["stage"] == "rl") == (stage == "rl")]
        every = -(-len(lines) // CURVE_POINTS) or 1
        chosen = lines[(len(lines) - 1) % every :: every]
        return {
            "run": folder.name,
            "stage": stage,
            "step": last.get("step", 0),
            "steps": steps,
            "measure": measure,
            "value": last.get(measure),
            "bpb": next((line["bpb"] for line in reversed(self._lines) if line.get("bpb") is not None), None),
            "tokens_per_second": sorted(rates)[len(rates) // 2] if rates else None,
            "seconds_left": left,
            "alive": beat["alive"],
            "trial": beat["trial"],
            "curve": [{"stage": line["stage"], "step": line["step"], "value": line[measure]} for line in chosen],
            "samples": _tail(folder / SAMPLES),
        }

    def _follow(self, folder: Path) -> None:
        """Read what metrics.jsonl has gained; from its beginning where it is another file or was cut."""
        path = folder / "metrics.jsonl"
        size = path.stat().st_size if path.exists() else 0
        if folder != self._folder or size < self._read:
            self._folder, self._read, self._lines = folder, 0, []
        if not size:
            return
        with path.open("rb") as file:
            # The last line is read again: an evaluation may have been added to it.
            file.seek(self._read)
            data = file.read()
        whole = data[: data.rfind(b"\n") + 1]
        for text in whole.splitlines():
            try:
                line = json.loads(text)
            except ValueError:
                continue
            if self._lines and (self._lines[-1]["stage"], self._lines[-1]["step"]) == (line["stage"], line["step"]):
                self._lines.pop()
            self._lines.append({key: line.get(key) for key in KEPT})
        last = whole[:-1].rfind(b"\n") + 1
        self._read += last


def _tail(path: Path) -> list[dict[str, Any]]:
    """The newest samples, the newest last."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()[-SAMPLES_SHOWN:]
        return [json.loads(line) for line in lines]
    except (OSError, ValueError):
        return []
