"""The command `nanochat`: parses its arguments, runs one command, prints an error with its hint, and exits with its code.

Heavy packages are imported by the command that needs them, so `--help` answers without torch.
"""

import contextlib
import os
import signal
import sys
from collections.abc import Sequence
from typing import Annotated, Any

import typer
from typer.exceptions import TyperException

from nanochat.cli import dataset, disk, model, plan, runs, submit, train
from nanochat.cli.encoding import require_utf8
from nanochat.cli.mistakes import usage_error
from nanochat.cli.options import application
from nanochat.console import QUIET, fail, log, show
from nanochat.errors import CLOSED_PIPE, INTERRUPTED, NanochatError
from nanochat.hardware import awake
from nanochat.hardware.extras import IMAGE
from nanochat.redaction import redact

SHOWN = 2000  # characters of an unexpected error: a compiler's has sixty thousand
STOPPED = "stopped; run the same command again"
TRAINING = ("train", "quickstart", "plan")  # commands that take training steps: a plan measures some
# How OpenMP's threads wait for each other, read when torch is imported. In training GCC's library spins for at most a fifth of a
# millisecond, as long as the threads of an idle machine need to meet (docs/experiments/log.md), and then sleeps.
POLICY = "OMP_WAIT_POLICY"
WAITING = {POLICY: "PASSIVE", "GOMP_SPINCOUNT": "10000"}

app = application("Train your own ChatGPT from nothing on the machine you have, then chat with it.", completion=True)
for commands in (train.app, plan.app, model.app, dataset.app, disk.app):
    app.add_typer(commands)
app.add_typer(runs.app, name="runs", rich_help_panel="Inspect")
app.add_typer(submit.app, name="submit", rich_help_panel="Cluster")


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", "-V", help="Show the version", is_eager=True, callback=lambda asked: _show_version(asked))
    ] = False,
) -> None:
    pass


def _show_version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        show(f"nanochat {version('nanochat-appliance')}")
        raise typer.Exit


def main() -> None:
    """The console script."""
    require_utf8()
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:  # it was closed, as by `nanochat chat <&-`
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_RDWR), mode, encoding="utf-8"))
    try:
        run_and_exit(dispatch, trains=any(word in TRAINING for word in sys.argv[1:2]))
    finally:
        if "RANK" not in os.environ:
            # The result is known; torch takes its time to exit, and a SIGTERM that comes late must not change the exit code.
            signal.signal(signal.SIGTERM, signal.SIG_IGN)


def dispatch() -> int:
    """Run the command that `sys.argv` names; returns its exit code."""
    if "NANOCHAT_GUARD" in os.environ:  # in a rented pod: this same command, supervised
        from nanochat.cloud.guard import supervise

        return supervise([sys.executable, "-m", "nanochat", *sys.argv[1:]], os.environ)
    return invoke(app)


def invoke(commands: typer.Typer, arguments: Sequence[str] | None = None, name: str = "nanochat") -> int:
    """Run a Typer application on `arguments` (default: `sys.argv`'s); returns its exit code. A mistake of usage is a UsageError."""
    try:
        code = commands(arguments, standalone_mode=False, prog_name=name) or 0
    except typer.Abort:
        code = INTERRUPTED
    except TyperException as error:
        raise usage_error(error) from error
    if code == INTERRUPTED:
        log(STOPPED, level=QUIET)
    return code


def run_and_exit(command: Any, *arguments: Any, trains: bool = False) -> None:
    """Run a command and exit with its code, which is also left for the launcher. `trains`: whether it takes training steps."""
    if not set(WAITING) & set(os.environ):
        os.environ |= WAITING if trains else {POLICY: WAITING[POLICY]}
    become_owner()
    keep_private()
    if temporary := os.environ.get("TMPDIR"):  # the image's is on the data volume, which may be new
        with contextlib.suppress(OSError):
            os.makedirs(temporary, exist_ok=True)
    awake.watch()
    code = 1
    try:
        code = exit_code(command, *arguments)
    finally:
        if "RANK" in os.environ:
            from nanochat.distributed.ranks import record_exit

            record_exit(code)
    raise SystemExit(code)


def become_owner() -> None:
    """In the image as root: continue as the user who owns the data directory, so that every container's user can write its files.

    This starts the command again, because /proc/self stays root's for a process that has changed its user.
    """
    from nanochat.paths import base_dir

    if os.geteuid() or IMAGE not in os.environ:
        return
    with contextlib.suppress(OSError):  # no such directory yet, or a root that may not change its user
        owner = base_dir().stat()
        if owner.st_uid:
            os.setgroups([])
            os.setgid(owner.st_gid)
            os.setuid(owner.st_uid)
            log(f"running as user {owner.st_uid}, who owns {base_dir()}")
            os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def keep_private() -> None:
    """Create all files for this user alone if others may write to the data directory, as in the image, whose /data serves any user."""
    from nanochat.paths import base_dir

    with contextlib.suppress(OSError):
        if base_dir().stat().st_mode & 0o002:
            os.umask(0o077)


def exit_code(command: Any, *arguments: Any) -> int:
    """Run a command; returns its exit code. Every error becomes one `error:` and one `hint:` line on stderr."""
    try:
        return command(*arguments) or 0
    except BrokenPipeError:  # the reader of our output has gone, as in `chat ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return CLOSED_PIPE
    except Exception as error:
        return fail(_for_user(error))
    except KeyboardInterrupt:
        log(STOPPED, level=QUIET)
        return INTERRUPTED


def _for_user(error: Exception) -> NanochatError:
    """`error` with the hint and the exit code that a user sees."""
    if isinstance(error, NanochatError):
        return error
    if isinstance(error, OSError):
        from nanochat.paths import disk_error

        return disk_error(error, "working")
    message, shows = redact(f"{type(error).__name__}: {error}"), "its traceback"
    if len(message) > SHOWN:
        message, shows = f"{message[:SHOWN]} ... ({len(message) - SHOWN:,} more characters)", "all of it, with the traceback"
    return NanochatError(message, f"report this internal error, please (NANOCHAT_DEBUG=1 shows {shows})")
