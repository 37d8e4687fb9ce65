"""Before a run: every "by rule" gets its value, and the plan says what the run needs, how long it takes and whether it fits.

`resolve` turns a Config with -1 and "auto" into one without, deterministically: the same config on the same kind of
device gives the same values, whatever the machine's speed today. `make_plan` estimates: from a table of cards, or better
from a few steps that were measured here (calibrate.py).
"""

import dataclasses
import math
import shutil
import sysconfig
from pathlib import Path
from typing import Any

from nanochat.config import Config
from nanochat.console import duration, quantity
from nanochat.data.source import own_files, text_source
from nanochat.hardware.machine import (
    CPU_FLOPS,
    Hardware,
    choose_hardware,
    measured_cpu_flops,
    physical_cores,
    this_machine,
)
from nanochat.model import scaling
from nanochat.planning.calibrate import Measured, calibrated, product_gain

# ---- rules ----------------------------------------------------------------------------------------------------

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
ROUGH_CPU_WIDTH = 128  # of a model that a CPU's bfloat16 units make faster: 1.1 times at 96, 1.2 to 1.3 at 128, 1.5 to 1.7 at 256


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
    hardware = hardware or this_machine(config.device)
    rules: list[str] = []

    def rule(name: str, value: Any, why: str) -> Any:
        rules.append(f"{name} = {value}: {why}")
        return value

    changes: dict[str, Any] = {}
    source = text_source(config)
    if text_bytes is None and config.profile == "cpu":
        text_bytes = source.estimated_bytes(max(config.shards, 1))

    if config.device == "auto":
        found = "a CUDA device is there" if hardware.cuda else "no CUDA device that torch can use"
        changes["device"] = rule("device", "cuda" if hardware.cuda else "cpu", found)
    if config.vocab_size == -1 and text_bytes is None:
        changes["vocab_size"] = rule("vocab_size", DEFAULT_VOCAB, "the size that the other rules were measured at")
    elif config.vocab_size == -1:
        assert text_bytes is not None
        why = f"the power of two nearest to the root of {quantity(text_bytes)} bytes of text / 5, in 512..32768"
        changes["vocab_size"] = rule("vocab_size", vocab_rule(text_bytes), why)
    config = config.replace(**changes)

    gpt = scaling.gpt_config(config)
    tokens, why = _tokens(config, gpt, text_bytes, hardware)
    if config.total_batch_size == -1:
        group = config.device_batch_size * config.max_seq_len * config.nproc_per_node
        batch = scaling.total_batch_rule(tokens, group)
        shape = f"2^19 x ({quantity(tokens)} tokens / 1.3B)^0.383, in steps of {group} tokens (what the devices take at once)"
        config = config.replace(total_batch_size=rule("total_batch_size", batch, shape))
    batch = config.total_batch_size
    if config.num_iterations == -1:
        steps = scaling.steps_rule(tokens, batch)
        config = config.replace(num_iterations=rule("num_iterations", steps, f"{why}, {batch} a step"))
    if config.weight_decay == -1:
        decay = round(scaling.weight_decay_rule(batch, tokens), 6)
        config = config.replace(weight_decay=rule("weight_decay", decay, "0.28 x sqrt(batch / 2^19) x (1.3B / tokens), at most 2"))
    if config.sft_iterations == -1:
        why = "an eighth of pretraining's steps, and never more than one pass over the conversations"
        config = config.replace(sft_iterations=rule("sft_iterations", max(config.num_iterations // SFT_SHARE, 1), why))
    if config.shards == -1 and source.most_shards is not None:
        shards = min(shards_rule(batch * config.num_iterations), source.most_shards)
        config = config.replace(shards=rule("shards", shards, f"one for each {quantity(SHARD_TOKENS)} tokens"))
    if config.eval_tokens == -1:
        value = _eval_tokens(config)
        config = config.replace(eval_tokens=rule("eval_tokens", value, "all evaluations together take about 3% of the run"))
    if config.dtype == "auto":
        choice, why = _dtype(config, gpt, hardware)
        config = config.replace(dtype=rule("dtype", choice, why))
    if config.compile == "auto":
        choice, why = _compile(config, gpt, hardware)
        config = config.replace(compile=rule("compile", choice, why))
    if config.threads == -1:
        threads = max(physical_cores() // config.nproc_per_node, 1)
        config = config.replace(threads=rule("threads", threads, "physical cores for each process"))
    return Resolved(config, rules)


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
    tokens = EVALUATION_SHARE * 3 * config.total_batch_size * config.num_iterations / evaluations
    power = 2 ** min(max(round(math.log2(tokens)), 14), 25)
    return scaling.round_up(power, config.max_seq_len)


def _dtype(config: Config, gpt: scaling.GPTConfig, hardware: Hardware) -> tuple[str, str]:
    """The activations' type, and why."""
    if config.deterministic:
        return "float32", "deterministic runs are in full precision"
    if hardware.cuda:
        return ("bfloat16", f"{hardware.name} has units for it") if hardware.bf16 else ("float32", f"no bfloat16 units in {hardware.name}")
    if gpt.dim < ROUGH_CPU_WIDTH:
        return "float32", f"on a CPU bfloat16 and int16 pay from a width of {ROUGH_CPU_WIDTH} on"
    if not hardware.bf16 and not hardware.avx2:
        return "float32", f"no bfloat16 units in {hardware.name}"
    kind, least = ("bfloat16", BF16_CPU_GAIN) if hardware.bf16 else ("int16", INT16_CPU_GAIN)
    gain = product_gain(hardware.name, kind) if hardware.here else 1.0
    lacking = "" if hardware.bf16 else f"no bfloat16 units in {hardware.name}; "
    return (
        kind if gain >= least else "float32"
    ), f"{lacking}it multiplies in {kind} {gain:.1f} times as fast as in float32 (measured here)"


def compiler(cuda: bool) -> tuple[str, str | None]:
    """The compiler that torch.compile needs, and where it, or another that will do, is on this machine."""
    names = ("gcc", "cc", "clang") if cuda else ("g++", "c++", "clang++")
    return names[0], next(filter(None, map(shutil.which, names)), None)


def compiler_lacks(cuda: bool) -> list[str]:
    """What torch.compile needs at run time and this machine has not: a compiler, the header that every kernel's bindings include."""
    name, found = compiler(cuda)
    lacking = [] if found else [name]
    return lacking if Path(sysconfig.get_paths()["include"], "Python.h").exists() else [*lacking, "Python.h"]


def _compile(config: Config, gpt: scaling.GPTConfig, hardware: Hardware) -> tuple[str, str]:
    """on or off, and why."""
    if config.deterministic:
        return "off", "deterministic runs are eager"
    if not hardware.cuda:
        return "off", "on a CPU the operations between the products are joined without it"
    if hardware.here and (lacking := compiler_lacks(hardware.cuda)):
        return "off", f"torch.compile needs {' and '.join(lacking)}, not installed here"
    operations = scaling.flops_per_token(gpt) * config.total_batch_size * config.num_iterations
    seconds = operations / (hardware.flops * config.nproc_per_node)
    why = f"about {duration(seconds)} of training; it earns its start back from {duration(COMPILE_GPU_SECONDS)}"
    return ("on" if seconds >= COMPILE_GPU_SECONDS else "off"), why


# ---- the plan -------------------------------------------------------------------------------------------------

TOKEN_CACHE_BYTES = 20 * 10**9  # at most, of packed rows
START_SECONDS, END_SECONDS = 10.0, 4.0  # of the program and of what is saved and reported, of the latter alone
LINE = 10e6  # bytes a second of a download, for its time
TOKENIZER_BYTES = 2_000_000_000  # of text that a tokenizer is trained on, at most
TEXT_RATE = 20e6  # bytes of it a second
LOOP_SECONDS = 0.002  # of a step, for reading rows and writing the line
HELD_OUT_TOKENS = 50_000  # of training that the held-out questions of the embedded text take as long as
WORTH_MEASURING = 60.0  # seconds of a run
LONGEST_MICRO_STEP = 5.0  # seconds that are measured
COMPILE_CACHE_BYTES = 200_000_000
GPU_EAGER_SPEED = 0.7  # against compiled, which is what the table's figures are
LAUNCH_SECONDS = 0.0025  # of one micro-step for each layer, however little there is to compute


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a run needs and gives. The first fields are `plan --json`'s; bytes, seconds and dollars are estimates."""

    profile: str
    card: str
    parameters: int
    tokens: int  # of pretraining
    steps: int  # of pretraining
    fits: bool
    memory_bytes: dict[str, int]  # weights, gradients, optimizer, activations, logits, cache, total, usable: of one device
    max_device_batch_size: int  # the largest that fits and deals the step in whole rows; 0: none does
    seconds: float  # of pretraining, fine-tuning and evaluation, downloads not counted
    disk_bytes: int  # at the most, what lies there already not counted
    disk_parts: dict[str, int]  # download, rows, checkpoints, cache
    download_bytes: int  # still to fetch
    cost: float | None  # dollars of rent; None where nothing is rented
    data_licence: str
    cards: int
    card_here: bool
    flops: float  # of pretraining
    tokens_per_second: float
    basis: str  # of the time
    sft_steps: int
    rules: list[str]
    config: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return dataclasses.asdict(self)


def plan_here(config: Config, hardware: Hardware, *, text_bytes: int | None = None) -> Plan:
    """`make_plan`, from steps measured on this machine where the run is long enough to be worth the seconds that this takes."""
    rough = make_plan(config, hardware, text_bytes=text_bytes)
    return make_plan(config, hardware, text_bytes=text_bytes, measured=measured_steps(Config(**rough.config), rough))


def measured_steps(config: Config, rough: Plan) -> Measured | None:
    """A calibration of a resolved config, None where the run is short, is not for this machine, or one step would take too long."""
    micro = config.device_batch_size * config.max_seq_len / max(rough.tokens_per_second, 1e-9)
    if not rough.card_here or not rough.fits or rough.seconds < WORTH_MEASURING or micro > LONGEST_MICRO_STEP:
        return None
    return calibrated(config, rough.card)


def memory_shape(config: Config) -> dict[str, Any]:
    """What memory depends on beside the model and the rows, of a resolved config: for `scaling.memory_bytes` and `max_rows`."""
    return {
        "processes": config.nproc_per_node,
        "bf16": config.dtype == "bfloat16",
        "device": config.device,
        "compiled": config.compile == "on",
        "budget": config.activation_memory_budget,
    }


def make_plan(config: Config, hardware: Hardware | None = None, *, text_bytes: int | None = None, measured: Measured | None = None) -> Plan:
    """Plan the run that `config` (resolved or not) asks for, on `hardware`: `choose_hardware`'s unless given.

    Its seconds follow from the steps that were `measured`, else from what the hardware is thought to reach.
    """
    hardware = hardware or choose_hardware(config)
    resolved = apply_rules(config, text_bytes=text_bytes, hardware=hardware)
    config = resolved.config
    cuda, processes = config.device == "cuda", config.nproc_per_node
    if not cuda and hardware.flops == CPU_FLOPS:
        hardware = dataclasses.replace(hardware, flops=measured_cpu_flops())
    gpt = scaling.gpt_config(config)
    shape = memory_shape(config)
    memory = scaling.memory_bytes(gpt, config.device_batch_size, **shape)
    if not cuda:  # the processes share one memory
        memory = {part: size * processes for part, size in memory.items()}
    usable = hardware.usable
    rows = scaling.max_rows(gpt, usable if cuda else usable // processes, **shape)
    share = config.total_batch_size // config.max_seq_len // processes  # rows of a step for each process

    tokens = config.total_batch_size * config.num_iterations
    per_token = scaling.flops_per_token(gpt)
    compiled = config.compile == "on"
    rate = _tokens_per_second(config, hardware, per_token, measured)
    seconds = seconds_left(config, rate) + _text_seconds(config, text_bytes)
    if compiled:
        seconds += COMPILE_GPU_START if cuda else COMPILE_CPU_START / hardware.flops
    download = sum(text_source(config).missing().values())
    disk = {"download": download} | _made_bytes(config, gpt, tokens)
    return Plan(
        profile=config.profile,
        card=hardware.name,
        parameters=scaling.count_parameters(gpt)["total"],
        tokens=tokens,
        steps=config.num_iterations,
        fits=memory["total"] <= usable and (processes <= hardware.count or not cuda),
        memory_bytes=memory | {"usable": usable},
        max_device_batch_size=max((n for n in range(1, min(rows, share) + 1) if share % n == 0), default=0),
        seconds=round(seconds, 1),
        disk_bytes=sum(disk.values()),
        disk_parts=disk,
        download_bytes=download,
        cost=round(hardware.dollars * processes * seconds / 3600, 2) if hardware.dollars else None,
        data_licence=text_source(config).licence,
        cards=processes if cuda else 0,
        card_here=hardware.here,
        flops=float(tokens * per_token),
        tokens_per_second=round(rate, 1),
        sft_steps=config.sft_iterations,
        basis="steps measured here" if measured else hardware.source or "a guess",
        rules=resolved.rules,
        config=config.to_dict(),
    )


def _tokens_per_second(config: Config, hardware: Hardware, per_token: int, measured: Measured | None) -> float:
    """Tokens of training a second, of all processes together."""
    processes, compiled = config.nproc_per_node, config.compile == "on"
    group = processes * config.device_batch_size * config.max_seq_len  # tokens of a micro-step
    if measured:
        step = config.total_batch_size / group * measured.micro_seconds + measured.optimizer_seconds + LOOP_SECONDS
        return config.total_batch_size / step
    if config.device != "cuda":
        return hardware.flops / per_token
    speed = processes * hardware.flops * (1 if compiled else GPU_EAGER_SPEED)
    return 1 / max(per_token / speed, LAUNCH_SECONDS * scaling.gpt_config(config).depth / group)


def seconds_left(config: Config, rate: float, done: int = 0) -> float:
    """Of a run at `rate` tokens a second after `done` steps of pretraining: both stages, their evaluations (a third of a training
    token each), what is asked and saved at the end, and before the first step the start.
    """
    evaluations = 1 + (config.num_iterations // config.eval_every - done // config.eval_every if config.eval_every > 0 else 0)
    tokens = config.total_batch_size * (config.num_iterations - done + config.sft_iterations) + evaluations * config.eval_tokens / 3
    asked = HELD_OUT_TOKENS if text_source(config).has_heldout and config.sft_iterations else 0
    return (END_SECONDS if done else START_SECONDS) + (tokens + asked) / rate


def _text_seconds(config: Config, text_bytes: int | None) -> float:
    """Of what comes before the first step: the tokenizer, and the first rows."""
    if text_bytes is None:
        text_bytes = text_source(config).estimated_bytes(config.shards) or 0
    return min(text_bytes, TOKENIZER_BYTES) / TEXT_RATE


def kept_checkpoints(config: Config) -> int:
    """Checkpoints that lie on the disk at once at the most: the newest and the best of each stage, and one that is being written."""
    return sum(steps > 0 for steps in config.steps.values()) * (config.keep_last + 1) + 1


def _made_bytes(config: Config, gpt: scaling.GPTConfig, tokens: int) -> dict[str, int]:
    """Packed rows, the checkpoints, and compiled kernels."""
    parts = scaling.count_parameters(gpt)
    checkpoint = 4 * parts["total"] + 4 * parts["matrices"] + 8 * (parts["total"] - parts["matrices"])
    ids = (2 if config.vocab_size <= 65536 else 4) * tokens
    return {
        "rows": min(ids, TOKEN_CACHE_BYTES),
        "checkpoints": kept_checkpoints(config) * checkpoint,
        "cache": COMPILE_CACHE_BYTES if config.compile == "on" else 0,
    }


def describe(plan: Plan) -> str:
    """The plan for people, a few lines."""
    config, memory = plan.config, plan.memory_bytes
    cards = f"{plan.cards} x {plan.card}" if plan.cards > 1 else plan.card
    parts = ", ".join(f"{name} {_size(memory[name])}" for name in ("weights", "gradients", "optimizer", "activations", "logits", "cache"))
    enough = memory["total"] <= memory["usable"]
    verdict = "fits" if plan.fits else "too few cards here" if enough else "DOES NOT FIT"
    rows = {
        "plan": f"{plan.profile or 'no profile'}{', trial' if config['trial'] else ''}, on {cards}",
        "model": f"depth {config['depth']}, {quantity(plan.parameters)} parameters, vocabulary {config['vocab_size']}",
        "context": f"{config['max_seq_len']} tokens",
        "training": f"{plan.steps} steps of {config['total_batch_size']} tokens = {quantity(plan.tokens)}, {plan.flops:.1e} operations",
        "chat": f"{plan.sft_steps} steps of conversations after that",
        "memory": f"{_size(memory['total'])} of {_size(memory['usable'])} usable: {verdict} ({parts})",
        "batch": f"device_batch_size {config['device_batch_size']}; the largest that fits: {plan.max_device_batch_size}",
        "time": f"about {duration(plan.seconds)}, {quantity(plan.tokens_per_second)} tokens/s ({plan.basis})",
        "disk": f"{_size(plan.disk_bytes)} at most, {_download(plan)}",
        "data": f"{config['data'] or config['dataset']}: {plan.data_licence}",
    }
    if not plan.card_here:
        rows["plan"] += " (not in this machine)"
    if plan.cost is not None:
        rows["cost"] = f"about ${plan.cost:.2f} where the cards are rented (prices change)"
    return "\n".join(f"{name:<10}{text}" for name, text in rows.items())


def brief(plan: Plan) -> str:
    """The plan in three lines, as `train` prints it."""
    config, memory = plan.config, plan.memory_bytes
    cards = f"{plan.cards} x {plan.card}" if plan.cards > 1 else plan.card
    cost = f", about ${plan.cost:.2f} where it is rented" if plan.cost is not None else ""
    run = f"{plan.profile or 'no profile'}{', trial' if config['trial'] else ''} on {cards}"
    model = f"depth {config['depth']}, {quantity(plan.parameters)} parameters"
    steps = f"{plan.steps} steps = {quantity(plan.tokens)} tokens, {plan.sft_steps} of conversations"
    batch = f"device_batch_size {config['device_batch_size']} of {plan.max_device_batch_size} at most"
    space = f"{_size(memory['total'])} of {_size(memory['usable'])} memory, {batch}; disk {_size(plan.disk_bytes)}, {_download(plan)}"
    time = f"about {duration(plan.seconds)} at {quantity(plan.tokens_per_second)} tokens/s ({plan.basis}){cost}"
    data = f"data {config['data'] or config['dataset']}: {plan.data_licence}"
    return f"plan: {run}: {model}, {steps}\nplan: {space}\nplan: {time}; {data}"


def _download(plan: Plan) -> str:
    """What is to be downloaded, and how long that takes at a rate that is said."""
    if not plan.download_bytes:
        return "nothing to download"
    return f"{_size(plan.download_bytes)} to download ({duration(plan.download_bytes / LINE)} at {quantity(LINE)}B/s)"


def _size(size: float) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.0f} MB"
