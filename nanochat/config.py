"""One flat, frozen configuration: a profile's values, then the user's, validated once where it is built.

Every key of profiles/*.toml and every long flag of `train` is a field of `Config`, under the name that
karpathy/nanochat gives it where it has one. -1 and "auto" mean "by rule": nanochat/planning/plan.py puts the
rule's value in their place, and the run's config.toml keeps that value.
"""

import dataclasses
import difflib
import math
import tomllib
from pathlib import Path
from typing import Any

from nanochat.errors import UsageError

PROFILES = Path(__file__).resolve().parent.parent / "profiles"
PROFILE_NAMES = ("cpu", "rtx4050", "rtx4090", "h100x8")
PROFILE_ALIASES = {"4050": "rtx4050", "4090": "rtx4090", "3090": "rtx4090", "rtx3090": "rtx4090", "h100": "h100x8"}
EMBEDDED = "embedded"
TRACKERS = ("none", "tensorboard", "wandb", "trackio")

# The cpu profile's own numbers are for the embedded text; with another one these follow from its size.
TEXT_RULES: dict[str, Any] = {"dataset": "climbmix", "vocab_size": -1, "num_iterations": -1, "sft_iterations": -1}

# Wrong names that people try, and what to say to them.
_HINTS = {
    "model_dim": "the width follows from the depth: use --depth (width = depth x aspect_ratio)",
    "n_embd": "the width follows from the depth: use --depth (width = depth x aspect_ratio)",
    "n_layer": "use --depth",
    "batch_size": "use --device_batch_size (rows a device takes at once) or --total_batch_size (tokens a step)",
    "max_steps": "use --num_iterations",
    "epochs": "use --num_iterations (steps) or --target_param_data_ratio (tokens for each parameter)",
    "lr": "use --matrix_lr, --embedding_lr, --unembedding_lr",
}


def _field(default: Any, help: str, *choices: str, keeps_losses: bool = False) -> Any:
    return dataclasses.field(default=default, metadata={"help": help, "choices": choices, "keeps_losses": keeps_losses})


@dataclasses.dataclass(frozen=True)
class Config:
    """Everything that decides a run. Raises UsageError where a value or a combination cannot be."""

    run: str = _field("auto", "name of the run; auto: the profile's name", keeps_losses=True)
    profile: str = _field("", "the profile these values began from", keeps_losses=True)
    trial: bool = _field(False, "the guide's short plan for the card, instead of its real run")

    dataset: str = _field("climbmix", "embedded, climbmix, fineweb-edu or hf:OWNER/NAME")
    data: str = _field("", "your own text instead: a folder or file of parquet, jsonl or txt")
    chat_data: str = _field("", "your own conversations: jsonl, or a public set of them: hf:OWNER/NAME")
    identity: str = _field("", "a TOML of the model's name, maker, languages and traits, to be taught in fine-tuning")
    shards: int = _field(-1, "training shards to use; -1: what the token count needs")
    vocab_size: int = _field(-1, "tokens in the vocabulary, the nine specials included; -1: by rule")

    architecture: str = _field("nanochat", "nanochat, or portable (for other engines; 8% more bits per byte)", "nanochat", "portable")
    depth: int = _field(20, "layers; the width is depth x aspect_ratio")
    aspect_ratio: int = _field(64, "width for each layer of depth")
    head_dim: int = _field(128, "width of one attention head")
    max_seq_len: int = _field(2048, "tokens of context")
    window_pattern: str = _field("L", "attention window of each layer, tiled: L whole context, S a quarter of it")

    device_batch_size: int = _field(32, "rows that a device takes at once", keeps_losses=True)
    total_batch_size: int = _field(-1, "tokens of one step over all devices; -1: by rule")
    num_iterations: int = _field(-1, "steps of pretraining; -1: by target_param_data_ratio")
    target_param_data_ratio: float = _field(12.0, "tokens for each scaling parameter")
    hours: float = _field(0.0, "the best depth, batch and number of steps for so many hours on this machine; 0: as the other values say")
    embedding_lr: float = _field(0.3, "AdamW learning rate of the token embedding")
    value_embedding_lr: float = _field(0.15, "AdamW learning rate of the value embeddings")
    unembedding_lr: float = _field(0.008, "AdamW learning rate of the head")
    matrix_lr: float = _field(0.02, "Muon learning rate of the matrices")
    scalar_lr: float = _field(0.5, "AdamW learning rate of the residual scalars")
    weight_decay: float = _field(-1.0, "Muon weight decay; -1: by rule")
    warmup_steps: int = _field(40, "steps of linear warm-up")
    warmdown_ratio: float = _field(0.65, "part of the run over which the learning rate falls")
    final_lr_frac: float = _field(0.05, "part of the learning rate left at the end")

    sft_iterations: int = _field(-1, "steps of fine-tuning; -1: an eighth of pretraining's, at most one pass over the set")
    sft_lr_frac: float = _field(0.8, "fine-tuning's learning rate against pretraining's")

    rl_iterations: int = _field(-1, "steps of reinforcement learning; -1: one pass over the questions, by --stage=rl alone")
    rl_examples_per_step: int = _field(16, "questions of one of its steps over all devices")
    rl_num_samples: int = _field(16, "answers to each of them")
    rl_max_new_tokens: int = _field(256, "tokens of one answer, and at most half the context")
    rl_temperature: float = _field(1.0, "at which answers are sampled")
    rl_top_k: int = _field(50, "likeliest tokens that answers are sampled from; 0: all")
    rl_lr_frac: float = _field(0.05, "its learning rate against pretraining's; it falls to 0")
    rl_eval_examples: int = _field(400, "held-out questions of one of its evaluations (pass@k)")

    eval_every: int = _field(250, "steps between evaluations in bits per byte; -1: only at the end", keeps_losses=True)
    eval_tokens: int = _field(-1, "tokens of one evaluation; -1: by rule", keeps_losses=True)
    core_metric_max_per_task: int = _field(
        500, "questions of each CORE and chat task at the end, where their files are there; -1: all, 0: none", keeps_losses=True
    )
    sample_every: int = _field(-1, "steps between samples; -1: only at the end", keeps_losses=True)
    save_every: int = _field(-1, "steps between checkpoints; -1: by time alone", keeps_losses=True)
    save_minutes: float = _field(15.0, "minutes between checkpoints at most", keeps_losses=True)
    keep_last: int = _field(2, "checkpoints kept of each stage", keeps_losses=True)

    log_to: str = _field("none", "where curves are also shown, live: tensorboard, wandb or trackio", *TRACKERS, keeps_losses=True)
    mirror: str = _field("", "where checkpoints are copied to, and fetched from on a new machine: s3:, gs:, hf:, file:", keeps_losses=True)
    skip_bad_batches: int = _field(0, "batches of each stage whose loss or gradient may be not finite, skipped", keeps_losses=True)

    device: str = _field("auto", "auto, cuda or cpu", "auto", "cuda", "cpu")
    dtype: str = _field(
        "auto",
        "of the activations: bfloat16, float32, int16 (on a CPU: float32, multiplied as 16-bit integers), or auto (what is faster here)",
        *("bfloat16", "float32", "int16", "auto"),
    )
    compile: str = _field("auto", "torch.compile: on, off, or auto (where the run is long enough to earn it back)", "on", "off", "auto")
    activation_memory_budget: float = _field(
        1.0, "part of its activations that a compiled step keeps; the rest it computes twice", keeps_losses=True
    )
    nproc_per_node: int = _field(1, "processes (GPUs) on this machine", keeps_losses=True)
    hang_timeout: float = _field(1800.0, "seconds without any progress after which a process ends with exit 7; 0: never", keeps_losses=True)
    seed: int = _field(42, "of the initial weights and of the data's order")
    deterministic: bool = _field(False, "fp32, compile off, deterministic algorithms: equal losses, digit for digit")
    threads: int = _field(-1, "CPU threads for each process; -1: by rule")

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value, choices = getattr(self, field.name), field.metadata["choices"]
            if choices and value not in choices:
                raise UsageError(f"{field.name} = {value!r} is unknown", f"one of: {', '.join(choices)}")
        positive = ("depth", "aspect_ratio", "head_dim", "max_seq_len", "device_batch_size", "nproc_per_node", "keep_last")
        for name in (*positive, "rl_examples_per_step", "rl_max_new_tokens", "rl_eval_examples"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} = {getattr(self, name)} is too small", f"give --{name} a positive number")
        by_rule = ("shards", "total_batch_size", "num_iterations", "sft_iterations", "sample_every", "save_every", "eval_every", "threads")
        for name in (*by_rule, "rl_iterations"):
            value = getattr(self, name)
            if value < -1 or (value == 0 and name != "sft_iterations"):
                raise UsageError(f"{name} = {value} is not possible", f"give --{name} a positive number, or -1 for the rule")
        if self.core_metric_max_per_task < -1:
            raise UsageError(
                f"core_metric_max_per_task = {self.core_metric_max_per_task} is not possible", "a positive number, -1 for all, 0 for none"
            )
        if self.rl_num_samples < 2:
            hint = "give --rl_num_samples a number from 2: an answer is better or worse than the others to its question"
            raise UsageError(f"rl_num_samples = {self.rl_num_samples} is too small", hint)
        if not 0 < self.rl_temperature < math.inf:
            raise UsageError(
                f"rl_temperature = {self.rl_temperature:g} is not possible", "give --rl_temperature a positive number, such as 1"
            )
        if self.rl_top_k < 0:
            raise UsageError(f"rl_top_k = {self.rl_top_k} is negative", "give --rl_top_k a number such as 50, or 0 for all tokens")
        if not 0 < self.rl_lr_frac < math.inf:
            raise UsageError(f"rl_lr_frac = {self.rl_lr_frac:g} is not possible", "give --rl_lr_frac a positive number, such as 0.05")
        if self.skip_bad_batches < 0:
            raise UsageError(f"skip_bad_batches = {self.skip_bad_batches} is negative", "give --skip-bad-batches a number from 0")
        if not 0 <= self.hours < 10_000:
            raise UsageError(f"hours = {self.hours:g} is not possible", "give --hours a positive number, such as 8 or 0.5")
        if not 0 < self.activation_memory_budget <= 1:
            hint = "give --activation_memory_budget a number above 0, such as 0.5; 1 keeps all"
            raise UsageError(f"activation_memory_budget = {self.activation_memory_budget:g} is not possible", hint)
        if self.seed < 0:
            raise UsageError(f"seed = {self.seed} is negative", "give --seed a number from 0")
        if self.head_dim % 2:
            raise UsageError(f"head_dim = {self.head_dim} is odd", "rotary embeddings need an even --head_dim")
        if not self.window_pattern or set(self.window_pattern.upper()) - set("SL"):
            hint = "letters S (a quarter of the context) and L (all of it), as in SSSL"
            raise UsageError(f"window_pattern = {self.window_pattern!r} is unknown", hint)
        if self.vocab_size != -1 and self.vocab_size < 265:
            raise UsageError(f"vocab_size = {self.vocab_size} is too small", "256 bytes and 9 special tokens need at least 265")
        if "/" in self.run or self.run.startswith(".") or not self.run:
            raise UsageError(f"run = {self.run!r} is no name of a folder", "give --run a plain name, such as my-first-run")
        if self.deterministic and self.dtype in ("bfloat16", "int16"):
            raise UsageError(f"a deterministic run is in float32, and dtype is {self.dtype}", "leave out --dtype or --deterministic")
        if self.device == "cuda" and self.dtype == "int16":
            raise UsageError("int16 is for a CPU, and the device is cuda", "leave out --dtype")
        self._check_batch()

    def _check_batch(self) -> None:
        """Raise UsageError where the step's tokens cannot be dealt in whole rows; the hint lists numbers that can."""
        if self.total_batch_size == -1:
            return
        if self.total_batch_size % self.max_seq_len:
            low = max(self.total_batch_size // self.max_seq_len, 1) * self.max_seq_len
            raise UsageError(
                f"total_batch_size = {self.total_batch_size} is not a multiple of max_seq_len = {self.max_seq_len}",
                f"--total_batch_size={low} or {low + self.max_seq_len} would do",
            )
        rows = self.total_batch_size // self.max_seq_len
        if rows % (self.device_batch_size * self.nproc_per_node):
            fitting = [n for n in range(1, rows + 1) if rows % (n * self.nproc_per_node) == 0]
            step = self.device_batch_size * self.nproc_per_node * self.max_seq_len
            near = max(self.total_batch_size // step, 1) * step
            raise UsageError(
                f"total_batch_size = {self.total_batch_size} does not divide into {self.nproc_per_node} process(es) x "
                f"{self.device_batch_size} rows of {self.max_seq_len} tokens",
                (f"--device_batch_size may be {', '.join(map(str, fitting[:12]))}; or " if fitting else "")
                + f"--total_batch_size={near} or {near + step}",
            )

    @property
    def steps(self) -> dict[str, int]:
        """Steps of each stage, in the order of the stages; -1 where a rule has still to say."""
        return {"base": self.num_iterations, "sft": self.sft_iterations, "rl": self.rl_iterations}

    def replace(self, **changes: Any) -> "Config":
        """A copy with `changes`, validated like the first."""
        return dataclasses.replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        """Field name -> value, in the order of declaration."""
        return dataclasses.asdict(self)


_BOOLS = {"true": True, "1": True, "on": True, "yes": True, "false": False, "0": False, "off": False, "no": False}
FIELDS = {field.name: field for field in dataclasses.fields(Config)}


def convert(name: str, text: Any) -> Any:
    """The value of field `name` as its type, from a flag's text or a TOML value. Raises UsageError."""
    kind = FIELDS[name].type
    try:
        if kind is bool:
            if isinstance(text, bool):
                return text
            return _BOOLS[str(text).lower()]
        if kind is int:
            number = float(text)
            if number != int(number):
                raise ValueError
            return int(number)
        return float(text) if kind is float else str(text)
    except (KeyError, ValueError, OverflowError):
        expected = {bool: "true or false", int: "a whole number", float: "a number"}[kind]  # type: ignore[index]
        raise UsageError(f"{name} = {text!r} is not {expected}", f"for example --{name}={FIELDS[name].default}") from None


def unknown_key(name: str) -> UsageError:
    """The error for a key that no field bears, with the likeliest right name."""
    close = difflib.get_close_matches(name, FIELDS, n=1)
    hint = _HINTS.get(name) or (f"did you mean --{close[0]}?" if close else "train --help lists the keys")
    return UsageError(f"unknown config key {name}", hint)


def parse_flags(arguments: list[str]) -> dict[str, Any]:
    """`--key=value`, `--key value`, `--flag` (dashes or underscores) -> field values. Raises UsageError."""
    values: dict[str, Any] = {}
    rest = list(arguments)
    while rest:
        flag = rest.pop(0)
        if not flag.startswith("--") or flag == "--":
            raise UsageError(f"unexpected argument {flag!r}", "options begin with --, as in --depth=12")
        key, equals, text = flag[2:].partition("=")
        name = key.replace("-", "_")
        if name not in FIELDS:
            raise unknown_key(name)
        if not equals:
            if FIELDS[name].type is bool:
                text = "true"
            elif rest and not rest[0].startswith("--"):
                text = rest.pop(0)
            else:
                raise UsageError(f"--{key} needs a value", f"for example --{name}={FIELDS[name].default}")
        values[name] = convert(name, text)
    return values


def profile_name(name: str) -> str:
    """The profile that `name` or an alias (4050, 4090, 3090) stands for. Raises UsageError, listing them."""
    known = PROFILE_ALIASES.get(name.lower(), name.lower())
    if known not in PROFILE_NAMES:
        raise UsageError(f"unknown profile {name!r}", f"one of: {', '.join(PROFILE_NAMES)}, auto (aliases: 4050, 4090, 3090)")
    return known


def load_profile(name: str, trial: bool = False) -> dict[str, Any]:
    """Field values of a profile's [full] or [trial] part. Raises UsageError."""
    known = profile_name(name)
    table = tomllib.loads((PROFILES / f"{known}.toml").read_text(encoding="utf-8"))
    values = {}
    for key, value in table["trial" if trial else "full"].items():
        if key not in FIELDS:
            raise unknown_key(key)
        values[key] = convert(key, value)
    return values | {"profile": known, "trial": trial}


def build_config(profile: str, trial: bool = False, overrides: dict[str, Any] | None = None) -> Config:
    """The profile's values with the user's on top, validated; the run is named after the profile unless given."""
    values = load_profile(profile, trial) | (overrides or {})
    if values.get("run", "auto") == "auto":
        values["run"] = values["profile"] + ("-trial" if trial else "")
    return Config(**values)


RL_FIELDS = tuple(name for name in FIELDS if name.startswith("rl_"))


def differences(old: Config, new: Config) -> dict[str, tuple[Any, Any]]:
    """Fields that differ and would change the losses: name -> (old, new)."""
    return {
        name: (getattr(old, name), getattr(new, name))
        for name, field in FIELDS.items()
        if getattr(old, name) != getattr(new, name) and not field.metadata["keeps_losses"]
    }
