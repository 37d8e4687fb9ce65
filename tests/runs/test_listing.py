"""The list of runs, for the terminal and the page, and removing one."""

import json
import os
import pty
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from nanochat import paths
from nanochat.errors import DataError, PreflightError, UsageError
from nanochat.runs import lock
from nanochat.runs.heartbeat import HEARTBEAT
from nanochat.runs.listing import list_runs, remove_run, summary
from nanochat.runs.record import Record
from tests.tiny import ROOT, call, config, environment


def put(name: str, *steps: tuple[str, int], when: float = 1.8e9, mirror: str = "", **report: Any) -> Path:
    """A run with checkpoints of these steps, and with a report where values of it are given."""
    folder = paths.run_dir(name)
    folder.mkdir(parents=True)
    (folder / "config.toml").write_text(f'profile = "cpu"\ntrial = false\nmirror = "{mirror}"\n')
    for stage, step in steps:
        (folder / stage / f"step_{step:06d}").mkdir(parents=True)
        (folder / stage / f"step_{step:06d}" / "manifest.json").write_text("{}")
    line = {"stage": "base", "step": 9, "loss": 1.0, "tokens": 1024, "elapsed_seconds": 7.5}
    (folder / "metrics.jsonl").write_text(json.dumps(line) + '\n{"stage": "base", "st')
    os.utime(folder / "metrics.jsonl", (when, when))
    if report:
        (folder / "report.json").write_text(json.dumps(report))
    return folder


def test_a_summary(base: Path) -> None:
    assert list_runs() == []
    folder = put("one", ("base", 9), ("base", 10), ("sft", 3), finished=True, bpb=1.25, parameters=7, scores={"trained": 0.5}, seconds=60.0)
    assert summary(folder) == {
        "name": "one", "profile": "cpu", "trial": False, "from_run": "", "stage": "sft", "step": 3, "finished": True, "running": False,
        "bpb": 1.25, "score": 0.5, "parameters": 7, "tokens": 1024, "seconds": 60.0, "date": "2027-01-15T08:00:00Z", "mirror": False,
        "size_bytes": sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()),
        "checkpoints": [{"stage": "sft", "step": 3}, {"stage": "base", "step": 10}, {"stage": "base", "step": 9}],
    }  # fmt: skip
    (folder / HEARTBEAT).write_text(json.dumps({"time": time.time()}))
    put("two", when=1.9e9)
    (paths.runs_dir() / ".tmp-x").mkdir()
    (paths.runs_dir() / "no run").mkdir()
    assert [(one["name"], one["running"], one["seconds"]) for one in list_runs()] == [("two", False, 7.5), ("one", True, 60.0)]


def test_where_a_run_began(base: Path) -> None:
    folder = put("two", ("sft", 1))
    (folder / "config.toml").write_text('profile = "cpu"\nfrom_run = "one:base:9"\n')
    (one,) = list_runs()
    assert one["from_run"] == "one:base:9"


@pytest.mark.parametrize(
    "text", ["", "[" * 100_000, "\x00", '{"finished": 1, "bpb": "x", "scores": 3}', '{"parameters": 1e999, "bpb": NaN}', "[1]"]
)
def test_whatever_the_files_hold(base: Path, text: str) -> None:
    folder = put("odd", ("base", 1))
    for name in ("report.json", "config.toml", "metrics.jsonl", HEARTBEAT):
        (folder / name).write_text(text)
    found = list_runs()
    assert [one["name"] for one in found] == ["odd"]
    json.dumps(found, allow_nan=False)


def test_five_hundred_runs_are_listed_quickly(base: Path) -> None:
    for number in range(500):
        put(f"run {number}", ("base", 10), ("sft", 5), finished=True, bpb=1.0)
    list_runs()
    began = time.process_time()
    assert len(list_runs()) == 500
    assert time.process_time() - began < 2


def test_a_list_needs_no_torch(base: Path) -> None:
    """Importing it takes seconds. The record is a real one, whose other settings are not parsed."""
    folder = put("real", ("base", 1), finished=True)
    Record(config(base / "text.txt", "real", from_run="a:sft:5", mirror="s3://there"), "set", ("one", "two"), "tokens").write()
    lines = ["import sys", "from nanochat.cli.app import main", "try: main()", "finally: assert 'torch' not in sys.modules"]
    done = call(base, "-c", "\n".join(lines), "runs")
    assert done.returncode == 0 and "real (from a:sft:5)" in done.stdout, done.stderr
    found = summary(folder)
    assert found and (found["profile"], found["trial"], found["mirror"]) == ("cpu", False, True)


def test_removing(base: Path) -> None:
    put("gone", ("base", 1), mirror="s3://bucket")
    put("kept", ("base", 1))
    assert remove_run("gone") > 0
    assert [one["name"] for one in list_runs()] == ["kept"] and os.listdir(paths.runs_dir()) == ["kept"]
    with pytest.raises(DataError, match="no run"):
        remove_run("gone")
    with lock.hold("kept", "a training run"), pytest.raises(PreflightError, match="in use"):
        remove_run("kept")
    assert list_runs()
    put("far", mirror="s3://bucket")
    with pytest.raises(UsageError, match="only on its mirror"):
        remove_run("far")
    outside = base / "outside"
    outside.mkdir()
    (paths.runs_dir() / "link").symlink_to(outside)
    for name in ("link", "../outside", "..", "", "a/b", ".hidden"):
        with pytest.raises((UsageError, DataError)):
            remove_run(name)
    assert outside.is_dir()


def test_the_commands(base: Path) -> None:
    base.mkdir()
    assert "there are no runs yet" in call(base, "entrypoint.py", "runs").stderr
    put("第一", ("sft", 5), finished=True, bpb=1.25, scores={"trained": 0.5})
    put("second", when=1.9e9)
    lines = call(base, "entrypoint.py", "runs").stdout.splitlines()
    assert re.match(r"run +stage +step +bpb +score", lines[0]) and len(lines) == 3
    assert re.match(r"second \(not finished\) +- +- +- ", lines[1]) and re.match(r"第一 +sft +5 +1\.250 +50\.0%", lines[2])
    printed = json.loads(call(base, "entrypoint.py", "runs", "--json").stdout)
    assert [one["name"] for one in printed["runs"]] == ["second", "第一"] and printed["runs"][1]["score"] == 0.5
    shown = call(base, "entrypoint.py", "runs", "show", "第一")
    assert "finished" in shown.stdout and "sft 5" in shown.stdout
    assert json.loads(call(base, "entrypoint.py", "runs", "show", "第一", "--json").stdout)["step"] == 5
    missing = call(base, "entrypoint.py", "runs", "show", "third")
    assert missing.returncode == 4 and "no run 'third'" in missing.stderr
    refused = call(base, "entrypoint.py", "runs", "rm", "second")
    assert refused.returncode == 2 and "--yes" in refused.stderr and len(list_runs()) == 2
    assert call(base, "entrypoint.py", "runs", "rm", "second", "--yes").returncode == 0
    assert [one["name"] for one in list_runs()] == ["第一"]


@pytest.mark.parametrize(("answer", "left"), [("\n", 1), ("y\n", 0)])
def test_removing_asks(base: Path, answer: str, left: int) -> None:
    put("asked", ("base", 1))
    leader, follower = pty.openpty()
    command = [sys.executable, "entrypoint.py", "runs", "rm", "asked"]
    process = subprocess.Popen(command, cwd=ROOT, env=environment(base), stdin=follower, stdout=follower, stderr=follower)
    shown = b""
    while b"[y/N]" not in shown:
        shown += os.read(leader, 1000)
    os.write(leader, answer.encode())
    assert process.wait(60) == 0 and len(list_runs()) == left
    os.close(follower)
    os.close(leader)
