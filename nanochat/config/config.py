"""`Config`: one flat, frozen configuration with the fields of all groups, validated where it is built."""

import dataclasses
from typing import Any

from nanochat.config.groups import (
    CheckpointConfig,
    DataConfig,
    DeviceConfig,
    EvaluationConfig,
    ModelConfig,
    OptimizerConfig,
    PretrainConfig,
    RLConfig,
    RunConfig,
    ScheduleConfig,
    SFTConfig,
)
from nanochat.errors import UsageError

STEP_FIELDS = {"base": "num_iterations", "sft": "sft_iterations", "rl": "rl_iterations"}  # stage -> field of its number of steps


@dataclasses.dataclass(frozen=True)
class Config(
    # Last to first: a dataclass takes its fields, and a `super()` call its checks, from the last base on.
    DeviceConfig,
    CheckpointConfig,
    EvaluationConfig,
    RLConfig,
    SFTConfig,
    ScheduleConfig,
    OptimizerConfig,
    PretrainConfig,
    ModelConfig,
    DataConfig,
    RunConfig,
):
    """Everything that decides a run. Raises UsageError where a value or a combination of values is impossible."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_iterations == 0 and not self.from_run:
            raise UsageError("--num_iterations=0 is out of range", "--num_iterations takes a positive whole number, or auto")
        if self.total_batch_size != -1:
            self._check_batch()

    def _check_batch(self) -> None:
        """Raise UsageError where a step's tokens do not divide into whole sequences; the hint lists numbers that do."""
        if self.total_batch_size % self.max_seq_len:
            low = max(self.total_batch_size // self.max_seq_len, 1) * self.max_seq_len
            raise UsageError(
                f"--total_batch_size={self.total_batch_size} is not a multiple of --max_seq_len={self.max_seq_len}",
                f"use the nearest multiple, --total_batch_size={low} or {low + self.max_seq_len}",
            )
        rows = self.total_batch_size // self.max_seq_len
        if rows % (self.device_batch_size * self.nproc_per_node):
            fitting = [n for n in range(1, min(rows, 65536) + 1) if rows % (n * self.nproc_per_node) == 0]
            step = self.device_batch_size * self.nproc_per_node * self.max_seq_len
            near = max(self.total_batch_size // step, 1) * step
            raise UsageError(
                f"--total_batch_size={self.total_batch_size} does not divide into {self.nproc_per_node} process(es) x "
                f"--device_batch_size={self.device_batch_size} sequences of {self.max_seq_len} tokens",
                (f"--device_batch_size may be {', '.join(map(str, fitting[:12]))}; or " if fitting else "")
                + f"--total_batch_size={near} or {near + step}",
            )

    @property
    def steps(self) -> dict[str, int]:
        """Steps of each stage, in the order of the stages; -1 where they are still to be chosen."""
        return {stage: getattr(self, name) for stage, name in STEP_FIELDS.items()}

    @property
    def first_stage(self) -> str:
        """The stage that the run begins with: pretraining, unless it continues another run's model."""
        return next((stage for stage, steps in self.steps.items() if steps), "rl")

    def replace(self, **changes: Any) -> "Config":
        """A copy with `changes`, validated like the first."""
        return dataclasses.replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        """Field name -> value, in the order of declaration."""
        return dataclasses.asdict(self)


# Title -> group, in the order in which the help shows them. The fields of a group are its own annotations.
GROUPS = {
    "Run": RunConfig,
    "Data": DataConfig,
    "Model": ModelConfig,
    "Pretraining": PretrainConfig,
    "Optimizer": OptimizerConfig,
    "Schedule": ScheduleConfig,
    "Fine-tuning": SFTConfig,
    "Reinforcement learning": RLConfig,
    "Evaluation": EvaluationConfig,
    "Checkpoints": CheckpointConfig,
    "Device": DeviceConfig,
}
FIELDS = {declared.name: declared for declared in dataclasses.fields(Config)}
RL_FIELDS = tuple(declared.name for declared in dataclasses.fields(RLConfig))


def differences(old: Config, new: Config) -> dict[str, tuple[Any, Any]]:
    """Fields that differ and would change the losses: name -> (old, new)."""
    return {
        name: (getattr(old, name), getattr(new, name))
        for name, declared in FIELDS.items()
        if getattr(old, name) != getattr(new, name) and not declared.metadata["keeps_losses"]
    }
