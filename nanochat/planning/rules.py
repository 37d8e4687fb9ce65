"""Default values: `resolve` replaces each -1 and "auto" of a Config, chosen automatically from the model's size.

Deterministic: the same config on the same kind of device gets the same values, independent of the machine's load.
"""

import dataclasses
import math
from pathlib import Path
from typing import Any

from nanochat.config import Config, DeviceConfig
from nanochat.console import duration, quantity
from nanochat.data.source import own_files, text_source
from nanochat.data.text_source import SHARD_TOKENS
from nanochat.errors import UsageError
from nanochat.hardware import toolchain
from nanochat.hardware.cpu import physical_cores
from nanochat.hardware.machine import Hardware, this_machine
from nanochat.model import scaling
from nanochat.planning.calibrate import product_gain

DEFAULT_VOCAB = 32768
VOCAB_LIMITS = (512, 32768)
MINIMUM_ITERATIONS = 100  # least steps, even for a very small text
CPU_BUDGET = 1.2e13  # FLOPs: 13 minutes on two slow cores, one or two on fast ones
EVALUATION_SHARE = 0.03  # of pretraining's FLOPs, for all evaluations

# torch.compile is used if the time that it saves, a third on a GPU, is at least twice its start-up time. On a CPU it saves nothing,
# because the operations are already fused (nanochat/kernels/fused.c).
COMPILE_GPU_START = 60.0  # seconds
COMPILE_CPU_START = 2.5e12  # FLOPs during the start-up on a CPU
COMPILE_GPU_SECONDS = 6 * COMPILE_GPU_START
BF16_CPU_GAIN = 1.5  # least speed-up of products for bfloat16; measured 2.4 and 0.5 on processors with units for it
INT16_CPU_GAIN = 1.2  # least speed-up of products for int16; bfloat16 units are faster if present
LOW_PRECISION_CPU_WIDTH = 128  # least model width for low precision on a CPU: 1.1 times as fast at 96, 1.2 to 1.3 at 128, 1.5 to 1.7 at 256


@dataclasses.dataclass(frozen=True)
class Resolved:
    """A Config without -1 and "auto", and one line for each value that was chosen."""

    config: Config
    rules: list[str]


def vocab_rule(text_bytes: int) -> int:
    """The power of two nearest to sqrt(text_bytes) / 5, in 512..32,768: the number of distinct words grows with the root of the size."""
    low, high = VOCAB_LIMITS
    return min(max(2 ** round(math.log2(max(math.sqrt(text_bytes) / 5, 1))), low), high)


def shards_rule(tokens: float, shard_tokens: int = SHARD_TOKENS) -> int:
    """Number of training shards for `tokens` training tokens."""
    return max(math.ceil(tokens / shard_tokens), 1)


def require_full_attention(config: Config, hardware: Hardware) -> None:
    """Raise UsageError for a model with windows on a GPU, where full attention costs the same.

    Blocks of one window's queries and two windows' keys take as many scores as causal attention if a window is a quarter of the context,
    and their mask excludes the flash kernels. A model that already has windows keeps them, and so does the profile cpu, whose few hundred
    tokens of context cost nothing on a GPU.
    """
    gpt = scaling.gpt_config(config.replace(vocab_size=DEFAULT_VOCAB) if config.vocab_size == -1 else config)
    windows = any(gpt.window(layer) < gpt.max_seq_len for layer in range(gpt.depth))
    if windows and hardware.cuda and config.device != "cpu" and config.profile != "cpu":
        raise UsageError(
            f"--window_pattern={config.window_pattern} saves nothing on a GPU: no kernel here leaves out what is outside of a window",
            "use --window_pattern=L; existing runs with windows still resume, chat and export",
        )


def normal(config: Config) -> Config:
    """`config` with absolute paths, and without fine-tuning if there are no conversations."""
    named = {name: str(Path(path).expanduser().absolute()) for name, path in own_files(config).items()}
    return config.replace(**named, **({"sft_iterations": 0} if text_source(config).conversations.empty else {}))


def resolve(config: Config, *, text_bytes: int | None = None, hardware: Hardware | None = None) -> Config:
    """The config of `apply_rules`."""
    return apply_rules(config, text_bytes=text_bytes, hardware=hardware).config


def apply_rules(config: Config, *, text_bytes: int | None = None, hardware: Hardware | None = None) -> Resolved:
    """Replace every -1 and "auto" (but `run`, which is the caller's) by its default.

    text_bytes: size of the text if it is known (the user's or the embedded one), which decides vocabulary and iterations.
    hardware: the hardware of the run, by default this machine.
    shards stays -1 for a text that is not in published shards; sample_every, save_every and eval_every keep -1, which means "at the end".
    """
    rules = _Rules(config, hardware or this_machine(config.device), text_bytes)
    rules.choose_device()
    rules.choose_vocabulary()
    rules.choose_length()
    rules.choose_data()
    rules.choose_execution()
    return Resolved(rules.config, rules.lines)


class _Rules:
    """The rules in order of their dependencies; each one that applies changes `config` and adds a line."""

    def __init__(self, config: Config, hardware: Hardware, text_bytes: int | None):
        self.config, self.hardware, self.source = config, hardware, text_source(config)
        if text_bytes is None and config.profile == "cpu":
            text_bytes = self.source.estimated_bytes(max(config.shards, 1))
        self.text_bytes = text_bytes
        self.lines: list[str] = []

    def _open(self, name: str) -> bool:
        """Whether the field `name` is -1 or "auto"."""
        return getattr(self.config, name) in (-1, "auto")

    def _set(self, name: str, value: Any, why: str) -> None:
        self.lines.append(f"{name} = {value}: {why}")
        self.config = self.config.replace(**{name: value})

    def choose_device(self) -> None:
        """cuda if torch can use a CUDA device, else cpu."""
        if self._open("device"):
            found = "a CUDA device is available" if self.hardware.cuda else "no CUDA device that torch can use"
            self._set("device", "cuda" if self.hardware.cuda else "cpu", found)

    def choose_vocabulary(self) -> None:
        """The vocabulary size from the text's size, if that is known."""
        if not self._open("vocab_size"):
            return
        if self.text_bytes is None:
            self._set("vocab_size", DEFAULT_VOCAB, "the size that the scaling rules were measured with")
        else:
            why = f"the power of two nearest to the root of {quantity(self.text_bytes)} bytes of text / 5, in 512..32768"
            self._set("vocab_size", vocab_rule(self.text_bytes), why)

    def choose_length(self) -> None:
        """Batch size, number of steps and weight decay, from the number of tokens for a model of this size."""
        config = self.config
        tokens, why = _tokens(config, scaling.gpt_config(config), self.text_bytes, self.hardware)
        if self._open("total_batch_size"):
            group = config.device_batch_size * config.max_seq_len * config.nproc_per_node
            shape = f"2^19 x ({quantity(tokens)} tokens / 1.3B)^0.383, in steps of {group} tokens (one micro-batch of all devices)"
            self._set("total_batch_size", scaling.total_batch_rule(tokens, group), shape)
        batch = self.config.total_batch_size
        if self._open("num_iterations"):
            self._set("num_iterations", scaling.steps_rule(tokens, batch), f"{why}, {batch} per step")
        if self._open("weight_decay"):
            decay = round(scaling.weight_decay_rule(batch, tokens), 6)
            self._set("weight_decay", decay, "0.28 x sqrt(batch / 2^19) x (1.3B / tokens), at most 2")
        if self._open("sft_iterations"):
            why = "an eighth of the pretraining steps, at most one epoch of the conversations"
            pretrained = self.config.num_iterations or scaling.steps_rule(
                tokens, batch
            )  # or by another run, for its default number of steps
            self._set("sft_iterations", scaling.sft_steps_rule(pretrained), why)

    def choose_data(self) -> None:
        """Number of shards, and tokens of an evaluation."""
        if self._open("shards") and self.source.most_shards is not None:
            shards = shards_rule(self.config.total_batch_size * self.config.num_iterations, self.source.shard_tokens)
            self._set("shards", min(shards, self.source.most_shards), f"one per {quantity(self.source.shard_tokens)} tokens")
        if self._open("eval_tokens"):
            self._set("eval_tokens", _eval_tokens(self.config), "about 3% of the run for all evaluations")

    def choose_execution(self) -> None:
        """Type of the activations, torch.compile and threads."""
        gpt = scaling.gpt_config(self.config)
        if self._open("dtype"):
            self._set("dtype", *_dtype(self.config, gpt, self.hardware))
        if self._open("compile"):
            self._set("compile", *_compile(self.config, gpt, self.hardware))
        if self._open("threads"):
            half = 2 if self.config.background else 1
            threads = max(physical_cores() // self.config.nproc_per_node // half, 1)
            self._set("threads", threads, f"{'half of the ' if self.config.background else ''}physical cores per process, at most")


def _tokens(config: Config, gpt: scaling.GPTConfig, text_bytes: int | None, hardware: Hardware) -> tuple[float, str]:
    """(number of pretraining tokens, reason). With num_iterations given, the number that follows from the ratio."""
    ratio = config.target_param_data_ratio
    tokens: float = scaling.target_tokens(gpt, ratio)
    why = f"{ratio:g} tokens per scaling parameter ({quantity(scaling.scaling_parameters(gpt))})"
    if config.num_iterations != -1:
        return tokens, why
    shortened = not hardware.cuda and config.profile in ("", "cpu")  # a GPU's profile keeps its length; preflight refuses it on a CPU
    if shortened and tokens > (budget := CPU_BUDGET / scaling.flops_per_token(gpt)):
        tokens = budget
        why = f"{CPU_BUDGET:.1e} FLOPs, for minutes on a CPU (--num_iterations sets more)"
    if text_bytes is not None and tokens > (limit := scaling.MAXIMUM_EPOCHS * text_bytes / scaling.bytes_per_token(config.vocab_size)):
        least = MINIMUM_ITERATIONS * max(config.total_batch_size, config.device_batch_size * config.max_seq_len * config.nproc_per_node)
        tokens = min(max(limit, least), tokens)
        why = f"{scaling.MAXIMUM_EPOCHS} epochs of {quantity(text_bytes)} bytes of text, at least {MINIMUM_ITERATIONS} steps"
    return tokens, f"{why}: {quantity(tokens)} tokens"


def _eval_tokens(config: Config) -> int:
    """Tokens of an evaluation, a power of two in whole rows; a forward pass costs a third of a training token."""
    evaluations = 1 + (config.num_iterations // config.eval_every if config.eval_every > 0 else 0)
    tokens = EVALUATION_SHARE * 3 * config.total_batch_size * max(config.num_iterations or config.sft_iterations, 1) / evaluations
    power = 2 ** min(max(round(math.log2(tokens)), 14), 25)
    return scaling.round_up(power, config.max_seq_len)


def _dtype(config: DeviceConfig, gpt: scaling.GPTConfig, hardware: Hardware) -> tuple[str, str]:
    """(type of the activations, reason)."""
    if config.deterministic:
        return "float32", "deterministic runs use full precision"
    if hardware.cuda:
        if hardware.bf16:
            return "bfloat16", f"{hardware.name} has units for it"
        lacking = f"no bfloat16 units in {hardware.name}"
        return ("float16", f"{lacking}; the loss is scaled") if hardware.fp16 else ("float32", lacking)
    if gpt.dim < LOW_PRECISION_CPU_WIDTH:
        return "float32", f"on a CPU bfloat16 and int16 are faster only from a width of {LOW_PRECISION_CPU_WIDTH}"
    if not hardware.bf16 and not hardware.avx2:
        return "float32", f"no bfloat16 units in {hardware.name}"
    kind, least = ("bfloat16", BF16_CPU_GAIN) if hardware.bf16 else ("int16", INT16_CPU_GAIN)
    gain = product_gain(hardware.name, kind) if hardware.here else 1.0
    lacking = "" if hardware.bf16 else f"no bfloat16 units in {hardware.name}; "
    return (kind if gain >= least else "float32"), f"{lacking}{kind} products are {gain:.1f} times as fast as float32 (measured here)"


def _compile(config: Config, gpt: scaling.GPTConfig, hardware: Hardware) -> tuple[str, str]:
    """("on" or "off", reason)."""
    if config.deterministic:
        return "off", "deterministic runs are not compiled"
    if not hardware.cuda:
        return "off", "a CPU's operations are fused without it"
    if hardware.here and (lacking := toolchain.torch_compile_lacks(hardware.cuda)):
        return "off", f"torch.compile needs {' and '.join(lacking)}, which is not installed"
    operations = scaling.flops_per_token(gpt) * config.total_batch_size * (config.num_iterations or config.sft_iterations)
    seconds = operations / (hardware.flops * config.nproc_per_node)
    why = f"about {duration(seconds)} of training; its start-up is worth it from {duration(COMPILE_GPU_SECONDS)}"
    return ("on" if seconds >= COMPILE_GPU_SECONDS else "off"), why
