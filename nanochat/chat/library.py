"""The checkpoints that can be asked for beside the model that is served: loaded when they are, a few at a time.

A model's name is RUN, RUN:STAGE or RUN:STAGE:STEP.
"""

import asyncio
import json
from collections import OrderedDict
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

from nanochat import untrusted
from nanochat.chat.api_errors import ApiError, shown
from nanochat.chat.loading import LoadedModel
from nanochat.errors import NanochatError
from nanochat.runs.listing import checkpoints, list_runs, summary
from nanochat.runs.names import CheckpointName, plain_name, step_dir
from nanochat.runs.step_files import META

KEPT = 2  # models beside the one that is served: each takes memory
WAITING = 4  # requests that may wait for a model to be loaded


class ModelLibrary:
    """Models by name. `load` opens a checkpoint's directory where the server answers; `only` is the one run that is served, if it is."""

    def __init__(self, load: Callable[[Path], LoadedModel], runs: Path, only: str | None = None):
        self._load, self._runs, self._only = load, runs, only
        self._loaded: OrderedDict[Path, LoadedModel] = OrderedDict()
        self._lock = asyncio.Lock()
        self._waiting = 0

    async def get(self, text: str) -> LoadedModel:
        """The model of that name. Raises ApiError where there is none, or it cannot be loaded."""
        try:
            folder = await asyncio.to_thread(self._find, CheckpointName.parse(text))
        except (NanochatError, ValueError, OSError):
            folder = None
        if folder is None:
            raise ApiError(404, f"the model {shown(text)} is not served here", "model_not_found", "model")
        if self._waiting >= WAITING:
            raise ApiError(429, "models are being loaded for others", "too_many_requests", retry_after=5)
        self._waiting += 1
        try:
            async with self._lock:
                if folder not in self._loaded:
                    self._make_room()
                    self._loaded[folder] = await asyncio.to_thread(self._load, folder)
                self._loaded.move_to_end(folder)
                return self._loaded[folder]
        except (NanochatError, OSError, MemoryError, RuntimeError) as error:
            raise ApiError(503, f"the model {shown(text)} cannot be loaded: {untrusted.reason(error)}", "model_not_loaded") from error
        finally:
            self._waiting -= 1

    def forget(self) -> None:
        """Forget all models: the next request loads its own again, where there is memory for it then."""
        self._loaded.clear()

    def _make_room(self) -> None:
        """Forget the models that were not asked for the longest; answers that are on their way keep theirs."""
        while len(self._loaded) >= KEPT:
            self._loaded.popitem(last=False)

    def _find(self, name: CheckpointName) -> Path | None:
        """The directory of the checkpoint that a name asks for."""
        folder = self._runs / plain_name(name.run)
        if (self._only and name.run != self._only) or folder.is_symlink() or not folder.is_dir():
            return None
        for found in checkpoints(folder):
            if name.matches(CheckpointName(name.run, found["stage"], found["step"])):
                return step_dir(folder / found["stage"], found["step"])
        return None

    def list(self) -> list[dict[str, Any]]:
        """Every checkpoint that may be asked for, by run, the newest run first."""
        if self._only:
            one = summary(self._runs / self._only)
            runs = [one] if one else []
        else:
            runs = list_runs(self._runs)
        return [_card(self._runs, run, step, newest=number == 0) for run in runs for number, step in enumerate(run["checkpoints"])]


def _card(runs: Path, run: Any, step: Any, newest: bool) -> dict[str, Any]:
    """A checkpoint as the page shows it, with the score of the run's newest one."""
    about = _about(step_dir(runs / run["name"] / step["stage"], step["step"]) / META)
    return {
        "id": str(CheckpointName(run["name"], step["stage"], step["step"])),
        "run": run["name"],
        **step,
        "chats": step["stage"] != "base",
        "trial": run["trial"],
        "parameters": run["parameters"],
        "context": about.get("context"),
        "score": run["score"] if newest else None,
        "bpb": run["bpb"] if newest or step["stage"] == "base" else None,
        "date": run["date"],
    }


@lru_cache(maxsize=4096)
def _about(path: Path) -> dict[str, Any]:
    """A checkpoint's metadata about its model, which never changes."""
    try:
        context = json.loads(untrusted.read_bytes(path, 1 << 20))["model"]["max_seq_len"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return {}
    return {"context": context} if isinstance(context, int) else {}
