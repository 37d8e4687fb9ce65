"""A run's lock: flock, which the system frees when its holder dies, and a lease for volumes shared between machines.

runs/<run>/lock    locked with flock and removed at the end; names its holder, who renews its modification time every RENEW seconds
runs/<run>/stop    a request that the holder whose token it contains stops, from a process that cannot signal it

A lock of a dead process on this machine is free. The processes of another container are not visible from here. If it ran under the same
kernel and reached the file by the same local file system, a flock that is free shows that they have ended. Else, as for another machine,
the lock is free only when the file's time is EXPIRE seconds old, by the volume's clock.
"""

import contextlib
import dataclasses
import fcntl
import json
import os
import re
import signal
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nanochat import paths, untrusted
from nanochat.console import log
from nanochat.distributed.ranks import end_now
from nanochat.distributed.workers import KEPT_OPEN
from nanochat.errors import HungError, PreflightError

LOCK, STOP = "lock", "stop"
TRAINING = "a training run"  # what the holder of a run in training does
RENEW = 5.0  # seconds between renewals
EXPIRE = 60.0  # seconds without a renewal after which an invisible holder's lock is free
UNSIGNED = 5.0  # seconds after which a file without a holder's name is the remains of a crash
CONFIRM = 1.0  # seconds after which an expired lock that was taken is read again, because two processes may have taken it
LOOK = 0.25  # seconds between two checks of a lock that may become free
# File systems whose flock the kernel itself keeps, for all containers of the machine. Not those of servers or other processes (nfs, 9p,
# fuse), which may lose a lock while its holder lives.
LOCAL = {"bcachefs", "btrfs", "ext2", "ext3", "ext4", "f2fs", "tmpfs", "xfs", "zfs"}


@dataclasses.dataclass(frozen=True)
class Holder:
    """A process, its work on the run, and its `place`: processes with equal places are visible to each other."""

    pid: int
    host: str
    place: str
    started: str  # start time of the process in the kernel's ticks, because process ids are reused
    doing: str
    since: str
    token: str
    flocked: str = ""  # `_flocked` of its lock file; "" also in files of earlier versions

    @staticmethod
    def here(doing: str, pid: int | None = None) -> "Holder":
        """This process, or another one on this machine."""
        since, pid = time.strftime("%Y-%m-%d %H:%M:%S"), pid or os.getpid()
        return Holder(pid, socket.gethostname(), _place(), _started(pid), doing, since, uuid.uuid4().hex)

    @staticmethod
    def read(descriptor: int) -> "Holder | None":
        """The holder that an open lock file names; None if it names none."""
        try:
            return Holder.parse(json.loads(os.pread(descriptor, 4096, 0)))
        except (OSError, ValueError, RecursionError):
            return None

    @staticmethod
    def parse(found: Any) -> "Holder | None":
        """The holder of a JSON object; None if it is none."""
        try:
            found = {"flocked": ""} | found
            holder = Holder(**{field.name: found[field.name] for field in dataclasses.fields(Holder)})
        except (KeyError, TypeError):
            return None
        return holder if all(isinstance(value, int if name == "pid" else str) for name, value in vars(holder).items()) else None

    @property
    def visible(self) -> bool:
        """Whether the holder's process is visible to this one."""
        return bool(self.place) and self.place == _place()

    @property
    def alive(self) -> bool:
        """Whether the holder's process exists and is visible to this one."""
        return self.visible and bool(self.started) and _started(self.pid) == self.started

    def terminate(self) -> bool:
        """Send SIGTERM to the holder's process, never to another one that has got its id. Returns whether it was there.

        Raises PermissionError if it is another user's.
        """
        try:
            process = os.pidfd_open(self.pid)
        except ProcessLookupError:
            return False
        try:
            if self.alive:  # with the descriptor open, the id cannot become another's any more
                signal.pidfd_send_signal(process, signal.SIGTERM)
                return True
        except ProcessLookupError:  # it has ended meanwhile
            pass
        finally:
            os.close(process)
        return False

    def __str__(self) -> str:
        return f"{self.doing}, process {self.pid} on {self.host}, since {self.since}"


UNKNOWN = Holder(0, "this machine", "", "", "another process", "a moment ago", "")  # of a lock that names no holder


def _place() -> str:
    """The kernel's boot id and PID namespace, within which process ids are valid."""
    try:
        return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _flocked(descriptor: int) -> str:
    """The kernel's boot id and the file system of a file that this process has locked; "" if the flock is not the kernel's own."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)  # once more, because it fails on a volume without locks
        mount = re.search(r"^mnt_id:\s*(\d+)", Path(f"/proc/self/fdinfo/{descriptor}").read_text(), re.M)
        mounts = Path("/proc/self/mountinfo").read_text()
    except OSError:
        return ""
    kind = mount and re.search(rf"^{mount[1]} .* - (\S+)", mounts, re.M)
    boot = _place().partition(" ")[0]
    return f"{boot} {os.fstat(descriptor).st_dev}" if boot and kind and kind[1] in LOCAL else ""


def _started(pid: int) -> str:
    """Start time of process `pid`; "" if it has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return "" if fields[0] in "ZX" else fields[19]
    except (OSError, IndexError):
        return ""


@contextlib.contextmanager
def hold(run: str, doing: str) -> Iterator[None]:
    """Hold `run`'s lock during the block. Workers started in the block inherit it until the last one has ended.

    Raises PreflightError with the holder's name if another process holds it. Waits at most a minute for an invisible holder without
    renewals.
    """
    folder = paths.run_dir(run)
    made = [each for each in (folder, folder.parent) if not each.exists()]
    own = Holder.here(doing)
    try:
        descriptor, own = _take(folder / LOCK, run, own)
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
        _remove_empty(made)  # if the run wrote no files


def holder_of(folder: Path) -> Holder | None:
    """The process that holds the lock of the run in `folder` now, None if none does. Raises OSError if the file cannot be read."""
    path = folder / LOCK
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        holder = Holder.read(descriptor)
        if holder is None and _age(path) < UNSIGNED:
            return UNKNOWN  # about to sign: the lock is not touched
        free = _flock(descriptor)
        return None if free and (not _current(path, descriptor) or _abandoned(holder, path, descriptor)) else holder or UNKNOWN
    except FileNotFoundError:  # released meanwhile
        return None
    finally:
        os.close(descriptor)


def _remove_empty(folders: list[Path]) -> None:
    for folder in folders:
        with contextlib.suppress(OSError):
            folder.rmdir()


def _held(run: str, holder: Holder | None) -> PreflightError:
    stop = f"`kill {holder.pid}` on {holder.host}" if holder else "end its process"
    return PreflightError(
        f"the run {run!r} is in use: {holder or 'another process holds its lock'}",
        f"wait until it finishes, or stop it ({stop}), then run the same command again; use --run NEW for a new run",
    )


def _take(path: Path, run: str, own: Holder) -> tuple[int, Holder]:
    """(descriptor of the lock file, locked; `own` as it is signed). Raises PreflightError."""
    began, seen = time.monotonic(), 0.0
    while True:
        try:
            descriptor, new = _open(path)
            with contextlib.ExitStack() as closing:
                closing.callback(os.close, descriptor)
                free, holder = _flock(descriptor), Holder.read(descriptor)
                renewed = os.fstat(descriptor).st_mtime
                if free and _current(path, descriptor) and (new or _abandoned(holder, path, descriptor)):
                    own = dataclasses.replace(own, flocked=_flocked(descriptor))
                    _sign(path, descriptor, own)
                    if holder is None or holder.visible or _confirmed(descriptor, own):
                        closing.pop_all()
                        return descriptor, own
        except OSError as error:
            raise paths.disk_error(error, f"locking the run {run}") from error
        lives = holder is not None and (holder.alive or (not holder.visible and (not free or (seen and renewed != seen))))
        if lives or time.monotonic() - began > EXPIRE + RENEW:
            raise _held(run, holder)
        if not seen and holder:
            log(f"waiting at most a minute for the lock of the run {run!r} ({holder})")
        seen = seen or renewed
        time.sleep(LOOK)


def _open(path: Path) -> tuple[int, bool]:
    """(open lock file, whether it was created)."""
    for _ in range(100):  # the file or its directory may be removed between two attempts
        path.parent.mkdir(parents=True, exist_ok=True)
        flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW
        with contextlib.suppress(FileExistsError, FileNotFoundError):
            return os.open(path, flags | os.O_CREAT | os.O_EXCL, 0o644), True
        with contextlib.suppress(FileNotFoundError):
            return os.open(path, flags), False
    raise FileNotFoundError(2, "another process keeps removing the run's directory", str(path))


def _flock(descriptor: int) -> bool:
    """Try to lock; True also on a volume without locks, where only the lease counts."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True


def _current(path: Path, descriptor: int) -> bool:
    """Whether `path` is still the open file, because a holder removes it at its end."""
    with contextlib.suppress(FileNotFoundError):
        return path.stat().st_ino == os.fstat(descriptor).st_ino
    return False


def _abandoned(holder: Holder | None, path: Path, descriptor: int) -> bool:
    """Whether the holder that a lock file names has ended. The file is open, and its flock was free."""
    if holder is None:
        return _age(path) > UNSIGNED
    if holder.visible:
        return not holder.alive
    return bool(holder.flocked and holder.flocked == _flocked(descriptor)) or _age(path) > EXPIRE


def _age(path: Path) -> float:
    """Seconds since the lock's renewal, by the volume's clock, because machines' clocks differ."""
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
    """Write the holder into the lock file. If the disk is full, remove the file, which would name no holder."""
    text = json.dumps(dataclasses.asdict(own)).encode()
    try:
        os.pwrite(descriptor, text, 0)
        os.ftruncate(descriptor, len(text))
        os.fsync(descriptor)
    except OSError:
        path.unlink(missing_ok=True)
        raise


def _confirmed(descriptor: int, own: Holder) -> bool:
    """Whether no other process has signed at the same time."""
    time.sleep(CONFIRM)
    return Holder.read(descriptor) == own


def _renew(descriptor: int, run: str, own: Holder, over: threading.Event) -> None:
    """Renew the lease until `over`; end this process if another has taken the run, and signal it if it is asked to stop."""
    request = paths.run_dir(run) / STOP
    while not over.wait(RENEW):
        holder = Holder.read(descriptor)
        if holder not in (own, None):
            error = _held(run, holder)
            log(f"error: this process was suspended and lost the run's lock ({error.message})")
            log(f"hint: {error.hint}")
            end_now(HungError.exit_code)
        with contextlib.suppress(OSError):
            os.utime(descriptor)
        with contextlib.suppress(OSError, ValueError):
            if untrusted.read_bytes(request, len(own.token)) == own.token.encode():
                request.unlink()
                os.kill(own.pid, signal.SIGTERM)


def _leave(path: Path, descriptor: int, own: Holder) -> None:
    """Remove the lock file if it is still this process's, and unlock it."""
    with contextlib.suppress(OSError):
        if Holder.read(descriptor) == own and _current(path, descriptor):
            path.unlink()
    os.close(descriptor)
