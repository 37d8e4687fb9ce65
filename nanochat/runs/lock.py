"""One process at a time changes a run: a lock that the system frees when its holder dies, and a lease for volumes where it does not reach.

runs/<run>/lock    locked by flock; its text says who holds it, its time is renewed every RENEW seconds; removed at the end

A holder on this machine whose process is gone holds nothing. One of another machine or container, whose processes cannot be seen from
here, holds the run until the file's time is EXPIRE seconds old, by the volume's own clock.
"""

import contextlib
import dataclasses
import fcntl
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

from nanochat import paths
from nanochat.console import log
from nanochat.distributed.ranks import end_now
from nanochat.distributed.workers import KEPT_OPEN
from nanochat.errors import HungError, PreflightError

LOCK = "lock"
RENEW = 5.0  # seconds between renewals
EXPIRE = 60.0  # seconds without one after which a holder that cannot be seen is gone
UNSIGNED = 5.0  # seconds after which a file without a holder's name was left by a crash
CONFIRM = 1.0  # seconds after which a lock taken from a holder elsewhere is looked at again: two may have taken it
LOOK = 0.25  # seconds between two looks at a lock that may become free


@dataclasses.dataclass(frozen=True)
class Holder:
    """A process, what it does to the run, and where: processes of the same `place` can see one another."""

    pid: int
    host: str
    place: str
    started: str  # of the process, in the kernel's ticks: a process id is used again
    doing: str
    since: str
    token: str

    @staticmethod
    def here(doing: str) -> "Holder":
        """This process."""
        since = time.strftime("%Y-%m-%d %H:%M:%S")
        return Holder(os.getpid(), socket.gethostname(), _place(), _started(os.getpid()), doing, since, uuid.uuid4().hex)

    @staticmethod
    def read(descriptor: int) -> "Holder | None":
        """The one that an open lock file names; None if it names none."""
        try:
            found = json.loads(os.pread(descriptor, 4096, 0))
            holder = Holder(**{field.name: found[field.name] for field in dataclasses.fields(Holder)})
            return holder if all(isinstance(value, int if name == "pid" else str) for name, value in vars(holder).items()) else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    @property
    def visible(self) -> bool:
        """Whether this process could see it."""
        return bool(self.place) and self.place == _place()

    @property
    def alive(self) -> bool:
        """Whether its process exists, as far as this one sees."""
        return self.visible and bool(self.started) and _started(self.pid) == self.started

    def __str__(self) -> str:
        return f"{self.doing}, process {self.pid} on {self.host}, since {self.since}"


def _place() -> str:
    """The kernel's boot and the namespace of process ids, in which a process id means something."""
    try:
        return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _started(pid: int) -> str:
    """When process `pid` was started; nothing if it is gone or ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return "" if fields[0] in "ZX" else fields[19]
    except (OSError, IndexError):
        return ""


@contextlib.contextmanager
def hold(run: str, doing: str) -> Iterator[None]:
    """Hold `run` while the block lasts; workers that are started in it hold it too, until the last has ended.

    Raises PreflightError if another process holds it, with that one's name. A holder elsewhere that is silent is waited for, a
    minute at most.
    """
    folder = paths.run_dir(run)
    made = [each for each in (folder, folder.parent) if not each.exists()]
    own = Holder.here(doing)
    try:
        descriptor = _take(folder / LOCK, run, own)
    except PreflightError:
        _remove_empty(made)
        raise
    before = os.environ.get(KEPT_OPEN)
    os.environ[KEPT_OPEN] = str(descriptor)
    over = threading.Event()
    renewing = threading.Thread(target=_renew, args=(descriptor, run, own, over), name="run lock", daemon=True)
    renewing.start()
    try:
        yield
    finally:
        over.set()
        renewing.join()
        os.environ.pop(KEPT_OPEN) if before is None else os.environ.update({KEPT_OPEN: before})
        _leave(folder / LOCK, descriptor, own)
        _remove_empty(made)  # if nothing came of the run


def _remove_empty(folders: list[Path]) -> None:
    for folder in folders:
        with contextlib.suppress(OSError):
            folder.rmdir()


def _held(run: str, holder: Holder | None) -> PreflightError:
    stop = f"kill {holder.pid} on {holder.host}" if holder else "end its process"
    return PreflightError(
        f"the run {run!r} is in use: {holder or 'another process holds its lock'}",
        f"let it finish, or stop it ({stop}) and run the same command again; --run NEW starts another run",
    )


def _take(path: Path, run: str, own: Holder) -> int:
    """The descriptor of the lock file, locked and signed by `own`. Raises PreflightError."""
    began, seen = time.monotonic(), 0.0
    while True:
        try:
            descriptor, new = _open(path)
            with contextlib.ExitStack() as closing:
                closing.callback(os.close, descriptor)
                free, holder = _flock(descriptor), Holder.read(descriptor)
                renewed = os.fstat(descriptor).st_mtime
                if free and _current(path, descriptor) and (new or _abandoned(holder, path)):
                    _sign(path, descriptor, own)
                    if holder is None or holder.visible or _confirmed(descriptor, own):
                        closing.pop_all()
                        return descriptor
        except OSError as error:
            raise paths.disk_error(error, f"locking the run {run}") from error
        lives = holder is not None and (holder.alive or (not holder.visible and (not free or (seen and renewed != seen))))
        if lives or time.monotonic() - began > EXPIRE + RENEW:
            raise _held(run, holder)
        if not seen and holder:
            log(f"waiting a minute at most: the run {run!r} was in use a moment ago ({holder})")
        seen = seen or renewed
        time.sleep(LOOK)


def _open(path: Path) -> tuple[int, bool]:
    """The lock file, opened, and whether it was made for that."""
    for _ in range(100):  # it, or its folder, may vanish between two attempts
        path.parent.mkdir(parents=True, exist_ok=True)
        flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW
        with contextlib.suppress(FileExistsError, FileNotFoundError):
            return os.open(path, flags | os.O_CREAT | os.O_EXCL, 0o644), True
        with contextlib.suppress(FileNotFoundError):
            return os.open(path, flags), False
    raise FileNotFoundError(2, "the directory of the run comes and goes", str(path))


def _flock(descriptor: int) -> bool:
    """Whether the lock could be taken; also where the volume knows no locks, for the lease alone."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True


def _current(path: Path, descriptor: int) -> bool:
    """Whether `path` is still the file that is open: who held it removes it at its end."""
    with contextlib.suppress(FileNotFoundError):
        return path.stat().st_ino == os.fstat(descriptor).st_ino
    return False


def _abandoned(holder: Holder | None, path: Path) -> bool:
    """Whether the holder that an unlocked file names is gone."""
    if holder is None:
        return _age(path) > UNSIGNED
    return not holder.alive if holder.visible else _age(path) > EXPIRE


def _age(path: Path) -> float:
    """Seconds since the lock was renewed, by the volume's clock: another machine's may go wrong."""
    probe = path.parent / f"{paths.TEMPORARY}{uuid.uuid4().hex}"
    try:
        probe.touch()
        now = probe.stat().st_mtime
    except OSError:
        now = time.time()
    finally:
        probe.unlink(missing_ok=True)
    return now - path.stat().st_mtime


def _sign(path: Path, descriptor: int, own: Holder) -> None:
    """Write who holds the lock. Where the disk is full, no file is left that names nobody."""
    text = json.dumps(dataclasses.asdict(own)).encode()
    try:
        os.pwrite(descriptor, text, 0)
        os.ftruncate(descriptor, len(text))
        os.fsync(descriptor)
    except OSError:
        path.unlink(missing_ok=True)
        raise


def _confirmed(descriptor: int, own: Holder) -> bool:
    """Whether no other has signed at the same moment."""
    time.sleep(CONFIRM)
    return Holder.read(descriptor) == own


def _renew(descriptor: int, run: str, own: Holder, over: threading.Event) -> None:
    """Renew the lease until `over`; end this process where another has taken the run meanwhile."""
    while not over.wait(RENEW):
        holder = Holder.read(descriptor)
        if holder not in (own, None):
            error = _held(run, holder)
            log(f"error: this process stood still, and lost the run: {error.message}")
            log(f"hint: {error.hint}")
            end_now(HungError.exit_code)
        with contextlib.suppress(OSError):
            os.utime(descriptor)


def _leave(path: Path, descriptor: int, own: Holder) -> None:
    """Remove the lock file, if it is still ours, and let it go."""
    with contextlib.suppress(OSError):
        if Holder.read(descriptor) == own and _current(path, descriptor):
            path.unlink()
    os.close(descriptor)
