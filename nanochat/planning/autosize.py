"""`--hours`: the depth, batch size and number of steps that reach the lowest loss in a given number of hours.

For a given number of FLOPs, a model of N parameters trained on D tokens reaches the lowest loss at a certain ratio D / N. A deeper model
is trained on too few tokens, a shallower one has too few parameters. So the chosen depth is the one whose tokens in the given time are
closest to that ratio. The ratio grows with the FLOPs: for half an hour of a laptop's CPU a relatively large model is best.
"""

import math
import time

from nanochat.config import Config
from nanochat.console import duration, log
from nanochat.errors import PreflightError
from nanochat.hardware import awake
from nanochat.hardware.machine import Hardware
from nanochat.model import scaling
from nanochat.planning.calibrate import Measured
from nanochat.planning.memory import memory_bytes, reserved_bytes
from nanochat.planning.plan import LOOP_SECONDS, Plan, make_plan, measured_steps, memory_shape, plan_here, seconds_left
from nanochat.planning.rules import Resolved, apply_rules
from nanochat.runs.record import Record, read_record

# Compute-optimal tokens per scaling parameter: BEST_RATIO from published runs of about 1e18 FLOPs, about 4 from runs of 1.5e13 and
# 2.6e13 on a CPU (docs/experiments/log.md), and a power law between the two.
MOST_OPERATIONS, RATIO_POWER = 1e18, 0.09
DEPTHS = (*range(2, 13), *range(14, 33, 2))
ROWS = (64, 32, 16, 8, 4, 2, 1)  # micro-batch sizes that are tried on a GPU
LEAST_STEPS = 100
RETIMED = 0.02  # smallest relative change of the number of steps
RETIMED_RESERVE = 0.99  # fraction of the remaining time that is planned
RESERVE = 0.95  # fraction of the time that is planned: over minutes a step takes up to 8% longer than the few measured ones
# The values that follow from the hours; when the same command runs again, they are kept.
CHOSEN = ("depth", "device_batch_size", "total_batch_size", "num_iterations", "sft_iterations")


def fit(config: Config, hardware: Hardware, *, text_bytes: int | None = None, spent: float = 0.0) -> Resolved:
    """`config` resolved for its hours on `hardware`, minus `spent` seconds. Raises PreflightError if they are too few.

    All depths are compared by estimates; for the best three, steps are measured if the hardware is this machine's.
    """
    seconds = RESERVE * (3600 * config.hours - spent)
    estimates = {depth: _at(config, depth, seconds, hardware, text_bytes, None) for depth in DEPTHS}
    possible = sorted((plan for plan in estimates.values() if plan), key=_distance)[:3]
    began = time.monotonic()
    measured = [measured_steps(Config(**plan.config), plan) for plan in possible]
    seconds -= time.monotonic() - began
    plans = [
        _at(config, plan.config["depth"], seconds, hardware, text_bytes, found) for plan, found in zip(possible, measured, strict=True)
    ]
    best = min(filter(None, plans), key=_distance, default=None)
    if best is None:
        raise PreflightError(
            f"--hours {config.hours:g} is too short for {LEAST_STEPS} steps of the smallest model",
            "give --hours a larger number, or lower --total_batch_size or --max_seq_len",
        )
    chosen = Config(**best.config)
    why = f"in {duration(3600 * config.hours)} it reads {_ratio(best):.1f} tokens for each scaling parameter, of all depths the nearest to "
    why += f"{best_ratio(best.flops):.1f}"
    return Resolved(chosen, [f"depth = {chosen.depth}: {why}", *(rule for rule in best.rules if not rule.startswith("depth"))])


def as_begun(config: Config, recorded: Config) -> Config:
    """`config` with the values chosen for its hours when the run began; unchanged if the hours differ."""
    if not config.hours or config.hours != recorded.hours:
        return config
    return config.replace(**{name: getattr(recorded, name) for name in CHOSEN})


def decide(
    config: Config, hardware: Hardware, *, text_bytes: int | None = None, spent: float = 0.0, begun: bool = False
) -> tuple[Resolved, Plan]:
    """(`config` resolved, for its hours if it has any and the run has not `begun`; its plan)."""
    if config.hours and not begun:
        resolved = fit(config, hardware, text_bytes=text_bytes, spent=spent)
    else:
        resolved = apply_rules(config, text_bytes=text_bytes, hardware=hardware)
    return resolved, plan_here(resolved.config, hardware, text_bytes=text_bytes)


class HoursPacer:
    """The Pacer of a run with `--hours`: adjusts the number of pretraining steps to the measured step time.

    `began` is the run's start by awake.monotonic(), minus the training time of earlier calls. A new number of steps is written to the
    run's record.
    """

    def __init__(self, record: Record, began: float):
        self.record, self.began = record, began

    def steps(self, done: int, step_seconds: float) -> int:
        """The total number of pretraining steps, of which `done` are trained, for the given step time."""
        record = read_record(self.record.config.run) or self.record
        config = record.config
        left = 3600 * config.hours - (awake.monotonic() - self.began)
        steps = retimed(config, done, step_seconds, left)
        if steps != config.num_iterations:
            record.write_steps(steps)
            log(
                f"{steps:,} pretraining steps instead of {config.num_iterations:,}, to finish in {duration(left)} "
                f"at {step_seconds * 1000:.0f} ms per step"
            )
        return steps


def retimed(config: Config, done: int, step_seconds: float, left: float) -> int:
    """The number of pretraining steps with which a run ends in `left` seconds, after `done` steps and at `step_seconds` per step.

    Unchanged for a small difference; else at least a quarter and at most four times the remaining steps.
    """
    planned = config.num_iterations
    rate = config.total_batch_size / (step_seconds + LOOP_SECONDS)
    over = RETIMED_RESERVE * left - seconds_left(config, rate, done)
    steps = planned + round(over * rate / config.total_batch_size)
    if abs(steps - planned) < RETIMED * planned:
        return planned
    left_steps = planned - done
    return done + min(max(steps - done, left_steps // 4, 1), 4 * left_steps)


def best_ratio(operations: float) -> float:
    """Compute-optimal tokens per scaling parameter for a number of FLOPs."""
    return scaling.BEST_RATIO * min(operations / MOST_OPERATIONS, 1) ** RATIO_POWER


def _ratio(plan: Plan) -> float:
    """A plan's tokens per scaling parameter."""
    return plan.tokens / scaling.scaling_parameters(scaling.gpt_config(Config(**plan.config)))


def _distance(plan: Plan) -> float:
    """Distance of a plan's tokens from the best ratio, in doublings."""
    return abs(math.log2(_ratio(plan) / best_ratio(plan.flops)))


def _at(config: Config, depth: int, seconds: float, hardware: Hardware, text_bytes: int | None, measured: Measured | None) -> Plan | None:
    """The plan at one depth with as many steps as `seconds` allow; None if it does not fit into memory or time."""
    shaped = config.replace(depth=depth, num_iterations=-1, sft_iterations=-1 if config.sft_iterations else 0)
    if hardware.cuda:
        shaped = shaped.replace(device_batch_size=1, total_batch_size=-1)
        rows = next((rows for rows in ROWS if _fits(shaped.replace(device_batch_size=rows), hardware, text_bytes)), 0)
        if not rows:
            return None
        shaped = shaped.replace(device_batch_size=rows)
    group = shaped.device_batch_size * shaped.max_seq_len * shaped.nproc_per_node
    tokens = float(LEAST_STEPS * group)
    for _ in range(5):  # fixed point of batch size, tokens and time, which depend on each other
        batch = shaped.total_batch_size if shaped.total_batch_size != -1 else scaling.total_batch_rule(max(tokens, group), group)
        steps = max(int(tokens // batch), 1)
        plan = make_plan(shaped.replace(total_batch_size=batch, num_iterations=steps), hardware, text_bytes=text_bytes, measured=measured)
        tokens = plan.tokens + (seconds - plan.seconds) * plan.tokens_per_second / (1 + plan.sft_steps / plan.steps)
    return plan if plan.fits and plan.steps >= LEAST_STEPS else None


def _fits(config: Config, hardware: Hardware, text_bytes: int | None) -> bool:
    resolved = apply_rules(config.replace(num_iterations=LEAST_STEPS), text_bytes=text_bytes, hardware=hardware).config
    needed = memory_bytes(scaling.gpt_config(resolved), config.device_batch_size, **memory_shape(resolved))["total"]
    return reserved_bytes(needed, resolved.device) <= hardware.usable
