"""What can go wrong, each with the exit code that scripts and schedulers rely on.

An error carries one line that says what happened and one that says what to do; the command line prints
both on stderr and exits with `exit_code`. Who restarts which code is said here too, below.
"""

from nanochat.redaction import redact


class NanochatError(Exception):
    """An error that a user can act on: `message` says what happened, `hint` what to do about it."""

    exit_code = 1

    def __init__(self, message: str, hint: str = ""):
        self.message, self.hint = redact(message), redact(hint)  # a library's words may hold an address with its password
        super().__init__(self.message)


class UsageError(NanochatError):
    """Bad usage or configuration."""

    exit_code = 2


class PreflightError(NanochatError):
    """The machine cannot run what was asked: no such device, no space, a folder that cannot be written."""

    exit_code = 3


class DataError(NanochatError):
    """Data is missing, unreadable or corrupt."""

    exit_code = 4


class NonFiniteError(NanochatError):
    """The loss or a gradient is no longer finite; raised before the update that would spread it."""

    exit_code = 5


class OutOfMemoryError(NanochatError):
    """Out of memory at the smallest batch."""

    exit_code = 6


class HungError(NanochatError):
    """A rank was lost, or nothing has moved for too long."""

    exit_code = 7


class Preempted(NanochatError):
    """Stopped by a signal after a checkpoint was saved; the same command resumes."""

    exit_code = 75


# Final for the launcher on one machine, which restarts all others. The first five would come again: bad usage, a machine or data that
# cannot do it, a loss that is not finite, memory. 75 is in both sets: whoever preempts a process takes its machine or wants it stopped,
# so to start it again right here is pointless or unwanted; started again by an orchestrator, elsewhere or later, it resumes.
LAUNCHER_FINAL_CODES = (
    *(error.exit_code for error in (UsageError, PreflightError, DataError, NonFiniteError, OutOfMemoryError)),
    Preempted.exit_code,
)

# Retried by an orchestrator (Kubernetes, the guard of a rented pod), from the newest checkpoint: a crash, a lost or hung rank, a
# preemption. It takes every other code for final.
ORCHESTRATOR_RETRIED_CODES = (NanochatError.exit_code, HungError.exit_code, Preempted.exit_code)
