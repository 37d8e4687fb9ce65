"""What can go wrong, each with the exit code that scripts and schedulers rely on.

An error carries one line that says what happened and one that says what to do; the entrypoint prints
both on stderr and exits with `exit_code`.
"""


class NanochatError(Exception):
    """An error that a user can act on: `message` says what happened, `hint` what to do about it."""

    exit_code = 1

    def __init__(self, message: str, hint: str = ""):
        super().__init__(message)
        self.message = message
        self.hint = hint


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
    """Stopped by a signal after a checkpoint was saved; the same command goes on."""

    exit_code = 75
