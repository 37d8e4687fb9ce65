"""The fields of a run's configuration, one frozen dataclass for each group, each with the checks of its own fields.

Every key of profiles/*.toml and every long flag of `train` is a field here, under the name that karpathy/nanochat gives it where it
has one. -1 and "auto" mean "chosen by rule": nanochat/planning/rules.py puts the rule's value in their place, and the run's
config.toml keeps that value. `Config` (config.py) has the fields of all groups; a function that needs one group names it in its
signature.
"""

import dataclasses
import math
from typing import Any

from nanochat.errors import UsageError
from nanochat.redaction import remember

EMBEDDED = "embedded"
TRACKERS = ("none", "tensorboard", "wandb", "trackio")
BYTES_AND_SPECIALS = 256 + 9  # ids that every vocabulary has


def field(default: Any, help: str, *choices: str, keeps_losses: bool = False) -> Any:
    """A field with its help text, the values it may have (none: any of its type), and whether a run's losses are the same without it."""
    return dataclasses.field(default=default, metadata={"help": help, "choices": choices, "keeps_losses": keeps_losses})


class Group:
    """What all groups share. A group checks its fields in `__post_init__`, after those of the groups before it."""

    def __post_init__(self) -> None:
        for declared in dataclasses.fields(self):  # type: ignore[arg-type]  # every group is a dataclass
            value, choices = getattr(self, declared.name), declared.metadata["choices"]
            if choices and value not in choices:
                raise UsageError(f"{declared.name} = {value!r} is unknown", f"one of: {', '.join(choices)}")

    def _require_positive(self, *names: str) -> None:
        """Raise UsageError where one of the fields is below 1."""
        for name in names:
            if getattr(self, name) < 1:
                raise UsageError(f"{name} = {getattr(self, name)} is too small", f"give --{name} a positive number")

    def _require_positive_or_rule(self, *names: str, zero: bool = False) -> None:
        """Raise UsageError where one of the fields is neither positive nor -1 (nor 0, with `zero`)."""
        for name in names:
            value = getattr(self, name)
            if value < -1 or (value == 0 and not zero):
                raise UsageError(f"{name} = {value} is not possible", f"give --{name} a positive number, or -1 for the rule")


@dataclasses.dataclass(frozen=True)
class RunConfig(Group):
    """Which run it is."""

    run: str = field("auto", "name of the run; auto: the profile's name", keeps_losses=True)
    profile: str = field("", "profile that these values began from", keeps_losses=True)
    trial: bool = field(False, "short test run for the GPU, instead of the full run")

    def __post_init__(self) -> None:
        super().__post_init__()
        if "/" in self.run or self.run.startswith(".") or not self.run:
            raise UsageError(f"run = {self.run!r} is no name of a folder", "give --run a plain name, such as my-first-run")


@dataclasses.dataclass(frozen=True)
class DataConfig(Group):
    """What the model learns from."""

    dataset: str = field("climbmix", "pretraining text: embedded, climbmix, fineweb-edu or hf:OWNER/NAME")
    data: str = field("", "your own text instead: a file or a directory of them, PATH or PATH:COLUMN")
    encoding: str = field("", "encoding of the text files of --data, such as cp1252; empty: detected")
    chat_data: str = field("", "your own conversations: a file or a directory of them, or a public set: hf:OWNER/NAME")
    identity: str = field("", "TOML file of the model's name, maker, languages and traits, learned in fine-tuning")
    shards: int = field(-1, "training shards to use; -1: what the token count needs")

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require_positive_or_rule("shards")
        try:
            "".encode(self.encoding or "utf-8")
        except LookupError:
            raise UsageError(f"encoding = {self.encoding!r} is unknown", "a name such as utf-8, cp1252, big5 or gb18030") from None


@dataclasses.dataclass(frozen=True)
class ModelConfig(Group):
    """The model's shape."""

    vocab_size: int = field(-1, "tokens in the vocabulary, the nine specials included; -1: from the size of the text, 32768 if unknown")
    architecture: str = field(
        "nanochat", "nanochat, or portable (a Qwen3, for other engines; 8% more bits per byte)", "nanochat", "portable"
    )
    depth: int = field(20, "layers; the model's width is depth x aspect_ratio")
    aspect_ratio: int = field(64, "width for each layer of depth")
    head_dim: int = field(128, "width of one attention head")
    max_seq_len: int = field(2048, "context length in tokens")
    window_pattern: str = field("L", "attention window of each layer, repeated: L the whole context, S a quarter of it")

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require_positive("depth", "aspect_ratio", "head_dim", "max_seq_len")
        if self.head_dim % 2:
            raise UsageError(f"head_dim = {self.head_dim} is odd", "rotary embeddings need an even --head_dim")
        if not self.window_pattern or set(self.window_pattern.upper()) - set("SL"):
            hint = "letters S (a quarter of the context) and L (all of it), as in SSSL"
            raise UsageError(f"window_pattern = {self.window_pattern!r} is unknown", hint)
        if self.vocab_size != -1 and self.vocab_size < BYTES_AND_SPECIALS:
            hint = f"256 bytes and 9 special tokens need at least {BYTES_AND_SPECIALS}"
            raise UsageError(f"vocab_size = {self.vocab_size} is too small", hint)


@dataclasses.dataclass(frozen=True)
class PretrainConfig(Group):
    """How long pretraining is: the tokens of a step (also of a fine-tuning step), and the number of steps."""

    device_batch_size: int = field(32, "micro-batch size: sequences on one device at a time", keeps_losses=True)
    total_batch_size: int = field(-1, "tokens per step over all devices; -1: from the number of training tokens")
    num_iterations: int = field(-1, "pretraining steps; -1: from target_param_data_ratio")
    target_param_data_ratio: float = field(12.0, "training tokens per scaling parameter")
    hours: float = field(0.0, "time budget in hours; picks depth, batch size and steps for this machine; 0: off")

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require_positive("device_batch_size")
        self._require_positive_or_rule("total_batch_size", "num_iterations")
        if not 0 <= self.hours < 10_000:
            raise UsageError(f"hours = {self.hours:g} is not possible", "give --hours a positive number, such as 8 or 0.5")


@dataclasses.dataclass(frozen=True)
class OptimizerConfig(Group):
    """Pretraining's peak learning rates, and the weight decay."""

    embedding_lr: float = field(0.3, "AdamW learning rate of the token embedding")
    value_embedding_lr: float = field(0.15, "AdamW learning rate of the value embeddings")
    unembedding_lr: float = field(0.008, "AdamW learning rate of the output head")
    matrix_lr: float = field(0.02, "Muon learning rate of the matrices")
    scalar_lr: float = field(0.5, "AdamW learning rate of the residual scalars")
    weight_decay: float = field(-1.0, "Muon weight decay; -1: from the batch size and the number of tokens")


@dataclasses.dataclass(frozen=True)
class ScheduleConfig(Group):
    """Pretraining's learning rate over time: linear warmup, constant, linear cooldown."""

    warmup_steps: int = field(40, "steps of linear warmup")
    warmdown_ratio: float = field(0.65, "cooldown: final fraction of the steps, over which the learning rate falls")
    final_lr_frac: float = field(0.05, "fraction of the learning rate left at the last step")


@dataclasses.dataclass(frozen=True)
class SFTConfig(Group):
    """Supervised fine-tuning on conversations."""

    sft_iterations: int = field(-1, "fine-tuning steps; -1: an eighth of pretraining's, at most one pass over the conversations; 0: none")
    sft_lr_frac: float = field(0.8, "fine-tuning's learning rate as a fraction of pretraining's")

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require_positive_or_rule("sft_iterations", zero=True)


@dataclasses.dataclass(frozen=True)
class RLConfig(Group):
    """Reinforcement learning with verifiable rewards."""

    rl_iterations: int = field(-1, "RL steps; -1: one pass over the prompts, with --stage=rl only")
    rl_examples_per_step: int = field(16, "prompts per RL step, over all ranks")
    rl_num_samples: int = field(16, "rollouts per prompt")
    rl_max_new_tokens: int = field(256, "tokens per rollout, at most half the context length")
    rl_temperature: float = field(1.0, "rollout sampling temperature")
    rl_top_k: int = field(50, "rollout sampling from the k most likely tokens; 0: all")
    rl_lr_frac: float = field(0.05, "RL's initial learning rate as a fraction of pretraining's; it falls to 0")
    rl_eval_examples: int = field(400, "held-out prompts per RL evaluation (pass@k)")

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require_positive("rl_examples_per_step", "rl_max_new_tokens", "rl_eval_examples")
        self._require_positive_or_rule("rl_iterations")
        if self.rl_num_samples < 2:
            hint = "give --rl_num_samples a number from 2: an answer is better or worse than the others to its question"
            raise UsageError(f"rl_num_samples = {self.rl_num_samples} is too small", hint)
        if not 0 < self.rl_temperature < math.inf:
            hint = "give --rl_temperature a positive number, such as 1"
            raise UsageError(f"rl_temperature = {self.rl_temperature:g} is not possible", hint)
        if self.rl_top_k < 0:
            raise UsageError(f"rl_top_k = {self.rl_top_k} is negative", "give --rl_top_k a number such as 50, or 0 for all tokens")
        if not 0 < self.rl_lr_frac < math.inf:
            raise UsageError(f"rl_lr_frac = {self.rl_lr_frac:g} is not possible", "give --rl_lr_frac a positive number, such as 0.05")


@dataclasses.dataclass(frozen=True)
class EvaluationConfig(Group):
    """What is measured during and after training."""

    eval_every: int = field(250, "steps between evaluations in bits per byte; -1: only at the end", keeps_losses=True)
    eval_tokens: int = field(-1, "tokens per evaluation; -1: about 3% of the run's time in all", keeps_losses=True)
    core_metric_max_per_task: int = field(
        500, "questions of each CORE and chat task at the end, where their files are present; -1: all; 0: none", keeps_losses=True
    )
    sample_every: int = field(-1, "steps between samples; -1: only at the end", keeps_losses=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require_positive_or_rule("sample_every", "eval_every")
        if self.core_metric_max_per_task < -1:
            hint = "a positive number, -1 for all, 0 for none"
            raise UsageError(f"core_metric_max_per_task = {self.core_metric_max_per_task} is not possible", hint)


@dataclasses.dataclass(frozen=True)
class CheckpointConfig(Group):
    """What is saved while a run trains, and where copies go: checkpoints to a mirror, curves to a tracker."""

    save_every: int = field(-1, "steps between checkpoints; -1: by time alone", keeps_losses=True)
    save_minutes: float = field(15.0, "minutes between checkpoints at most", keeps_losses=True)
    keep_last: int = field(2, "checkpoints to keep of each stage", keeps_losses=True)
    log_to: str = field("none", "experiment tracker for the curves: none, tensorboard, wandb or trackio", *TRACKERS, keeps_losses=True)
    mirror: str = field("", "remote copy of the checkpoints, used to resume on another machine: s3:, gs:, hf: or file:", keeps_losses=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        remember(self.mirror)
        self._require_positive("keep_last")
        self._require_positive_or_rule("save_every")


@dataclasses.dataclass(frozen=True)
class DeviceConfig(Group):
    """Where and how a run computes: faults it tolerates, device, precision, processes, determinism."""

    skip_bad_batches: int = field(0, "NaN or Inf steps to skip per stage before stopping", keeps_losses=True)
    device: str = field("auto", "auto, cuda or cpu", "auto", "cuda", "cpu")
    dtype: str = field(
        "auto",
        "activations: bfloat16, float32, int16 (CPU only: float32, multiplied as 16-bit integers), or auto (the fastest here)",
        *("bfloat16", "float32", "int16", "auto"),
    )
    compile: str = field("auto", "torch.compile: on, off, or auto (on where the run is long enough to gain by it)", "on", "off", "auto")
    activation_memory_budget: float = field(
        1.0, "fraction of activations kept by a compiled step; the rest is recomputed", keeps_losses=True
    )
    nproc_per_node: int = field(1, "processes (GPUs) on this machine", keeps_losses=True)
    hang_timeout: float = field(1800.0, "seconds without progress after which a process ends with exit code 7; 0: never", keeps_losses=True)
    seed: int = field(42, "seed of the initial weights and of the data's order")
    deterministic: bool = field(False, "float32, compile off, deterministic algorithms: equal losses, digit for digit")
    threads: int = field(-1, "CPU threads per process; -1: all physical cores")

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require_positive("nproc_per_node")
        self._require_positive_or_rule("threads")
        if self.skip_bad_batches < 0:
            raise UsageError(f"skip_bad_batches = {self.skip_bad_batches} is negative", "give --skip-bad-batches a number from 0")
        if not 0 < self.activation_memory_budget <= 1:
            hint = "give --activation_memory_budget a number above 0, such as 0.5; 1 keeps all"
            raise UsageError(f"activation_memory_budget = {self.activation_memory_budget:g} is not possible", hint)
        if self.seed < 0:
            raise UsageError(f"seed = {self.seed} is negative", "give --seed a number from 0")
        if self.deterministic and self.dtype in ("bfloat16", "int16"):
            raise UsageError(f"a deterministic run is in float32, and dtype is {self.dtype}", "leave out --dtype or --deterministic")
        if self.device == "cuda" and self.dtype == "int16":
            raise UsageError("int16 is for a CPU, and the device is cuda", "leave out --dtype")
