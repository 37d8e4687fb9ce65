"""The values that follow by rule: `resolve` turns a Config with -1 and "auto" into one without.

Deterministic: the same config on the same kind of device gives the same values, whatever the machine's speed today.
"""

import dataclasses
import math
from pathlib import Path
from typing import Any

from nanochat.config import Config, DeviceConfig
from nanochat.console import duration, quantity
from nanochat.data.source import own_files, text_source
from nanochat.hardware import toolchain
from nanochat.hardware.cpu import physical_cores
from nanochat.hardware.machine import Hardware, this_machine
from nanochat.model import scaling
from nanochat.planning.calibrate import product_gain

DEFAULT_VOCAB = 32768
VOCAB_LIMITS = (512, 32768)
SHARD_TOKENS = 31_000_000  # of a published shard's text that a run uses: published runs take 5 shards for d4's tokens, 43 for d12's
MINIMUM_ITERATIONS = 100  # even for a very small text: fewer steps than these teach nothing
CPU_BUDGET = 1.2e13  # operations: 13 minutes on two slow cores, one or two on fast ones
EVALUATION_SHARE = 0.03  # of pretraining's operations, all evaluations together
SFT_SHARE = 8  # fine-tuning takes an eighth of pretraining's steps

# torch.compile pays where what it saves, a third of a GPU's time, is twice what its start costs. On a CPU it saves nothing: the
# operations that it would join are joined already (nanochat/kernels/fused.c).
COMPILE_GPU_START = 60.0  # seconds
COMPILE_CPU_START = 2.5e12  # operations in the time that it takes there
COMPILE_GPU_SECONDS = 6 * COMPILE_GPU_START
BF16_CPU_GAIN = 1.5  # of its products, at least: 2.4 and 0.5 were seen of processors that have units for it
INT16_CPU_GAIN = 1.2  # of its products of 16-bit integers; where there are bfloat16 units, those are faster
LOW_PRECISION_CPU_WIDTH = 128  # of a model that a CPU's bfloat16 units make faster: 1.1 times at 96, 1.2 to 1.3 at 128, 1.5 to 1.7 at 256


@dataclasses.dataclass(frozen=True)
class Resolved:
    """A Config without "by rule", and one line for each rule that was applied."""

    config: Config
    rules: list[str]


def vocab_rule(text_bytes: int) -> int:
    """The power of two nearest to sqrt(text_bytes) / 5, in 512..32,768: a text's distinct words grow with its square root."""
    low, high = VOCAB_LIMITS
    return min(max(2 ** round(math.log2(max(math.sqrt(text_bytes) / 5, 1))), low), high)


def shards_rule(tokens: float) -> int:
    """Training shards for `tokens` of training."""
    return max(math.ceil(tokens / SHARD_TOKENS), 1)


def normal(config: Config) -> Config:
    """The user's paths as absolute ones, the same text whatever the working directory; no fine-tuning where there is nothing to tune on."""
    named = {name: str(Path(path).expanduser().absolute()) for name, path in own_files(config).items()}
    return config.replace(**named, **({"sft_iterations": 0} if text_source(config).conversations.empty else {}))


def resolve(config: Config, *, text_bytes: int | None = None, hardware: Hardware | None = None) -> Config:
    """`apply_rules` without the lines."""
    return apply_rules(config, text_bytes=text_bytes, hardware=hardware).config


def apply_rules(config: Config, *, text_bytes: int | None = None, hardware: Hardware | None = None) -> Resolved:
    """Put the rule's value in the place of every -1 and "auto" (but `run`, which is the caller's).

    text_bytes: size of the text where it is known (the user's, the embedded one); vocabulary and iterations follow from it.
    hardware: what the run is for; this machine unless given. shards stays -1 where the text is not in published shards, and
    sample_every, save_every and eval_every keep -1, which says "at the end" and the like.
    """
    rules = _Rules(config, hardware or this_machine(config.device), text_bytes)
    rules.choose_device()
    rules.choose_vocabulary()
    rules.choose_length()
    rules.choose_data()
    rules.choose_execution()
    return Resolved(rules.config, rules.lines)


class _Rules:
    """The rules in the order in which they build on each other; each that applies changes `config` and leaves a line."""

    def __init__(self, config: Config, hardware: Hardware, text_bytes: int | None):
        self.config, self.hardware, self.source = config, hardware, text_source(config)
        if text_bytes is None and config.profile == "cpu":
            text_bytes = self.source.estimated_bytes(max(config.shards, 1))
        self.text_bytes = text_bytes
        self.lines: list[str] = []

    def _open(self, name: str) -> bool:
        """Whether the user leaves the field `name` to its rule."""
        return getattr(self.config, name) in (-1, "auto")

    def _set(self, name: str, value: Any, why: str) -> None:
        self.lines.append(f"{name} = {value}: {why}")
        self.config = self.config.replace(**{name: value})

    def choose_device(self) -> None:
        """cuda where torch can use a device of it, else cpu."""
        if self._open("device"):
            found = "a CUDA device is there" if self.hardware.cuda else "no CUDA device that torch can use"
            self._set("device", "cuda" if self.hardware.cuda else "cpu", found)

    def choose_vocabulary(self) -> None:
        """By the text's size, where that is known."""
        if not self._open("vocab_size"):
            return
        if self.text_bytes is None:
            self._set("vocab_size", DEFAULT_VOCAB, "the size that the other rules were measured at")
        else:
            why = f"the power of two nearest to the root of {quantity(self.text_bytes)} bytes of text / 5, in 512..32768"
            self._set("vocab_size", vocab_rule(self.text_bytes), why)

    def choose_length(self) -> None:
        """The batch, the number of steps and the weight decay, by the tokens that a model of this size learns the most from."""
        config = self.config
        tokens, why = _tokens(config, scaling.gpt_config(config), self.text_bytes, self.hardware)
        if self._open("total_batch_size"):
            group = config.device_batch_size * config.max_seq_len * config.nproc_per_node
            shape = f"2^19 x ({quantity(tokens)} tokens / 1.3B)^0.383, in steps of {group} tokens (what the devices take at once)"
            self._set("total_batch_size", scaling.total_batch_rule(tokens, group), shape)
        batch = self.config.total_batch_size
        if self._open("num_iterations"):
            self._set("num_iterations", scaling.steps_rule(tokens, batch), f"{why}, {batch} a step")
        if self._open("weight_decay"):
            decay = round(scaling.weight_decay_rule(batch, tokens), 6)
            self._set("weight_decay", decay, "0.28 x sqrt(batch / 2^19) x (1.3B / tokens), at most 2")
        if self._open("sft_iterations"):
            why = "an eighth of pretraining's steps, and never more than one pass over the conversations"
            pretrained = self.config.num_iterations or scaling.steps_rule(tokens, batch)  # else by another run: as long as it should be
            self._set("sft_iterations", max(pretrained // SFT_SHARE, 1), why)

    def choose_data(self) -> None:
        """How many shards the steps read, and how many tokens an evaluation."""
        if self._open("shards") and self.source.most_shards is not None:
            shards = shards_rule(self.config.total_batch_size * self.config.num_iterations)
            self._set("shards", min(shards, self.source.most_shards), f"one for each {quantity(SHARD_TOKENS)} tokens")
        if self._open("eval_tokens"):
            self._set("eval_tokens", _eval_tokens(self.config), "all evaluations together take about 3% of the run")

    def choose_execution(self) -> None:
        """The type of the activations, torch.compile, threads."""
        gpt = scaling.gpt_config(self.config)
        if self._open("dtype"):
            self._set("dtype", *_dtype(self.config, gpt, self.hardware))
        if self._open("compile"):
            self._set("compile", *_compile(self.config, gpt, self.hardware))
        if self._open("threads"):
            threads = max(physical_cores() // self.config.nproc_per_node, 1)
            self._set("threads", threads, "physical cores for each process")


def _tokens(config: Config, gpt: scaling.GPTConfig, text_bytes: int | None, hardware: Hardware) -> tuple[float, str]:
    """Tokens of pretraining by rule, and the reason for the number. With num_iterations given: what the ratio would ask for."""
    ratio = config.target_param_data_ratio
    tokens: float = scaling.target_tokens(gpt, ratio)
    why = f"{ratio:g} tokens for each of {quantity(scaling.scaling_parameters(gpt))} scaling parameters"
    if config.num_iterations != -1:
        return tokens, why
    shortened = not hardware.cuda and config.profile in ("", "cpu")  # a card's profile keeps its length: preflight refuses it here
    if shortened and tokens > (budget := CPU_BUDGET / scaling.flops_per_token(gpt)):
        tokens = budget
        why = f"{CPU_BUDGET:.1e} operations, so that a CPU ends in minutes (give --num_iterations for more)"
    if text_bytes is not None and tokens > (limit := scaling.MAXIMUM_EPOCHS * text_bytes / scaling.bytes_per_token(config.vocab_size)):
        least = MINIMUM_ITERATIONS * max(config.total_batch_size, config.device_batch_size * config.max_seq_len * config.nproc_per_node)
        tokens = min(max(limit, least), tokens)
        why = f"{scaling.MAXIMUM_EPOCHS} passes over {quantity(text_bytes)} bytes of text, at least {MINIMUM_ITERATIONS} steps"
    return tokens, f"{why}: {quantity(tokens)} tokens"


def _eval_tokens(config: Config) -> int:
    """A power of two (and whole rows): a forward pass costs a third of a training token."""
    evaluations = 1 + (config.num_iterations // config.eval_every if config.eval_every > 0 else 0)
    tokens = EVALUATION_SHARE * 3 * config.total_batch_size * max(config.num_iterations or config.sft_iterations, 1) / evaluations
    power = 2 ** min(max(round(math.log2(tokens)), 14), 25)
    return scaling.round_up(power, config.max_seq_len)


def _dtype(config: DeviceConfig, gpt: scaling.GPTConfig, hardware: Hardware) -> tuple[str, str]:
    """The activations' type, and why."""
    if config.deterministic:
        return "float32", "deterministic runs are in full precision"
    if hardware.cuda:
        return ("bfloat16", f"{hardware.name} has units for it") if hardware.bf16 else ("float32", f"no bfloat16 units in {hardware.name}")
    if gpt.dim < LOW_PRECISION_CPU_WIDTH:
        return "float32", f"on a CPU bfloat16 and int16 pay from a width of {LOW_PRECISION_CPU_WIDTH} on"
    if not hardware.bf16 and not hardware.avx2:
        return "float32", f"no bfloat16 units in {hardware.name}"
    kind, least = ("bfloat16", BF16_CPU_GAIN) if hardware.bf16 else ("int16", INT16_CPU_GAIN)
    gain = product_gain(hardware.name, kind) if hardware.here else 1.0
    lacking = "" if hardware.bf16 else f"no bfloat16 units in {hardware.name}; "
    return (
        kind if gain >= least else "float32"
    ), f"{lacking}it multiplies in {kind} {gain:.1f} times as fast as in float32 (measured here)"


def _compile(config: Config, gpt: scaling.GPTConfig, hardware: Hardware) -> tuple[str, str]:
    """on or off, and why."""
    if config.deterministic:
        return "off", "deterministic runs are eager"
    if not hardware.cuda:
        return "off", "on a CPU the operations between the products are joined without it"
    if hardware.here and (lacking := toolchain.torch_compile_lacks(hardware.cuda)):
        return "off", f"torch.compile needs {' and '.join(lacking)}, not installed here"
    operations = scaling.flops_per_token(gpt) * config.total_batch_size * (config.num_iterations or config.sft_iterations)
    seconds = operations / (hardware.flops * config.nproc_per_node)
    why = f"about {duration(seconds)} of training; it earns its start back from {duration(COMPILE_GPU_SECONDS)}"
    return ("on" if seconds >= COMPILE_GPU_SECONDS else "off"), why
