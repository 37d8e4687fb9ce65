"""The number of threads of a training run on a CPU, measured in its first steps and again when the machine's load changes.

The threads of a step meet some thousand times in it. While another program has one of the cores, each meeting waits until the scheduler
lets the last thread run, so that fewer threads than cores are faster. Which number is fastest depends on the model, the machine and the
other programs of the moment, so it is measured: some steps of training with each number, which count as training steps.
"""

import math
import statistics
import time
from collections import deque
from collections.abc import Callable

import torch

from nanochat.console import NORMAL, VERBOSE, log
from nanochat.hardware.load import FreeProcessors
from nanochat.train.timeleft import steady_mean

SAMPLE, SAMPLE_SECONDS = 4, 0.4  # steps with each number of threads, and seconds, at least; the first step starts threads: not counted
FEW = 4  # threads up to which each number is tried
RECENT = 8  # newest steps, whose median is compared with the measurement's
DRIFT = 1.25  # factor of the median's change, slower or faster, after which the numbers are measured again
MOVED = 0.5  # change of the free processors after which they are measured again
WORSE = 1.1  # factor of the best time from which numbers still further in the same direction are not tried
BETTER, SURE = 1.03, 2.0  # gains from which another number is taken: after a second measurement, after the first
PERIOD = 64  # steps until an unprompted measurement; doubled each time that it changes nothing
SHARE, ALLOWANCE = 0.02, 1.0  # fraction of the training time that measurements may cost, and seconds in advance
SAID_SECONDS = 60.0  # between two lines about changes


class ThreadTuner:
    """Chooses between 1 and `most` threads from the times of a run's steps.

    `use` sets the number, `free` returns the processors that other programs leave to this process (None: unknown).
    """

    def __init__(
        self,
        most: int,
        use: Callable[[int], object] = torch.set_num_threads,
        free: Callable[[], float | None] | None = None,
        now: Callable[[], float] = time.monotonic,
    ):
        self.most, self.threads, self._use, self._now = most, most, use, now
        self._free = free or FreeProcessors()
        self._recent: deque[float] = deque(maxlen=RECENT)  # seconds per token
        self._measured: dict[int, float] = {}  # number of threads -> seconds per token, of the running or the last measurement
        self._candidates: list[int] = []  # numbers to measure: the running one first; empty outside of a measurement
        self._first = most  # the measurement's first number
        self._sample, self._seconds = list[float](), 0.0  # seconds per token of the running number's steps, and their seconds
        self._samples: dict[int, list[float]] = {}  # of each number's counted steps
        self._trial: list[tuple[float, float]] = []  # (seconds per token, seconds) of all steps of the measurement
        self._confirming = False  # whether the best number and the one before are measured a second time
        self._expected = math.inf  # seconds per token with the chosen number
        self._free_then: float | None = None  # processors at the last choice
        self._elapsed = self._spent = self._cost = 0.0  # seconds of all steps, of them all measurements' cost, and the last one's
        self._quiet, self._period = 0, PERIOD  # steps since the last measurement, and until the next
        self._said_at = -math.inf
        self._begin(self._free())

    def __call__(self, seconds: float, tokens: int) -> None:
        """Record a step's time, without reading its rows, and its tokens, and set the number of threads for the next step."""
        each = seconds / max(tokens, 1)
        self._elapsed += seconds
        if self._candidates:
            self._add(each, seconds)
            return
        self._recent.append(each)
        self._quiet += 1
        if len(self._recent) < RECENT // 2 or self._slower_than_another():
            return
        free, left = self._free(), ALLOWANCE + SHARE * self._elapsed - self._spent
        if (left > 0 and self._changed(free)) or (left > self._cost and self._quiet >= self._period):
            self._begin(free)

    def _slower_than_another(self) -> bool:
        """Take another number at once, without a measurement, if the newest steps take longer than they did with that number.

        On a busy machine a step takes once or three times as long, so that a measurement can be lucky, and another one may cost too much.
        """
        others = [number for number in self._measured if number != self.threads]
        if len(self._recent) < RECENT or not others:
            return False
        mean = steady_mean(self._recent)
        best = min(others, key=lambda number: self._measured[number])
        if mean <= DRIFT * self._measured[best]:
            return False
        self._measured[self.threads] = mean
        self._choose(best, self._measured[best])
        return True

    def _changed(self, free: float | None) -> bool:
        """Whether the free processors or the steps' times are no longer those of the last measurement."""
        if free is not None and self._free_then is not None and abs(free - self._free_then) >= MOVED:
            return True
        ratio = statistics.median(self._recent) / self._expected
        return len(self._recent) == RECENT and not 1 / DRIFT < ratio < DRIFT

    def _begin(self, free: float | None) -> None:
        """Begin a measurement: of each number if there are few, else of halves.

        The number nearest to the free processors comes first, because steps with too many threads take several times as long; then more
        threads, then fewer.
        """
        self._free_then, self._samples, self._measured, self._trial, self._confirming = free, {}, {}, [], False
        numbers = {self.most >> power for power in range(self.most.bit_length())} | set(range(1, min(self.most, FEW) + 1))
        self._first = min(numbers, key=lambda number: abs(number - (self.most if free is None else free)))
        more, fewer = ({number for number in numbers if sign * number > sign * self._first} for sign in (1, -1))
        self._candidates = [self._first, *sorted(more), *sorted(fewer, reverse=True)]
        self._next()

    def _next(self) -> None:
        self._sample, self._seconds = [], 0.0
        self._use(self._candidates[0])

    def _add(self, each: float, seconds: float) -> None:
        """Record a measurement's step; after the last step of a number, measure the next number or choose."""
        self._trial.append((each, seconds))
        self._sample.append(each)
        self._seconds += seconds
        hopeless = self._measured and len(self._sample) > 1 and each > SURE * min(self._measured.values())
        if (len(self._sample) < SAMPLE or self._seconds < SAMPLE_SECONDS) and not hopeless:
            return
        number = self._candidates.pop(0)
        self._samples.setdefault(number, []).extend(self._sample[1:])
        self._measured = {number: statistics.median(times) for number, times in self._samples.items()}
        best = min(self._measured, key=lambda number: self._measured[number])
        if not self._confirming and self._measured[number] > WORSE * self._measured[best]:
            self._candidates = [other for other in self._candidates if (other > self._first) != (number > self._first)]
        gain = self._measured.get(self.threads, math.inf) / self._measured[best]
        if not self._candidates and not self._confirming and BETTER < gain < SURE:
            self._candidates, self._confirming = [self.threads, best], True
        if self._candidates:
            self._next()
            return
        # The time that all steps of the measurement would have saved with the best number.
        self._cost = sum(seconds * max(1 - self._measured[best] / each, 0) for each, seconds in self._trial)
        self._spent += self._cost
        self._choose(best if gain > BETTER else self.threads, self._measured[best])

    def _choose(self, threads: int, expected: float) -> None:
        self._period = PERIOD if threads != self.threads else 2 * self._period
        self._free_then = self._free() if self._free_then is None else self._free_then
        changed, self.threads, self._expected, self._quiet = threads != self.threads, threads, expected, 0
        self._recent.clear()
        self._use(threads)
        if changed:
            self._say()

    def _say(self) -> None:
        """One line about a change; if changes follow each other closely, only with --verbose."""
        loud = self._now() - self._said_at >= SAID_SECONDS
        self._said_at = self._now() if loud else self._said_at
        others = "" if self._free_then is None else f": other programs leave {max(self._free_then, 0):.1f} of the processors free"
        times = ", ".join(f"{1e6 * each:.1f} µs per token with {number}" for number, each in sorted(self._measured.items()))
        log(f"threads: now {self.threads} of {self.most}{others}{f' ({times})' if times else ''}", level=NORMAL if loud else VERBOSE)
