"""The plan of a run before its first step: memory, time, disk space, download, cost, and whether it fits.

Estimates come from the table of GPUs, or from a few steps measured on this machine (calibrate.py), which is better.
"""

import dataclasses
from typing import Any

from nanochat.config import Config, DeviceConfig
from nanochat.data.source import text_source
from nanochat.hardware.cpu import DEFAULT_FLOPS, measure_flops
from nanochat.hardware.load import NOTICED
from nanochat.hardware.machine import Hardware
from nanochat.model import scaling
from nanochat.planning.calibrate import Measured, calibrated
from nanochat.planning.hardware import choose_hardware
from nanochat.planning.memory import max_rows, memory_bytes, reserved_bytes
from nanochat.planning.rules import COMPILE_CPU_START, COMPILE_GPU_START, apply_rules
from nanochat.redaction import redact

TOKEN_CACHE_BYTES = 20 * 10**9  # limit of packed rows
START_SECONDS, END_SECONDS = 10.0, 4.0  # start-up plus final save and report, and the latter alone
TOKENIZER_BYTES = 2_000_000_000  # limit of the text for training a tokenizer
TEXT_RATE = 20e6  # bytes per second of that
MIX_RATE = 10e6  # bytes per second of a mixture's files, compressed from 2.5 times as much text
LOOP_SECONDS = 0.002  # per step, for reading rows and writing the line
HELD_OUT_TOKENS = 50_000  # training tokens that take as long as the embedded text's held-out questions
WORTH_MEASURING = 60.0  # a shorter run, in seconds, is not calibrated
LONGEST_MICRO_STEP = 5.0  # a longer micro-step, in seconds, is not measured
COMPILE_CACHE_BYTES = 200_000_000
GPU_EAGER_SPEED = 0.7  # relative to compiled, which the table's figures are for
LAUNCH_SECONDS = 0.0025  # least time of a micro-step per layer


@dataclasses.dataclass(frozen=True)
class Plan:
    """The plan of a run. The first fields are those of `plan --json`; bytes, seconds and dollars are estimates."""

    profile: str
    card: str
    parameters: int
    tokens: int  # of pretraining
    steps: int  # of pretraining
    fits: bool
    memory_bytes: dict[str, int]  # of one device: weights, gradients, optimizer, activations, logits, cache, total, usable
    max_device_batch_size: int  # the largest that fits and divides the step into equal micro-batches; 0 if none does
    seconds: float  # of pretraining, fine-tuning and evaluation, downloads not counted
    disk_bytes: int  # at most, without files that exist already
    disk_parts: dict[str, int]  # download, mixture, rows, checkpoints, cache
    download_bytes: int  # still to download
    cost: float | None  # dollars of rent; None if nothing is rented
    data_licence: str
    data_parts: list[dict[str, Any]]  # of a mixture: kind (text or conversations), name, share, licence, download_bytes
    cards: int
    card_here: bool
    flops: float  # of pretraining
    tokens_per_second: float
    basis: str  # of the time
    sft_steps: int
    rules: list[str]
    config: dict[str, Any]
    cpu_others: float = 0.0  # share of the CPU that other programs used while the steps were measured

    def to_dict(self) -> dict[str, Any]:
        """The plan for JSON, without the mirror's credentials."""
        table = dataclasses.asdict(self)
        table["config"]["mirror"] = redact(table["config"]["mirror"])
        return table


def plan_here(config: Config, hardware: Hardware, *, text_bytes: int | None = None) -> Plan:
    """`make_plan` with steps measured on this machine, if the run is long enough to justify the seconds of the measurement."""
    estimate = make_plan(config, hardware, text_bytes=text_bytes)
    return make_plan(config, hardware, text_bytes=text_bytes, measured=measured_steps(Config(**estimate.config), estimate))


def measured_steps(config: Config, estimate: Plan) -> Measured | None:
    """A calibration of a resolved config; None if the run is short or for another machine, or a step would take too long."""
    micro = config.device_batch_size * config.max_seq_len / max(estimate.tokens_per_second, 1e-9)
    if not estimate.card_here or not estimate.fits or estimate.seconds < WORTH_MEASURING or micro > LONGEST_MICRO_STEP:
        return None
    return calibrated(config, estimate.card)


def memory_shape(config: DeviceConfig) -> dict[str, Any]:
    """Arguments of `memory_bytes` and `max_rows` from a resolved config."""
    return {
        "processes": config.nproc_per_node,
        "dtype": config.dtype,
        "device": config.device,
        "compiled": config.compile == "on",
        "budget": config.activation_memory_budget,
    }


def largest_batch(config: Config, usable: int) -> int:
    """The largest micro-batch of a resolved config that fits into `usable` bytes of one device and divides its share of a step; else 0."""
    rows = max_rows(scaling.gpt_config(config), usable, **memory_shape(config))
    share = config.total_batch_size // config.max_seq_len // config.nproc_per_node  # rows per step and process
    return max((n for n in range(1, min(rows, share) + 1) if share % n == 0), default=0)


def make_plan(config: Config, hardware: Hardware | None = None, *, text_bytes: int | None = None, measured: Measured | None = None) -> Plan:
    """Plan the run of `config` (resolved or not) on `hardware` (default: `choose_hardware`).

    The time follows from `measured` steps, else from the hardware's estimated FLOP/s.
    """
    hardware = hardware or choose_hardware(config)
    resolved = apply_rules(config, text_bytes=text_bytes, hardware=hardware)
    config = resolved.config
    cuda, processes = config.device == "cuda", config.nproc_per_node
    if not cuda and hardware.flops == DEFAULT_FLOPS:
        hardware = dataclasses.replace(hardware, flops=measure_flops())
    gpt = scaling.gpt_config(config)
    memory = memory_bytes(gpt, config.device_batch_size, **memory_shape(config))
    if not cuda:  # processes on a CPU share its memory
        memory = {part: size * processes for part, size in memory.items()}
    usable = hardware.usable
    tokens = config.total_batch_size * config.num_iterations
    per_token = scaling.flops_per_token(gpt)
    compiled = config.compile == "on"
    rate = _tokens_per_second(config, hardware, per_token, measured)
    seconds = _run_seconds(config, rate) + _text_seconds(config, text_bytes)
    if compiled:
        seconds += COMPILE_GPU_START if cuda else COMPILE_CPU_START / hardware.flops
    source = text_source(config)
    download, mixed = sum(source.missing().values()), source.made_bytes()
    disk = {"download": download} | ({"mixture": mixed} if mixed else {}) | _made_bytes(config, gpt, tokens)
    return Plan(
        profile=config.profile,
        card=hardware.name,
        parameters=scaling.count_parameters(gpt)["total"],
        tokens=tokens,
        steps=config.num_iterations,
        fits=reserved_bytes(memory["total"], config.device) <= usable and (processes <= hardware.count or not cuda),
        memory_bytes=memory | {"usable": usable},
        max_device_batch_size=largest_batch(config, usable if cuda else usable // processes),
        seconds=round(seconds, 1),
        disk_bytes=sum(disk.values()),
        disk_parts=disk,
        download_bytes=download,
        cost=round(hardware.dollars * processes * seconds / 3600, 2) if hardware.dollars else None,
        data_licence=source.licence,
        data_parts=source.parts(),
        cards=processes if cuda else 0,
        card_here=hardware.here,
        flops=float(tokens * per_token),
        tokens_per_second=round(rate, 1),
        sft_steps=config.sft_iterations,
        basis=_basis(measured, hardware),
        cpu_others=measured.others if measured else 0.0,
        rules=resolved.rules,
        config=config.to_dict(),
    )


def _basis(measured: Measured | None, hardware: Hardware) -> str:
    """Source of the plan's time, with what it assumes about other programs."""
    if not measured:
        return hardware.source or "a guess"
    if hardware.cuda or measured.others < NOTICED:
        return "steps measured here"
    return f"steps measured here while other programs used {measured.others:.0%} of the CPU"


def _tokens_per_second(config: Config, hardware: Hardware, per_token: int, measured: Measured | None) -> float:
    """Training tokens per second of all processes."""
    processes, compiled = config.nproc_per_node, config.compile == "on"
    group = processes * config.device_batch_size * config.max_seq_len  # tokens of a micro-step
    if measured:
        step = config.total_batch_size / group * measured.micro_seconds + measured.optimizer_seconds + LOOP_SECONDS
        return config.total_batch_size / step
    if config.device != "cuda":
        return hardware.flops / per_token
    speed = processes * hardware.flops * (1 if compiled else GPU_EAGER_SPEED)
    return 1 / max(per_token / speed, LAUNCH_SECONDS * scaling.gpt_config(config).depth / group)


def _run_seconds(config: Config, rate: float) -> float:
    """Seconds of a run at `rate` tokens per second: both stages, evaluations (a third of a training token each), start and end."""
    evaluations = 1 + (config.num_iterations // config.eval_every if config.eval_every > 0 else 0)
    tokens = config.total_batch_size * (config.num_iterations + config.sft_iterations) + evaluations * config.eval_tokens / 3
    return START_SECONDS + (tokens + end_work(config)[0]) / rate


def end_work(config: Config) -> tuple[float, float]:
    """The work after the last stage: the held-out questions, in training tokens that take as long, and seconds of the report."""
    return (HELD_OUT_TOKENS if text_source(config).has_heldout and config.sft_iterations else 0), END_SECONDS


def _text_seconds(config: Config, text_bytes: int | None) -> float:
    """Seconds before the first step, for a mixture, the tokenizer and the first rows."""
    source = text_source(config)
    if text_bytes is None:
        text_bytes = source.estimated_bytes(config.shards) or 0
    return min(text_bytes, TOKENIZER_BYTES) / TEXT_RATE + source.made_bytes() / MIX_RATE


def kept_checkpoints(config: Config) -> int:
    """Largest number of checkpoints on disk: the newest and the best of each stage, one that is being written, and the one that
    the run began with (`--from`).
    """
    return sum(steps > 0 for steps in config.steps.values()) * (config.keep_last + 1) + 1 + bool(config.from_run)


def _made_bytes(config: Config, gpt: scaling.GPTConfig, tokens: int) -> dict[str, int]:
    """Bytes of packed rows, checkpoints and compiled kernels."""
    parts = scaling.count_parameters(gpt)
    checkpoint = 4 * parts["total"] + 4 * parts["matrices"] + 8 * (parts["total"] - parts["matrices"])
    ids = (2 if config.vocab_size <= 65536 else 4) * tokens
    return {
        "rows": min(ids, TOKEN_CACHE_BYTES),
        "checkpoints": kept_checkpoints(config) * checkpoint,
        "cache": COMPILE_CACHE_BYTES if config.compile == "on" else 0,
    }
