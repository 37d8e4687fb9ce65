"""`--hours`: the depth, batch size and number of steps that reach the lowest loss in a given number of hours.

For a given number of FLOPs, a model of N parameters trained on D tokens reaches the lowest loss at a certain ratio D / N. A deeper model
is trained on too few tokens, a shallower one has too few parameters. So the chosen depth is the one whose tokens in the given time are
closest to that ratio. The ratio grows with the FLOPs: for half an hour of a laptop's CPU a relatively large model is best.
"""

import math
import time

from nanochat.config import STEP_FIELDS, Config
from nanochat.console import NORMAL, VERBOSE, duration, log
from nanochat.errors import PreflightError
from nanochat.hardware.machine import Hardware
from nanochat.model import scaling
from nanochat.planning.calibrate import Measured
from nanochat.planning.memory import memory_bytes, reserved_bytes
from nanochat.planning.plan import Plan, make_plan, measured_steps, memory_shape, plan_here
from nanochat.planning.rules import Resolved, apply_rules, require_full_attention
from nanochat.runs.record import Record, read_record
from nanochat.train.timeleft import RunClock

# Compute-optimal tokens per scaling parameter: BEST_RATIO from published runs of about 1e18 FLOPs, about 4 from runs of 1.5e13 and
# 2.6e13 on a CPU (docs/experiments/log.md), and a power law between the two.
MOST_OPERATIONS, RATIO_POWER = 1e18, 0.09
DEPTHS = (*range(2, 13), *range(14, 33, 2))
ROWS = (64, 32, 16, 8, 4, 2, 1)  # micro-batch sizes that are tried on a GPU
LEAST_STEPS = 100
REVIEWS, LATE_REVIEWS, LEAST_REVIEW = 1 / 60, 1 / 10, 1.0  # parts of the time, of the rest, and seconds, between two reviews of the steps
RETIMED = 0.01  # smallest relative change of the number of steps
TOLD = 0.1  # smallest one that is told
SFT_STRETCH = 2  # fine-tuning has at most so many times its planned steps
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
    """(`config` resolved, for its hours if it has any and the run has not `begun`; its plan).

    Raises UsageError for a new model with windows on a GPU, PreflightError for too few hours.
    """
    if not begun and not config.from_run:
        require_full_attention(config, hardware)
    if config.hours and not begun:
        resolved = fit(config, hardware, text_bytes=text_bytes, spent=spent)
    else:
        resolved = apply_rules(config, text_bytes=text_bytes, hardware=hardware)
    return resolved, plan_here(resolved.config, hardware, text_bytes=text_bytes)


class HoursPacer:
    """The Pacer of a run with `--hours`: adjusts the numbers of steps so that the run ends in time, however busy the machine is.

    `began` is the run's start by time.monotonic(), minus the training time of earlier calls; `clock` has the time left at the present
    step time. New numbers of steps are written to the run's record. Fine-tuning keeps its share of the steps while pretraining changes.
    """

    def __init__(self, record: Record, began: float, clock: RunClock):
        self.record, self.began, self.clock = record, began, clock
        self.seconds, self.asked_at = 3600 * record.config.hours, time.monotonic()
        self.told = dict(record.config.steps)  # steps of each stage in the last message

    def due(self) -> bool:
        """Whether the last review is a part of the time ago, near the end of the run of its rest, or the stage is about to end."""
        if not self.clock.settled:
            return False
        now = time.monotonic()
        left = max(self.seconds - (now - self.began), 0.0)
        return self.clock.ending or now - self.asked_at >= max(min(self.seconds * REVIEWS, left * LATE_REVIEWS), LEAST_REVIEW)

    def steps(self, stage: str, done: int, steps: int) -> int:
        """The total number of the stage's steps, of which `done` are trained; now `steps`."""
        self.asked_at = time.monotonic()
        left = self.seconds - (self.asked_at - self.began)
        usual, newest = self.clock.step_seconds, self.clock.newest_seconds
        each = min(usual, newest) if self.clock.ending else usual  # a last look: the CPU may be free again
        over = RETIMED_RESERVE * left - self.clock.remaining().run * each / usual
        share = self._share if stage == "base" else 0.0
        found = retimed(done, steps, over, each * (1 + share))
        if stage == "sft":
            found = max(min(found, SFT_STRETCH * self.record.config.sft_iterations), done + 1)
        if found != steps:
            changed = self.after(stage, found)
            (read_record(self.record.config.run) or self.record).write_steps(changed)
            if share:
                self.told["sft"] = changed[STEP_FIELDS["sft"]]
                self.clock.replan("sft", self.told["sft"])
            self._tell(stage, found, f"to finish the run in {duration(max(left, 0))} at {each * 1000:.0f} ms per step")
        return found

    def after(self, stage: str, steps: int) -> dict[str, int]:
        """The config's numbers of steps once `stage` has `steps` of them."""
        followed = {STEP_FIELDS["sft"]: max(round(steps * self._share), 1)} if stage == "base" and self._share else {}
        return {STEP_FIELDS[stage]: steps} | followed

    @property
    def _share(self) -> float:
        """Fine-tuning steps per pretraining step."""
        config = self.record.config
        return config.sft_iterations / config.num_iterations if config.num_iterations else 0.0

    def _tell(self, stage: str, steps: int, why: str) -> None:
        """Print a new number of steps; a small change only for experts."""
        before = self.told[stage]
        large = abs(steps - before) > TOLD * before
        if large:
            self.told[stage] = steps
        log(f"{stage}: {steps:,} steps instead of {before:,}, {why}", level=NORMAL if large else VERBOSE)


def retimed(done: int, planned: int, over: float, step_seconds: float) -> int:
    """The number of a stage's steps, of which `done` are trained, if the run would end `over` seconds too early (below 0: too late).

    Unchanged for a small difference; else at least a quarter of the remaining steps.
    """
    steps = planned + round(over / max(step_seconds, 1e-6))
    if abs(steps - planned) < max(RETIMED * planned, 1):
        return planned
    return done + max(steps - done, (planned - done) // 4, 1)


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
