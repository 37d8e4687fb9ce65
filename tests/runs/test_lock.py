"""The lock on a run: one holder at a time, whose end frees it, also where flock does not reach."""

import errno
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nanochat import paths
from nanochat.errors import PreflightError
from nanochat.runs import lock
from nanochat.runs.lock import LOCK, hold
from tests import tiny

ROOT = Path(__file__).resolve().parents[2]

HOLDS = """
import os, sys, time
from nanochat.cli.app import run_and_exit
from nanochat.distributed import ranks
from nanochat.runs import lock

lock.EXPIRE, lock.RENEW, lock.SILENT, lock.CONFIRM, lock.UNSIGNED = {expire}, 0.3, {silent}, 0.5, 1.0
if "{where}":
    lock._place = lambda: "{where}"
if not {flock}:
    lock._flock = lambda descriptor: True

def work():
    with lock.hold("one", "a training run"):
        print("held", flush=True)
        time.sleep({seconds})

run_and_exit(work)
"""


def start(
    seconds: float = 60, where: str = "", flock: bool = True, prefix: tuple[str, ...] = (), expire: float = 4, silent: float = 0.6
) -> "subprocess.Popen[str]":
    """A process that holds the run "one"; `where` is a place whose processes the others cannot see, as another container's."""
    code = HOLDS.format(seconds=seconds, where=where, flock=flock, expire=expire, silent=silent)
    environment = os.environ | {"PYTHONPATH": str(ROOT), "NO_COLOR": "1"}
    command, pipes = [*prefix, sys.executable, "-c", code], {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, env=environment, text=True, start_new_session=True, **pipes)


def held(process: "subprocess.Popen[str]") -> "subprocess.Popen[str]":
    """`process`, once it holds the run."""
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n", process.communicate()
    return process


def refused(process: "subprocess.Popen[str]", by: int) -> None:
    """Assert that it was told of the process that holds the run, and what to do."""
    out, err = process.communicate(timeout=60)
    assert process.returncode == 3 and out == "", err
    error, hint = (line for line in err.splitlines() if line.startswith(("error:", "hint:")))
    assert f"the run 'one' is in use: a training run, process {by} on {socket.gethostname()}" in error
    assert f"kill {by}" in hint and "--run NEW" in hint and "Traceback" not in err


def test_one_holder_and_nothing_left_of_it(base: Path) -> None:
    with hold("one", "a test"):
        assert (paths.run_dir("one") / LOCK).exists()
        with pytest.raises(PreflightError, match=rf"a test, process {os.getpid()} on"), hold("one", "another"):
            raise AssertionError
        with hold("two", "another"):
            pass
        assert not paths.run_dir("two").exists()
    assert list(base.iterdir()) == []  # nothing came of the runs
    paths.run_dir("one").mkdir(parents=True)
    with hold("one", "again"):
        pass
    assert list(paths.run_dir("one").iterdir()) == []


def test_an_error_frees_it(base: Path) -> None:
    with pytest.raises(KeyError), hold("one", "a test"):
        raise KeyError
    with hold("one", "again"):
        pass


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"\xff\x00", b'{"pid": "1"}', b"x" * 100_000], ids=range(6))
def test_a_damaged_lock_that_nobody_holds(base: Path, text: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "UNSIGNED", 0.2)
    paths.run_dir("one").mkdir(parents=True)
    (paths.run_dir("one") / LOCK).write_bytes(text)
    with hold("one", "a test"):
        pass


def test_a_link_is_not_followed(base: Path, tmp_path: Path) -> None:
    paths.run_dir("one").mkdir(parents=True)
    (tmp_path / "mine").write_text("mine")
    (paths.run_dir("one") / LOCK).symlink_to(tmp_path / "mine")
    with pytest.raises(Exception, match="locking the run one"), hold("one", "a test"):
        raise AssertionError
    assert (tmp_path / "mine").read_text() == "mine"


def test_a_full_disk_leaves_no_lock(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as here:
        here.setattr(os, "pwrite", full)
        with pytest.raises(PreflightError, match="the disk is full"), hold("one", "a test"):
            raise AssertionError
    assert list(base.iterdir()) == []
    with hold("one", "a test"):
        pass


@pytest.mark.slow
def test_another_process_is_told_who_holds_it(base: Path) -> None:
    first = held(start())
    refused(start(), first.pid)
    first.terminate()
    first.wait()
    assert held(start(0)).wait(30) == 0


@pytest.mark.long
def test_a_killed_holder_holds_nothing(base: Path) -> None:
    first = held(start())
    first.kill()
    first.wait()
    assert (paths.run_dir("one") / LOCK).exists()
    began = time.monotonic()
    with hold("one", "a test"):
        assert time.monotonic() - began < 2


@pytest.mark.long
@pytest.mark.parametrize("flock", [True, False], ids=["flock", "lease alone"])
def test_a_holder_elsewhere(base: Path, flock: bool) -> None:
    """On another machine: it is told of, however long it trains; killed there, the run is free when its lease is over."""
    first = held(start(where="there", flock=flock))
    time.sleep(5)  # longer than a lease
    refused(start(where="here", flock=flock), first.pid)
    first.kill()
    first.wait()
    second = held(start(0, where="here", flock=flock, expire=20))
    _, err = second.communicate(timeout=60)
    assert second.returncode == 0 and "waiting at most a minute" in err and str(first.pid) in err


@pytest.mark.long
@pytest.mark.parametrize("old", [pytest.param(False, id="new"), pytest.param(True, marks=pytest.mark.slow, id="over an old lease")])
@pytest.mark.parametrize("place", ["", "{}"], ids=["one machine", "many machines"])
def test_of_many_at_once_one_holds_it(base: Path, place: str, old: bool) -> None:
    """Without flock, by the lease alone."""
    if old:
        first = held(start(where="gone", flock=False))
        first.kill()
        first.wait()
    started = [start(12, where=place.format(number), flock=not place) for number in range(5)]
    told = [process.communicate(timeout=90) for process in started]
    assert sorted(process.returncode for process in started) == [0, 3, 3, 3, 3], told


@pytest.mark.long
def test_who_stood_still_for_longer_than_a_lease_does_not_go_on(base: Path) -> None:
    """As a machine that was suspended: another one has taken the run."""
    first = held(start(where="there", flock=False))
    first.send_signal(signal.SIGSTOP)
    second = held(start(where="here", flock=False))
    first.send_signal(signal.SIGCONT)
    _, err = first.communicate(timeout=30)
    assert first.returncode == 7 and "this process was suspended and lost the run" in err and f"process {second.pid}" in err
    assert second.poll() is None
    second.kill()
    second.communicate()


@pytest.mark.long
@pytest.mark.parametrize("moved", [-3600, 3600], ids=["forward", "back"])
def test_a_clock_that_is_set_frees_no_run_and_holds_none(base: Path, moved: int) -> None:
    """By an hour: the last renewal seems to be an hour old, or to be in the future."""
    first = held(start(where="there", flock=False))
    first.send_signal(signal.SIGSTOP)
    os.utime(paths.run_dir("one") / LOCK, (time.time() + moved,) * 2)
    second = start(where="here", flock=False, silent=3)
    assert second.stderr
    assert "waiting at most a minute" in second.stderr.readline()
    first.send_signal(signal.SIGCONT)  # it renews
    refused(second, first.pid)
    first.send_signal(signal.SIGKILL)
    first.wait()
    os.utime(paths.run_dir("one") / LOCK, (time.time() + moved,) * 2)
    assert held(start(0, where="here", flock=False)).wait(30) == 0


@pytest.mark.slow
def test_where_flock_reaches_nobody_takes_the_run_of_who_stands_still(base: Path) -> None:
    """As a container that is paused: its lease is over, its lock is not."""
    first = held(start(where="there"))
    first.send_signal(signal.SIGSTOP)
    time.sleep(5)
    refused(start(where="here"), first.pid)
    first.send_signal(signal.SIGCONT)
    first.terminate()
    first.wait()


@pytest.mark.long
@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("unshare"), reason="namespaces are root's")
def test_two_containers_on_one_volume(base: Path) -> None:
    """Each with process ids and a host name of its own; both see process 1."""
    container = ("unshare", "--pid", "--uts", "--fork", "--kill-child", "--mount-proc")
    try:
        subprocess.run([*container, "true"], check=True, capture_output=True)
    except subprocess.CalledProcessError:
        pytest.skip("namespaces cannot be made here")
    first = held(start(prefix=container))
    second = start(prefix=container)
    _, err = second.communicate(timeout=60)
    assert second.returncode == 3 and "is in use: a training run, process 1 on" in err, err
    first.kill()
    first.wait()
    began = time.monotonic()
    while lock.holder_of(paths.run_dir("one")):  # until its process, the child of the one that was killed, has ended
        assert time.monotonic() - began < lock.EXPIRE / 2
        time.sleep(0.1)
    assert held(start(0, prefix=container, expire=60)).wait(60) == 0
    assert time.monotonic() - began < lock.EXPIRE


@pytest.mark.long
@pytest.mark.parametrize("change", ["another kernel", "another way to the file", "an earlier version"])
def test_a_free_lock_alone_shows_nothing(base: Path, change: str) -> None:
    """A holder elsewhere may live although its flock is free here, if it has another kernel, or reaches the file by FUSE or NFS."""
    first = held(start(where="there"))
    first.kill()
    first.wait()
    path = paths.run_dir("one") / LOCK
    signed = json.loads(path.read_text())
    boot, device = lock.Holder.here("a test").place.split()[0], path.stat().st_dev
    assert signed["flocked"] == f"there {device}"
    signed["flocked"] = {"another kernel": f"there {device}", "another way to the file": f"{boot} 12345"}.get(change)
    path.write_text(json.dumps({key: value for key, value in signed.items() if value is not None}))
    assert lock.holder_of(path.parent) is not None
    path.write_text(json.dumps(signed | {"flocked": f"{boot} {device}"}))
    assert lock.holder_of(path.parent) is None


@pytest.mark.long
def test_train_holds_its_run(base: Path, tmp_path: Path) -> None:
    """Also with several processes; the second command changes nothing."""
    text = tiny.sentences(tmp_path / "text.txt")
    for processes in (1, 2):
        command = ["entrypoint.py", *tiny.flags(text, f"p{processes}", num_iterations=3000, save_every=1000, nproc_per_node=processes)]
        first = tiny.start(base, *command)
        tiny.wait_for(first, "base step 1/")
        second = tiny.call(base, *command)
        assert second.returncode == 3 and f"process {first.pid} on {socket.gethostname()}" in second.stderr, second.stderr
        asked = tiny.call(base, "entrypoint.py", "report", f"--run=p{processes}")
        assert "is in use" not in asked.stderr
        first.kill()
        first.communicate()
        began = time.monotonic()
        third = tiny.start(base, *command)
        tiny.wait_for(third, "base step 1/")
        assert time.monotonic() - began < 50
        third.terminate()
        third.communicate(timeout=60)
        assert third.returncode == 75 and not (base / "runs" / f"p{processes}" / LOCK).exists()
