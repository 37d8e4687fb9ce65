"""Which model answers: the newest checkpoint, loaded while the server runs, on a device that no training run needs.

A model that converses is only replaced by a newer one of its run that converses too: nobody's conversation continues with a base model,
or with another run's, unasked.
"""

import contextlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from nanochat.chat.loading import LoadedModel
from nanochat.chat.scheduler import Scheduler
from nanochat.chat.training import newest_training
from nanochat.console import log
from nanochat.errors import DataError, NanochatError
from nanochat.hardware.cpu import physical_cores
from nanochat.runs.names import MANIFEST

POLL_SECONDS = 2.0


@dataclass(frozen=True)
class Choice:
    """A checkpoint's folder, when it was finished, and the device to run it on."""

    checkpoint: Path
    finished: float
    device: str


class ModelWatcher:
    """Looks every two seconds for a newer checkpoint, and whether a training run has taken or left the GPU.

    `find` returns the directories of checkpoints that may answer, the best first (DataError if there is none), `load` opens one on a
    device. `reserved` tells whether a run that is about to train needs the GPU. A checkpoint that cannot be loaded is refused once, with
    the reason, and the next one is tried: the model before it stays.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        find: Callable[[], list[Path]],
        load: Callable[[Path, str], LoadedModel],
        runs: Path,
        device: str = "cpu",
        reserved: Callable[[], bool] = lambda: False,
    ):
        self._reserved, self._looking = reserved, threading.Lock()
        self._scheduler, self._find, self._load, self._runs, self._device = scheduler, find, load, runs, device
        self._chosen: Choice | None = None
        self._refused: set[Choice] = set()
        self._empty_said = False
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="models", daemon=True)

    def start(self) -> None:
        """Load the newest model, if there is one, and keep looking for newer ones."""
        self.look()
        self._thread.start()

    def stop(self) -> None:
        """Look no more."""
        self._ended.set()
        if self._thread.ident is not None:  # Ctrl-C may come while the first model is loaded
            self._thread.join(timeout=30)

    def look(self) -> None:
        """Take over the checkpoint that should answer now, unless it already does. From any thread."""
        with self._looking:
            self._look()

    def _look(self) -> None:
        device = self.place()
        self._share()
        for choice in self._choices(device):
            if choice == self._chosen:
                return
            if choice not in self._refused and self._take(choice):
                return
        if self._chosen is None and not self._empty_said:
            self._empty_said = True
            log("there is no model yet: the page says what to run, and answers begin when one is trained")

    def _choices(self, device: str) -> Iterator[Choice]:
        try:
            for folder in self._find():
                if not self._may_follow(folder):
                    continue
                with contextlib.suppress(FileNotFoundError):  # it was pruned meanwhile
                    yield Choice(folder, (folder / MANIFEST).stat().st_mtime, device)
        except DataError:  # no run yet
            return

    def _may_follow(self, folder: Path) -> bool:
        """Whether the checkpoint in `folder` may take the place of the model that answers now."""
        current = self._scheduler.current
        if self._chosen and folder == self._chosen.checkpoint:  # the same model on another device
            return True
        return current is None or not current.chats or (folder.parts[-3] == current.name and folder.parts[-2] != "base")

    def _take(self, choice: Choice) -> bool:
        """Whether the scheduler now answers with `choice`."""
        try:
            loaded = self._load(choice.checkpoint, choice.device)
        except (NanochatError, OSError, MemoryError, RuntimeError) as error:
            self._refused.add(choice)
            log(f"warning: {choice.checkpoint} is refused: {error}")
            return False
        moved = choice.device == "cpu" and self._chosen is not None and self._chosen.device == "cuda"
        self._chosen = choice
        self._scheduler.serve(loaded)
        if moved:
            torch.cuda.empty_cache()  # the run plans with what is free
        log(f"serving run {loaded.name}, {loaded.stage} step {loaded.step}, on the {'GPU' if loaded.device == 'cuda' else 'CPU'}")
        return True

    def place(self) -> str:
        """The device to answer on: not the GPU while a training run uses it, so that neither causes the other's out of memory."""
        if self._device != "cuda":
            return self._device
        training = newest_training(self._runs)
        trains = training is not None and training[1]["alive"] and training[1]["device"] == "cuda"
        if trains or self._reserved():
            if self._chosen is None or self._chosen.device == "cuda":
                name = f"the run {training[0].name}" if training and trains else "the run that begins"
                log(f"{name} uses the GPU, so answers come from the CPU until it ends")
            return "cpu"
        return "cuda"

    def _share(self) -> None:
        """Answer with at most half of the cores while a training run uses the CPU, which then measures its own threads again."""
        training = newest_training(self._runs)
        shared = bool(training and training[1]["alive"] and training[1]["device"] == "cpu")
        most = max(physical_cores() // 2, 1) if shared else None
        if training and most and not self._scheduler.most_threads:
            log(f"the run {training[0].name} trains on the CPU, so answers use at most half of its cores until it ends")
        self._scheduler.most_threads = most

    def _run(self) -> None:
        said = ""
        while not self._ended.wait(POLL_SECONDS):
            try:
                self.look()
            except Exception as error:  # the server must survive any damage in a directory
                failure = f"{type(error).__name__}: {error}"
                if failure != said:  # once, not every two seconds
                    log(f"warning: looking for a newer model failed: {failure}")
                said = failure
