"""`--hours`: the depth, batch size and number of steps that reach the lowest loss in a given number of hours.

A model of N parameters that reads D tokens learns the most from a given number of operations at a certain D / N. Deeper, it reads too
little; shallower, it cannot hold what it reads. So of all depths the one is taken at which the time buys the tokens that are
nearest to that ratio, which grows with the operations: half an hour of a laptop's CPU is spent best on a model that is large for it.
"""

import math
import time

from nanochat.config import Config
from nanochat.console import duration, log
from nanochat.errors import PreflightError
from nanochat.hardware.machine import Hardware
from nanochat.model import scaling
from nanochat.planning.calibrate import Measured
from nanochat.planning.plan import LOOP_SECONDS, Plan, make_plan, measured_steps, memory_shape, plan_here, seconds_left
from nanochat.planning.rules import Resolved, apply_rules
from nanochat.runs.record import Record, read_record

# Tokens for each scaling parameter that operations are best spent on: BEST_RATIO by published runs of some 1e18, about 4 by runs of
# 1.5e13 and 2.6e13 on a CPU (docs/experiments/log.md); a power between the two.
MOST_OPERATIONS, RATIO_POWER = 1e18, 0.09
DEPTHS = (*range(2, 13), *range(14, 33, 2))
ROWS = (64, 32, 16, 8, 4, 2, 1)  # of the device batches that are tried on a GPU
LEAST_STEPS = 100
RETIMED = 0.02  # of the steps: fewer are not worth another number
RETIMED_RESERVE = 0.99  # of the time that is left
RESERVE = 0.95  # of the time that is planned away: over minutes a step takes up to 8% longer than the few that are measured
# What follows from the hours: kept as the run began where the same command comes again.
CHOSEN = ("depth", "device_batch_size", "total_batch_size", "num_iterations", "sft_iterations")


def fit(config: Config, hardware: Hardware, *, text_bytes: int | None = None, spent: float = 0.0) -> Resolved:
    """`config` resolved for its hours on `hardware`, of which `spent` seconds have gone. Raises PreflightError if they are too few.

    The depths are compared by what the hardware is thought to reach; of the nearest three, steps are measured if it is here.
    """
    seconds = RESERVE * (3600 * config.hours - spent)
    rough = {depth: _at(config, depth, seconds, hardware, text_bytes, None) for depth in DEPTHS}
    possible = sorted((plan for plan in rough.values() if plan), key=_distance)[:3]
    began = time.monotonic()
    measured = [measured_steps(Config(**plan.config), plan) for plan in possible]
    seconds -= time.monotonic() - began
    plans = [
        _at(config, plan.config["depth"], seconds, hardware, text_bytes, found) for plan, found in zip(possible, measured, strict=True)
    ]
    best = min(filter(None, plans), key=_distance, default=None)
    if best is None:
        raise PreflightError(
            f"{duration(3600 * config.hours)} are too short for {LEAST_STEPS} steps of the smallest model here",
            "give --hours a larger number, or lower --total_batch_size or --max_seq_len",
        )
    chosen = Config(**best.config)
    why = f"in {duration(3600 * config.hours)} it reads {_ratio(best):.1f} tokens for each scaling parameter, of all depths the nearest to "
    why += f"{best_ratio(best.flops):.1f}"
    return Resolved(chosen, [f"depth = {chosen.depth}: {why}", *(rule for rule in best.rules if not rule.startswith("depth"))])


def as_begun(config: Config, recorded: Config) -> Config:
    """`config` with what was chosen for its hours when the run began; unchanged where those are other hours."""
    if not config.hours or config.hours != recorded.hours:
        return config
    return config.replace(**{name: getattr(recorded, name) for name in CHOSEN})


def decide(
    config: Config, hardware: Hardware, *, text_bytes: int | None = None, spent: float = 0.0, begun: bool = False
) -> tuple[Resolved, Plan]:
    """`config` resolved, by its hours where it has some and the run has not `begun`, and its plan."""
    if config.hours and not begun:
        resolved = fit(config, hardware, text_bytes=text_bytes, spent=spent)
    else:
        resolved = apply_rules(config, text_bytes=text_bytes, hardware=hardware)
    return resolved, plan_here(resolved.config, hardware, text_bytes=text_bytes)


class HoursPacer:
    """The Pacer of a run with `--hours`: how many steps of pretraining end in time, as its own steps tell better than the plan.

    `began` is when the run did, by time.monotonic(), what earlier calls have trained counted in. A new number of steps is written into
    the run's record.
    """

    def __init__(self, record: Record, began: float):
        self.record, self.began = record, began

    def steps(self, done: int, step_seconds: float) -> int:
        """Steps of pretraining, of which `done` are trained, where one takes `step_seconds`."""
        record = read_record(self.record.config.run) or self.record
        config = record.config
        left = 3600 * config.hours - (time.monotonic() - self.began)
        steps = retimed(config, done, step_seconds, left)
        if steps != config.num_iterations:
            record.write_steps(steps)
            log(
                f"{steps:,} steps of pretraining instead of {config.num_iterations:,}, to end in {duration(left)}: "
                f"one takes {step_seconds * 1000:.0f} ms"
            )
        return steps


def retimed(config: Config, done: int, step_seconds: float, left: float) -> int:
    """Steps of pretraining with which a run ends in `left` seconds, of which it has done `done` at `step_seconds` each.

    Those that were planned where that makes no difference worth a word, else of those that are left at least a quarter, and at most
    four times as many.
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
    """Tokens for each scaling parameter that so many operations are best spent on."""
    return scaling.BEST_RATIO * min(operations / MOST_OPERATIONS, 1) ** RATIO_POWER


def _ratio(plan: Plan) -> float:
    """A plan's tokens for each scaling parameter."""
    return plan.tokens / scaling.scaling_parameters(scaling.gpt_config(Config(**plan.config)))


def _distance(plan: Plan) -> float:
    """How far a plan's tokens are from the best ratio, in doublings."""
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
    for _ in range(5):  # the batch follows from the tokens, their number from the time, and that again from the batch: it settles quickly
        batch = shaped.total_batch_size if shaped.total_batch_size != -1 else scaling.total_batch_rule(max(tokens, group), group)
        steps = max(int(tokens // batch), 1)
        plan = make_plan(shaped.replace(total_batch_size=batch, num_iterations=steps), hardware, text_bytes=text_bytes, measured=measured)
        tokens = plan.tokens + (seconds - plan.seconds) * plan.tokens_per_second / (1 + plan.sft_steps / plan.steps)
    return plan if plan.fits and plan.steps >= LEAST_STEPS else None


def _fits(config: Config, hardware: Hardware, text_bytes: int | None) -> bool:
    resolved = apply_rules(config.replace(num_iterations=LEAST_STEPS), text_bytes=text_bytes, hardware=hardware).config
    needed = scaling.memory_bytes(scaling.gpt_config(resolved), config.device_batch_size, **memory_shape(resolved))
    return needed["total"] <= hardware.usable
