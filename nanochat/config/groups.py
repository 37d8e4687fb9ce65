"""The fields of a run's configuration, one frozen dataclass for each group, each with the checks of its own fields.

Every key of profiles/*.toml and every long flag of `train` is a field here, under the name that karpathy/nanochat gives it where it
has one. -1 and "auto" mean "chosen automatically": nanochat/planning/rules.py replaces them by a value, mostly one that follows from the
model's size, and the run's config.toml keeps that value. `Config` (config.py) has the fields of all groups. A function that needs one
group names it in its signature.
"""

import dataclasses
import math
from typing import Any

from nanochat.errors import UsageError, did_you_mean
from nanochat.redaction import remember

EMBEDDED = "embedded"
TRACKERS = ("none", "tensorboard", "wandb", "trackio")
BYTES_AND_SPECIALS = 256 + 9  # ids that every vocabulary has
LARGEST = 2**53  # of whole numbers: exact in JSON, and far from the bounds of torch's integers
# Devices of torch that no operation here is written or tested for, by the maker of the GPU.
UNSUPPORTED = {"mps": "Apple", "xpu": "Intel", "hip": "AMD"}


def field(default: Any, help: str, *choices: str, metavar: str = "", auto: str = "", keeps_losses: bool = False) -> Any:
    """A field with its help text, a noun phrase with its unit.

    `choices` are the values that it may have (none: any of its type), `metavar` stands for its value in the help, `auto` says what is
    chosen where it is "auto" or -1, and `keeps_losses` whether a run's losses are the same whatever its value is.
    """
    about = {"help": help, "choices": choices, "metavar": metavar, "auto": auto, "keeps_losses": keeps_losses}
    return dataclasses.field(default=default, metadata=about)


class Group:
    """Validation shared by all groups. A group checks its fields in `__post_init__`, after those of the groups before it."""

    def __post_init__(self) -> None:
        for declared in dataclasses.fields(self):  # type: ignore[arg-type]  # every group is a dataclass
            value, choices = getattr(self, declared.name), declared.metadata["choices"]
            if choices and value not in choices:
                raise UsageError(f"unknown value in --{declared.name}={value}", did_you_mean(str(value), choices))
            if isinstance(value, float) and not math.isfinite(value):
                raise UsageError(f"--{declared.name}={value} is not a finite number", f"--{declared.name} takes a number such as 0.5")
            if isinstance(value, int) and value > LARGEST:
                raise UsageError(f"--{declared.name}={value} is too large", f"--{declared.name} takes a number up to {LARGEST}")

    def _require_positive(self, *names: str) -> None:
        """Raise UsageError where one of the fields is below 1."""
        for name in names:
            if getattr(self, name) < 1:
                raise UsageError(f"--{name}={getattr(self, name)} is too small", f"--{name} takes a positive whole number")

    def _require_positive_or_auto(self, *names: str, zero: bool = False) -> None:
        """Raise UsageError where one of the fields is neither positive nor -1 (nor 0, with `zero`)."""
        for name in names:
            value = getattr(self, name)
            if value < -1 or (value == 0 and not zero):
                special = "auto" if self.__dataclass_fields__[name].metadata["auto"] else "-1"  # type: ignore[attr-defined]
                raise UsageError(f"--{name}={value} is out of range", f"--{name} takes a positive whole number, or {special}")


@dataclasses.dataclass(frozen=True)
class RunConfig(Group):
    """Which run it is."""

    run: str = field("auto", "Name of the run, a directory in runs/", metavar="NAME", auto="the profile's name", keeps_losses=True)
    profile: str = field("", "Profile that these values began from", metavar="NAME", keeps_losses=True)
    trial: bool = field(False, "Short test run for the GPU, about two minutes")
    from_run: str = field("", "Run to begin from: its weights and tokenizer, of the newest base step", metavar="RUN[:STAGE[:STEP]]")

    def __post_init__(self) -> None:
        super().__post_init__()
        if "/" in self.run or self.run.startswith(".") or not self.run:
            raise UsageError(f"--run={self.run} is not a directory name", "--run takes a plain name, as in --run=my-first-run")


@dataclasses.dataclass(frozen=True)
class DataConfig(Group):
    """Texts and conversations for training."""

    dataset: str = field(
        "climbmix",
        "Pretraining text: embedded, climbmix, fineweb-edu, zh-tw, hf:OWNER/NAME[/SUBSET], or shares of several",
        metavar="NAME",
    )
    data: str = field("", "Your own text instead: a file or directory, or PATH:COLUMN", metavar="PATH")
    encoding: str = field("", "Encoding of text files in --data, as in cp1252; without it, detected", metavar="NAME")
    chat_data: str = field(
        "", "Your own conversations: a file or directory, hf:OWNER/NAME, zh-tw, or shares of several sets", metavar="PATH"
    )
    identity: str = field("", "TOML file with the model's name, maker, languages and traits", metavar="FILE")
    shards: int = field(-1, "Training shards", auto="as many as the training tokens need")

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require_positive_or_auto("shards")
        try:
            "".encode(self.encoding or "utf-8")
        except LookupError:
            hint = "it takes a name such as utf-8, cp1252, big5 or gb18030; without it, the encoding is detected"
            raise UsageError(f"unknown encoding in --encoding={self.encoding}", hint) from None


@dataclasses.dataclass(frozen=True)
class ModelConfig(Group):
    """The model's shape."""

    vocab_size: int = field(-1, "Tokens in the vocabulary, 9 special tokens included", auto="from the size of the text, 32768 if unknown")
    architecture: str = field(
        "nanochat", "Architecture; portable is a Qwen3 for other engines, at about 8% more bits per byte", *("nanochat", "portable")
    )
    depth: int = field(20, "Layers; the model's width is depth x aspect_ratio")
    aspect_ratio: int = field(64, "Width per layer")
    head_dim: int = field(128, "Width of one attention head")
    max_seq_len: int = field(2048, "Context length in tokens", metavar="TOKENS")
    window_pattern: str = field(
        "L", "Attention window of each layer, repeated; L: full context, S: a quarter of it, on a CPU", metavar="LETTERS"
    )
    shape: str = field("", "Shape of an imported model as JSON, set by --from", metavar="JSON")

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require_positive("depth", "aspect_ratio", "head_dim", "max_seq_len")
        if self.head_dim % 2:
            raise UsageError(
                f"--head_dim={self.head_dim} is odd", "set an even --head_dim, which rotary embeddings need, as in --head_dim=64"
            )
        if not self.window_pattern or set(self.window_pattern.upper()) - set("SL"):
            hint = "it takes the letters S (a quarter of the context) and L (full context), as in --window_pattern=SSSL"
            raise UsageError(f"unknown letters in --window_pattern={self.window_pattern}", hint)
        if self.vocab_size != -1 and self.vocab_size < BYTES_AND_SPECIALS:
            hint = f"256 bytes and 9 special tokens need at least --vocab_size={BYTES_AND_SPECIALS}"
            raise UsageError(f"--vocab_size={self.vocab_size} is too small", hint)


@dataclasses.dataclass(frozen=True)
class PretrainConfig(Group):
    """Length of pretraining: tokens per step (also of fine-tuning), and number of steps."""

    device_batch_size: int = field(32, "Micro-batch size: sequences per device at a time", keeps_losses=True)
    total_batch_size: int = field(-1, "Tokens per step, over all devices", metavar="TOKENS", auto="from the number of training tokens")
    num_iterations: int = field(-1, "Pretraining steps", metavar="STEPS", auto="from target_param_data_ratio")
    target_param_data_ratio: float = field(12.0, "Training tokens per scaling parameter", metavar="RATIO")
    hours: float = field(0.0, "Time budget in hours, which decides depth, batch size and steps; 0: off", metavar="HOURS")

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require_positive("device_batch_size")
        self._require_positive_or_auto("total_batch_size")
        self._require_positive_or_auto("num_iterations", zero=True)
        if not 0 <= self.hours < 10_000:
            raise UsageError(
                f"--hours={self.hours:g} is out of range", "--hours takes a number from 0 to 9999, as in --hours=8 or --hours=0.5"
            )


@dataclasses.dataclass(frozen=True)
class OptimizerConfig(Group):
    """Pretraining's peak learning rates, and the weight decay."""

    embedding_lr: float = field(0.3, "Peak learning rate of the token embedding (AdamW)", metavar="RATE")
    value_embedding_lr: float = field(0.15, "Peak learning rate of the value embeddings (AdamW)", metavar="RATE")
    unembedding_lr: float = field(0.008, "Peak learning rate of the output head (AdamW)", metavar="RATE")
    matrix_lr: float = field(0.02, "Peak learning rate of the matrices (Muon)", metavar="RATE")
    scalar_lr: float = field(0.5, "Peak learning rate of the residual scalars (AdamW)", metavar="RATE")
    weight_decay: float = field(-1.0, "Weight decay of the matrices (Muon)", metavar="RATE", auto="from batch size and training tokens")


@dataclasses.dataclass(frozen=True)
class ScheduleConfig(Group):
    """Pretraining's learning rate over time: linear warmup, constant, linear cooldown."""

    warmup_steps: int = field(40, "Length of the linear warmup in steps", metavar="STEPS")
    warmdown_ratio: float = field(0.65, "Length of the linear cooldown as a fraction of the steps", metavar="FRACTION")
    final_lr_frac: float = field(0.05, "Learning rate of the last step as a fraction of the peak", metavar="FRACTION")


@dataclasses.dataclass(frozen=True)
class SFTConfig(Group):
    """Supervised fine-tuning on conversations."""

    sft_iterations: int = field(
        -1, "Fine-tuning steps; 0: none", metavar="STEPS", auto="an eighth of pretraining's, at most one pass over the conversations"
    )
    sft_lr_frac: float = field(0.8, "Peak learning rate of fine-tuning as a fraction of pretraining's", metavar="FRACTION")

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require_positive_or_auto("sft_iterations", zero=True)


@dataclasses.dataclass(frozen=True)
class RLConfig(Group):
    """Reinforcement learning with verifiable rewards."""

    problems: str = field("", "Your own problems: a jsonl file of question and answer, numbers or exact text", metavar="FILE")
    rl_iterations: int = field(-1, "RL steps", metavar="STEPS", auto="one pass over the prompts with --stage=rl, else none")
    rl_examples_per_step: int = field(16, "Prompts per RL step, over all ranks")
    rl_num_samples: int = field(16, "Rollouts per prompt")
    rl_max_new_tokens: int = field(256, "Tokens per rollout, at most half the context length", metavar="TOKENS")
    rl_temperature: float = field(1.0, "Rollout sampling temperature", metavar="T")
    rl_top_k: int = field(50, "Rollout sampling from the K most likely tokens; 0: all", metavar="K")
    rl_lr_frac: float = field(0.05, "Initial RL learning rate as a fraction of pretraining's; it falls to 0", metavar="FRACTION")
    rl_eval_examples: int = field(400, "Held-out prompts per RL evaluation (pass@k)")

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require_positive("rl_examples_per_step", "rl_max_new_tokens", "rl_eval_examples")
        self._require_positive_or_auto("rl_iterations")
        if self.rl_num_samples < 2:
            hint = "a rollout is rewarded relative to the others of its prompt: --rl_num_samples takes a number from 2"
            raise UsageError(f"--rl_num_samples={self.rl_num_samples} is too small", hint)
        if not 0 < self.rl_temperature < math.inf:
            hint = "set it to a positive number, as in --rl_temperature=1"
            raise UsageError(f"--rl_temperature={self.rl_temperature:g} is out of range", hint)
        if self.rl_top_k < 0:
            raise UsageError(f"--rl_top_k={self.rl_top_k} is negative", "set it to a positive number, or 0 for all tokens")
        if not 0 < self.rl_lr_frac < math.inf:
            raise UsageError(f"--rl_lr_frac={self.rl_lr_frac:g} is out of range", "set it to a positive number, as in --rl_lr_frac=0.05")


@dataclasses.dataclass(frozen=True)
class EvaluationConfig(Group):
    """Evaluations during and after training."""

    eval_every: int = field(250, "Steps between evaluations in bits per byte; -1: only at the end", metavar="STEPS", keeps_losses=True)
    eval_tokens: int = field(-1, "Tokens per evaluation", metavar="TOKENS", auto="about 3% of the run's time in all", keeps_losses=True)
    core_metric_max_per_task: int = field(500, "Questions per CORE and chat task after training; -1: all; 0: none", keeps_losses=True)
    sample_every: int = field(-1, "Steps between samples; -1: only at the end", metavar="STEPS", keeps_losses=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require_positive_or_auto("sample_every", "eval_every")
        if self.core_metric_max_per_task < -1:
            hint = "it takes a positive number, -1 for all, or 0 for none"
            raise UsageError(f"--core_metric_max_per_task={self.core_metric_max_per_task} is out of range", hint)


@dataclasses.dataclass(frozen=True)
class CheckpointConfig(Group):
    """Checkpoints, their mirror, and the tracker of the curves."""

    save_every: int = field(-1, "Steps between checkpoints; -1: by time alone", metavar="STEPS", keeps_losses=True)
    save_minutes: float = field(15.0, "Minutes between checkpoints", metavar="MINUTES", keeps_losses=True)
    keep_last: int = field(2, "Checkpoints kept per stage", keeps_losses=True)
    log_to: str = field("none", "Experiment tracker for the curves", *TRACKERS, keeps_losses=True)
    mirror: str = field(
        "", "Remote copy of the checkpoints to resume from: s3://, gs://, hf:// or file://", metavar="URL", keeps_losses=True
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        remember(self.mirror)
        self._require_positive("keep_last")
        self._require_positive_or_auto("save_every")


@dataclasses.dataclass(frozen=True)
class DeviceConfig(Group):
    """Where and how a run computes: faults it tolerates, device, precision, processes, determinism."""

    skip_bad_batches: int = field(0, "NaN or Inf steps to skip per stage before stopping", keeps_losses=True)
    device: str = field("auto", "Device to train on", "auto", "cuda", "cpu", auto="the GPU if there is one")
    dtype: str = field(
        "auto",
        "Precision of activations; float16 is for GPUs without bfloat16, int16 is a CPU's float32, multiplied as 16-bit integers",
        *("bfloat16", "float16", "float32", "int16", "auto"),
        auto="the fastest here",
    )
    compile: str = field("auto", "Use of torch.compile", "on", "off", "auto", auto="on where the run is long enough to gain by it")
    activation_memory_budget: float = field(
        1.0, "Fraction of activations kept by a compiled step; the rest is recomputed", metavar="FRACTION", keeps_losses=True
    )
    nproc_per_node: int = field(1, "Processes on this machine, one per GPU", keeps_losses=True)
    hang_timeout: float = field(
        1800.0, "Seconds without progress until a process ends with exit code 7; 0: never", metavar="SECONDS", keeps_losses=True
    )
    seed: int = field(42, "Seed of the initial weights and of the order of the data")
    deterministic: bool = field(False, "Losses equal digit for digit: float32, no compilation, deterministic algorithms")
    background: bool = field(False, "Lowest priority for CPU and disk, and half of the cores", keeps_losses=True)
    threads: int = field(-1, "CPU threads per process", auto="measured while training, at most the physical cores")

    def __post_init__(self) -> None:
        if self.device in UNSUPPORTED:
            what = f"--device={self.device} is not supported: {UNSUPPORTED[self.device]} GPUs are not used"
            raise UsageError(what, "use --device=cpu, or --device=cuda on a machine with an NVIDIA GPU")
        super().__post_init__()
        self._require_positive("nproc_per_node")
        self._require_positive_or_auto("threads")
        if self.skip_bad_batches < 0:
            raise UsageError(f"--skip_bad_batches={self.skip_bad_batches} is negative", "set it to a number from 0")
        if not 0 < self.activation_memory_budget <= 1:
            hint = "set it to a number above 0 and at most 1, where 1 keeps all activations"
            raise UsageError(f"--activation_memory_budget={self.activation_memory_budget:g} is out of range", hint)
        if self.seed < 0:
            raise UsageError(f"--seed={self.seed} is negative", "set it to a number from 0")
        if self.deterministic and self.dtype in ("bfloat16", "float16", "int16"):
            raise UsageError(f"--deterministic trains in float32, not in --dtype={self.dtype}", "leave out --dtype or --deterministic")
        if self.device == "cuda" and self.dtype == "int16":
            raise UsageError("--dtype=int16 needs a CPU, not --device=cuda", "leave out --dtype")
