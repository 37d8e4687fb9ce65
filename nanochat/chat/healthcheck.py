"""Health check of a container, `python -m nanochat.chat.healthcheck`: exits with 0 or 1 and prints one line.

A server is healthy if it answers, a training run if it is not stopped and makes steps, any other command if it runs. Only the standard
library is imported, because this is called every half minute.
"""

import os
import sys
import time
import urllib.request
from pathlib import Path

from nanochat import paths
from nanochat.console import show
from nanochat.runs.heartbeat import HEARTBEAT, read_heartbeat

PROCESSES = Path("/proc")
SERVERS = ("serve", "scripts.chat_web")
TRAININGS = ("train", "quickstart", "scripts.base_train")
ANSWER_SECONDS = 5.0
STEP_SECONDS = 1800.0  # an evaluation, a compilation or the slowest step takes less


def check(now: float | None = None) -> str | None:
    """The reason why the command in this container is unhealthy, None if it is healthy."""
    command = _command()
    if command is None:
        return None
    process, arguments = command
    if arguments[0] in SERVERS:
        return _server(arguments)
    if arguments[0] in TRAININGS:
        return _training(process, now or time.time())
    return None


def _command() -> tuple[Path, list[str]] | None:
    """(directory under /proc of the first process that runs a nanochat command, the command with its arguments)."""
    for process in sorted(PROCESSES.glob("[0-9]*"), key=lambda path: int(path.name)):
        try:
            words = (process / "cmdline").read_bytes().decode(errors="replace").rstrip("\0").split("\0")
        except OSError:  # it has ended meanwhile
            continue
        if "python" not in Path(words[0]).name:
            continue
        for place, word in enumerate(words[1:3], start=1):
            if Path(word).name in ("nanochat", "entrypoint.py") and words[place + 1 :]:
                return process, words[place + 1 :]
            if word.startswith("scripts."):
                return process, words[place:]
    return None


def _server(arguments: list[str]) -> str | None:
    """Whether the server answers on its port."""
    words = [part for word in arguments for part in word.split("=", 1)]
    port = words[words.index("--port") + 1] if "--port" in words[:-1] else "8000"
    try:
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # the container may have a proxy for its downloads
        with direct.open(f"http://127.0.0.1:{port}/healthz", timeout=ANSWER_SECONDS):
            return None
    except OSError as error:
        return f"the server does not answer: {error}"


def _training(process: Path, now: float) -> str | None:
    """Whether the run makes progress: not stopped, with a step, a checkpoint or an evaluation in the last half hour."""
    status, started = _state(process)
    if status in "TtZ":
        return "the run is stopped"
    steps = max((path.stat().st_mtime for path in paths.runs_dir().glob("*/metrics.jsonl")), default=0.0)
    if steps < started:  # it prepares its data, which may take hours
        return None
    saved = max((path.stat().st_mtime for path in paths.runs_dir().glob("*/*/")), default=0.0)  # base/ and sft/ gain a folder
    still = now - max(steps, saved) if (idle := _idle()) is None else idle
    return f"no step for {still:.0f} seconds" if still > STEP_SECONDS else None


def _idle() -> float | None:
    """Seconds since the last step, without suspensions and whatever the clock was set to, as a living run says; None if none does."""
    found = [heartbeat for path in paths.runs_dir().glob(f"*/{HEARTBEAT}") if (heartbeat := read_heartbeat(path.parent))]
    idle = [heartbeat.get("idle_seconds") for heartbeat in found if heartbeat["alive"]]
    return min((seconds for seconds in idle if isinstance(seconds, int | float)), default=None)


def _state(process: Path) -> tuple[str, float]:
    """The letter of a process's state, and when it began, in seconds since the epoch."""
    fields = (process / "stat").read_text().rpartition(")")[2].split()
    booted = next(line.split()[1] for line in (PROCESSES / "stat").read_text().splitlines() if line.startswith("btime"))
    return fields[0], int(booted) + int(fields[19]) / os.sysconf("SC_CLK_TCK")


def main() -> int:
    """Print what is wrong, or that nothing is."""
    wrong = check()
    show(wrong or "well")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
