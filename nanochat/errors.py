"""Errors and their exit codes, which scripts and schedulers rely on, and which codes are restarted.

An error has a message and a hint, one line each. The command line prints both on stderr and exits with `exit_code`.
"""

import difflib
from collections.abc import Iterable, Sequence

from nanochat.redaction import redact


class NanochatError(Exception):
    """An internal error, or the base of one that a user can act on: `message` says what is wrong, `hint` what to do about it."""

    exit_code = 1

    def __init__(self, message: str, hint: str = ""):
        self.message, self.hint = redact(message), redact(hint)  # a library's words may hold an address with its password
        super().__init__(self.message)


class UsageError(NanochatError):
    """Wrong usage or configuration: an unknown option, a value out of range, a run that exists with another configuration."""

    exit_code = 2


class PreflightError(NanochatError):
    """The machine cannot run this: no such device, too little memory or disk space, a directory that cannot be written."""

    exit_code = 3


class DataError(NanochatError):
    """Data, a run or a checkpoint is missing, unreadable or corrupt."""

    exit_code = 4


class NewerFormat(DataError):
    """A file in a format that a newer version of this program writes. It is not damaged, so nothing replaces or skips it."""

    def __init__(self, what: str, found: int, known: int):
        super().__init__(
            f"{what} was written by a newer version: it has format {found}, and this version reads formats up to {known}",
            "update NanoChat Appliance to the version that wrote it, then run the same command again",
        )


class NonFiniteError(NanochatError):
    """The loss or a gradient is NaN or Inf. Raised before the weights are updated with it, so the last checkpoint is good."""

    exit_code = 5


class OutOfMemoryError(NanochatError):
    """Out of memory at the smallest micro-batch size."""

    exit_code = 6


class HungError(NanochatError):
    """A process hung for --hang_timeout seconds, or a rank was lost."""

    exit_code = 7


class Preempted(NanochatError):
    """Stopped by a signal after a checkpoint was saved. The same command resumes."""

    exit_code = 75


# Final for the launcher on one machine, which restarts all others. The first five would come again: bad usage, a machine or data that
# cannot do it, NaN or Inf, out of memory. 75 is in both sets: whoever preempts a process takes its machine or wants it stopped, so a
# restart on this machine is pointless or unwanted. An orchestrator that starts it again, elsewhere or later, resumes the run.
LAUNCHER_FINAL_CODES = (
    *(error.exit_code for error in (UsageError, PreflightError, DataError, NonFiniteError, OutOfMemoryError)),
    Preempted.exit_code,
)

# Retried by an orchestrator (Kubernetes, the guard of a rented pod), from the newest checkpoint: a crash, a lost or hung rank, a
# preemption. Every other code is final.
ORCHESTRATOR_RETRIED_CODES = (NanochatError.exit_code, HungError.exit_code, Preempted.exit_code)

INTERRUPTED, CLOSED_PIPE = 130, 141  # exit codes that no error has: Ctrl-C outside of training; the reader of stdout has gone


def closest(word: str, known: Iterable[str]) -> str:
    """The `known` word that a mistyped one is closest to; "" where none is close."""
    return next(iter(difflib.get_close_matches(word.lower(), list(known), n=1)), "")


def did_you_mean(word: str, known: Sequence[str], listed: Sequence[str] = (), title: str = "one of") -> str:
    """A hint for a mistyped `word`: the closest of the `known` ones if one is close, and the `listed` ones (all of them)."""
    close = closest(word, known)
    return (f"did you mean {close}? " if close else "") + f"{title}: {', '.join(listed or known)}"
