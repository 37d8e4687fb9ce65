"""The time left of a run's stage and of the whole run, from the newest steps, with the reason when the step time changes.

Everything that a run still has to do is counted in training tokens: steps, evaluations, samples and the evaluation at the end. The seconds
per token come from the newest steps. The cost of evaluations and samples is measured in tokens too, so that it follows the step time.
"""

import math
import statistics
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from nanochat.config import Config
from nanochat.console import duration
from nanochat.hardware import awake
from nanochat.hardware.load import OtherLoad

LONG, SHORT = 180.0, 16.0  # seconds of steps for the mean, and for a change, which both halves must show
LEAST = 4  # steps of such a half
SETTLED = 20  # steps after which a plan may be changed by them
FEW = 3  # steps from which the measured step time is used instead of the plan's
CHANGED = 1.3  # ratio of the two means from which the older steps say nothing about those to come
ERRORS = 5.0  # standard errors of the shorter mean that the difference must have: the steps of a busy CPU differ much
TOLD = 1.6  # ratio to the step time of the last message, from which a new one is due
TELL_SECONDS = 15.0  # for which it must last before
MOST = 4000  # steps kept
UPDATE_SECONDS = 0.25
SAMPLE_STEPS = 0.5  # a sample's first guess, in steps; the first one is measured
EVALUATION, SAMPLE, SAVE = "evaluation", "sample", "save"
PREPARE, FINISH = "prepare", "evaluation"  # the parts of a run before and after its stages


class StepTime:
    """Seconds of a step to come: a mean of the newest steps, without those before the last change.

    The mean counts the longest step as the second longest, because a single pause (a suspended machine, a full disk) says nothing about
    the steps to come, while repeated pauses do: on a busy CPU a few steps take most of the time, which a median would not see.
    """

    def __init__(self) -> None:
        self.steps: deque[float] = deque(maxlen=MOST)
        self.first = True  # whether the next step is the first one of a stage
        self.alone: float | None = None  # that one, as long as there is no other

    def add(self, seconds: float) -> None:
        """Add the newest step. The first one of a stage compiles, packs rows or starts threads, so it only counts while it is alone."""
        if not self.first:
            self.steps.append(seconds)
        elif not self.steps:
            self.alone = seconds
        self.first = False

    def seconds(self) -> float | None:
        """The expected seconds of a step; None before the first one."""
        if not self.steps:
            return self.alone
        newest, kept = self._newest(SHORT), self._newest(LONG)
        long, later = steady_mean(kept), self._newest(SHORT / 2)
        if min(len(later), len(newest) - len(later), len(kept) - len(newest)) >= LEAST:
            ratios = [steady_mean(steps) / long for steps in (newest[: -len(later)], later)]
            lasting = min(ratios) > CHANGED or max(ratios) < 1 / CHANGED
            if lasting and abs(steady_mean(newest) - long) > ERRORS * statistics.pstdev(kept) / math.sqrt(len(newest)):
                self.steps = deque(newest, maxlen=MOST)
                return steady_mean(newest)
        return long

    def _newest(self, seconds: float) -> list[float]:
        """The newest steps, oldest first, that took `seconds` together, and at least LEAST of them."""
        found: list[float] = []
        total = 0.0
        for step in reversed(self.steps):
            if total >= seconds and len(found) >= LEAST:
                break
            found.append(step)
            total += step
        return found[::-1]


def steady_mean(steps: Sequence[float]) -> float:
    """The mean of at least one step's time, the longest counted as the second longest: one pause says nothing about the steps to come."""
    ordered = sorted(steps)
    if len(ordered) >= FEW:
        ordered[-1] = ordered[-2]
    return sum(ordered) / len(ordered)


@dataclass(frozen=True)
class TimeLeft:
    """Seconds left of the present stage and of the whole run."""

    stage: float
    run: float


@dataclass
class StageWork:
    """The work of one stage, in training tokens."""

    name: str
    steps: int
    step_tokens: float
    every: dict[str, int]  # of evaluations and samples, in steps; -1: at the end only
    cost: dict[str, float]  # tokens of one of them
    guessed: bool = False  # whether `step_tokens` is a guess, which the first steps correct
    done: int = 0  # steps
    at: dict[str, int] = field(default_factory=dict)  # the step after which the newest evaluation, sample and save were

    def tokens_left(self) -> float:
        """Training tokens that take as long as the rest of the stage."""
        events = sum(self._left(kind) * cost for kind, cost in self.cost.items())
        return (self.steps - self.done) * self.step_tokens + events

    def end(self) -> None:
        """Leave nothing to do."""
        self.done, self.at = self.steps, dict.fromkeys(self.cost, self.steps)

    def _left(self, kind: str) -> int:
        """Evaluations (or samples, or saves) that are still to come, the one after the last step included."""
        at, every = self.at.get(kind, self.done), self.every[kind]
        if at >= self.steps:
            return 0
        return (self.steps // every - at // every if every > 0 else 0) + (every <= 0 or self.steps % every > 0)


def stage_works(config: Config) -> list[StageWork]:
    """The stages of a resolved config that have steps. A step of reinforcement learning is a guess until the first ones are measured."""
    found = []
    for name, steps in config.steps.items():
        if steps <= 0:
            continue
        step, evaluation = float(config.total_batch_size), config.eval_tokens / 3  # a forward pass is a third of a training step
        if name == "rl":
            longest = config.rl_max_new_tokens
            step = 2.0 * config.rl_examples_per_step * config.rl_num_samples * longest  # sampled, and learned from
            evaluation = 8.0 * config.rl_eval_examples * longest
        every = {EVALUATION: config.eval_every, SAMPLE: config.sample_every, SAVE: config.eval_every}
        found.append(StageWork(name, steps, step, every, {EVALUATION: evaluation, SAMPLE: SAMPLE_STEPS * step, SAVE: 0.0}, name == "rl"))
    return found


class RunClock:
    """The time left of a run and of its present stage, for every line and page that shows it.

    tokens_per_second: planned, of training, for the time before the first steps; 0 if unknown.
    end_tokens, end_seconds: the work after the last stage, as training tokens and as a fixed time.
    processes: of this run on this machine.
    """

    def __init__(
        self,
        works: Sequence[StageWork] = (),
        tokens_per_second: float = 0.0,
        end_tokens: float = 0.0,
        end_seconds: float = 0.0,
        processes: int = 1,
    ):
        self.works, self.end_tokens, self.end_seconds = {work.name: work for work in works}, end_tokens, end_seconds
        self.load = OtherLoad(processes)
        self.part = PREPARE
        self.token_seconds = self.told = 1 / tokens_per_second if tokens_per_second else 0.0
        self.planned = tokens_per_second > 0  # whether `told` is the plan's
        self.step_time, self.step_tokens = StepTime(), 0.0  # of the stage that it began with
        self.printed_at = -float("inf")  # when the last plain step line was printed, in any stage
        self.marked = self.updated = self.same_at = awake.monotonic()  # the last one: when the step time was as in the last message
        self.left = self._left()

    @property
    def parts(self) -> list[str]:
        """The parts of the run, in order."""
        return [PREPARE, *self.works, FINISH]

    @property
    def place(self) -> str:
        """The present part among all: 2/4."""
        return f"{self.parts.index(self.part) + 1}/{len(self.parts)}"

    @property
    def settled(self) -> bool:
        """Whether the present estimate comes from enough steps to change the run's plan by it."""
        return len(self.step_time.steps) >= SETTLED

    @property
    def step_seconds(self) -> float:
        """The expected seconds of a step of the present stage."""
        return self.token_seconds * self._work.step_tokens

    @property
    def newest_seconds(self) -> float:
        """The median seconds of the newest steps, which follows a change at once and does not know rare long steps."""
        return statistics.median(list(self.step_time.steps)[-2 * LEAST :])

    @property
    def ending(self) -> bool:
        """Whether the present stage ends after the next step."""
        return self._work.steps - self._work.done <= 2

    def replan(self, stage: str, steps: int) -> None:
        """Give a stage to come another number of steps."""
        if stage in self.works:
            self.works[stage].steps = steps

    def begin(self, stage: str, done: int = 0, steps: int = 0) -> None:
        """Begin a stage after `done` of its `steps`, or FINISH."""
        self.step_time.first = True
        if stage != FINISH:
            work = self.works.setdefault(stage, StageWork(stage, steps, 1.0, {}, {}))
            work.done, work.steps, work.at = done, steps, {}
            if work.step_tokens != self.step_tokens:
                self.step_time = StepTime()
            self.step_tokens = work.step_tokens
        for name in self.parts[1 : self.parts.index(stage)]:
            self.works[name].end()
        self.part, self.marked = stage, awake.monotonic()
        self._update()

    def step(self, done: int, steps: int) -> None:
        """Count the time since the last mark as that of a step, the stage's number `done` of `steps`."""
        work, seconds = self._work, self._mark()
        work.done, work.steps = done, steps
        self.step_time.add(seconds)
        if self.marked - self.updated >= UPDATE_SECONDS:
            self._update()

    def event(self, kind: str) -> None:
        """Count the time since the last mark as that of an EVALUATION, a SAMPLE or a SAVE."""
        work, seconds = self._work, self._mark()
        if self.token_seconds and kind in work.cost:
            tokens = seconds / self.token_seconds
            work.cost[kind] = (work.cost[kind] + tokens) / 2 if kind in work.at else tokens
        work.at[kind] = work.done

    def change(self) -> str:
        """A message if the step time differs from the last message's, with the reason; "" if there is nothing new. Call after each step."""
        now = awake.monotonic()
        busy = self.load.sample()
        ratio = self.token_seconds / self.told if self.told else 1.0
        if len(self.step_time.steps) < LEAST or 1 / TOLD < ratio < TOLD:
            self.same_at = now
        if now - self.same_at < TELL_SECONDS:
            return ""
        before, step = (_short(each * self._work.step_tokens) for each in (self.told, self.token_seconds))
        than, self.planned = "the planned " if self.planned else "", False
        self.told, self.same_at = self.token_seconds, now
        why = f", because {busy.reason}" if ratio > 1 and busy.reason else ""
        return f"a step now takes {step} instead of {than}{before}{why}: {duration(self.left.run)} left of the run"

    def facts(self) -> dict[str, float]:
        """The fields of the heartbeat."""
        left = self.remaining()
        others = round(self.load.busy.others, 2)
        idle = round(awake.monotonic() - self.marked, 1)  # seconds since the last step, evaluation or save
        return {"stage_seconds_left": round(left.stage, 1), "seconds_left": round(left.run, 1), "cpu_others": others, "idle_seconds": idle}

    def remaining(self, seconds: float = 0.0) -> TimeLeft:
        """The time left while some work within the present part, such as packing, says that it needs `seconds` more."""
        if self.part == FINISH:
            left = max(self._left().run, seconds)
            return TimeLeft(left, left)
        return TimeLeft(self.left.stage + seconds, self.left.run + seconds)

    @property
    def _work(self) -> StageWork:
        return self.works[self.part]

    def _mark(self) -> float:
        """The seconds since the last mark, which is now."""
        before, self.marked = self.marked, awake.monotonic()
        return self.marked - before

    def _update(self) -> None:
        self.updated = awake.monotonic()
        if self.part != FINISH and (seconds := self.step_time.seconds()) and (len(self.step_time.steps) >= FEW or not self.token_seconds):
            if self._work.guessed and self.token_seconds:  # its steps are of its own kind
                self._work.step_tokens = seconds / self.token_seconds
            else:
                self.token_seconds = seconds / self._work.step_tokens
        self.left = self._left()

    def _left(self) -> TimeLeft:
        """The estimate by the present step time."""
        end = self.end_tokens * self.token_seconds + self.end_seconds
        if self.part == FINISH:
            left = max(end - (awake.monotonic() - self.marked), 0.0)
            return TimeLeft(left, left)
        stages = {name: work.tokens_left() * self.token_seconds for name, work in self.works.items()}  # 0 of one that has ended
        return TimeLeft(stages.get(self.part, 0.0), sum(stages.values()) + end)


def _short(seconds: float) -> str:
    """The seconds of a step: 70 ms, 2.1 s."""
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"
