"""Names of runs, of checkpoints, RUN[:STAGE[:STEP]], and of their files and directories.

Imports neither torch nor safetensors, so that runs are listed at once.
"""

from dataclasses import dataclass
from pathlib import Path

from nanochat.config import Config
from nanochat.runs.metrics import STAGES

RECORD = "config.toml"  # of a run
RECORD_BYTES = 16 << 20  # size limit of the file, which names all shards
MANIFEST = "manifest.json"  # of a step, which is complete when it exists


@dataclass(frozen=True)
class CheckpointName:
    """RUN[:STAGE[:STEP]]; missing parts are None."""

    run: str
    stage: str | None = None
    step: int | None = None

    @staticmethod
    def parse(text: str) -> "CheckpointName":
        """The parts of `text`, which is a run's own name, colons included, if no stage follows it."""
        run, *rest = text.rsplit(":", 2)
        if rest and rest[-1] in STAGES:
            return CheckpointName(":".join([run, *rest[:-1]]), rest[-1])
        if len(rest) == 2 and rest[0] in STAGES and rest[1].isascii() and rest[1].isdecimal() and len(rest[1]) < 16:
            return CheckpointName(run, rest[0], int(rest[1]))
        return CheckpointName(text)

    def matches(self, other: "CheckpointName") -> bool:
        """Whether `other`, which is complete, is a checkpoint of this name."""
        return self.run == other.run and self.stage in (None, other.stage) and self.step in (None, other.step)

    def __str__(self) -> str:
        return ":".join(str(part) for part in (self.run, self.stage, self.step) if part is not None)


def plain_name(run: str) -> str:
    """Return `run` if it is valid as a directory name. Raises UsageError."""
    return Config(run=run).run


def step_dir(stage: Path, step: int) -> Path:
    """The directory of a step in the directory of its stage."""
    return stage / f"step_{step:06d}"
