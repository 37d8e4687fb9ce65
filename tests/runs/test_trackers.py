"""Curves handed on live: whole and without a step twice after any kill; a tracker that fails or hangs never ends a training."""

import json
import re
import sys
import threading
import time
import types
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from nanochat.config import TRACKERS, Config
from nanochat.distributed.ranks import Ranks
from nanochat.errors import UsageError
from nanochat.pipeline import train as run
from nanochat.runs import trackers
from nanochat.runs.metrics import Metrics
from tests import tiny

ALONE = Ranks(0, 0, 1, torch.device("cpu"))
KEY = "a-key-that-nobody-may-see"


class Package:
    """A stand-in for wandb and for trackio: it keeps what it is told. `fail` is called as its init."""

    def __init__(self, fail: Any = None):
        self.fail, self.inits, self.logged, self.ended, self.starting = fail, list[dict[str, Any]](), list[tuple[int, str, float]](), 0, 0
        self.in_use = set[str]()  # as wandb: a curve whose init has failed, until a teardown

    def module(self) -> types.ModuleType:
        made = types.ModuleType("a tracker")
        made.Settings = dict  # type: ignore[attr-defined]
        made.init = self.init  # type: ignore[attr-defined]
        made.teardown = self.in_use.clear  # type: ignore[attr-defined]
        return made

    def init(self, project: str, **options: Any) -> Any:
        self.inits.append(options)
        curve = {options["id"]} if "id" in options else set()  # trackio is given none
        if curve & self.in_use:
            raise RuntimeError(f"run ID {options['id']} is in use")
        if self.fail:
            self.in_use |= curve
            self.fail(options)
            self.in_use -= curve
        return types.SimpleNamespace(
            log=self.log, finish=self.finish, url="the-address", dir="/somewhere/files", starting_step=self.starting
        )

    def log(self, values: dict[str, float], step: int) -> None:
        self.logged += [(step, name, value) for name, value in values.items()]

    def finish(self) -> None:
        self.ended += 1


@pytest.fixture
def package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Package:
    """In wandb's and in trackio's place; there is no key, and no file that may hold one."""
    made = Package()
    for name in ("wandb", "trackio"):
        monkeypatch.setitem(sys.modules, name, made.module())
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("HOME", str(tmp_path))
    return made


def config(log_to: str, **changes: Any) -> Config:
    return Config(run="one", log_to=log_to, data="/my/texts", **changes)


def write(base: Path, log_to: str, steps: range, stage: str = "base", bpb: int = 0) -> None:
    """A process that begins after steps.start - 1 steps of a stage, and evaluates after `bpb`."""
    with trackers.following(config(log_to), ALONE) as follow:
        metrics = Metrics(base / "runs" / "one" / "metrics.jsonl", stage, steps.start - 1)
        follow(metrics)
        for step in steps:
            metrics.write({"stage": stage, "step": step, "loss": 1 / step, "lr": 1.0})
            if step == bpb:
                metrics.amend(bpb=0.5)
        metrics.close()


def test_off_unless_it_is_asked_for(base: Path) -> None:
    assert Config().log_to == "none" and {*TRACKERS} == {"none", *trackers.TRACKERS}
    write(base, "none", range(1, 4))
    assert [path.name for path in (base / "runs" / "one").iterdir()] == ["metrics.jsonl"]


@pytest.mark.parametrize("name", trackers.TRACKERS)
def test_a_missing_package_is_said_before_anything_begins(name: str, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard" if name == "tensorboard" else name, None)
    with pytest.raises(UsageError, match=f"--log_to {name} needs the Python package {name}") as raised:
        run.train(tiny.config(tiny.sentences(tmp_path / "text.txt"), log_to=name))
    assert raised.value.exit_code == 2 and re.search(rf"pip install .*{name}$", raised.value.hint)
    assert not (base / "runs").exists()


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_a_resumed_run_goes_on_with_its_curve(name: str, base: Path, package: Package) -> None:
    write(base, name, range(1, 8), bpb=4)
    write(base, name, range(5, 11))  # it was killed after step 7, and saved after step 4
    write(base, name, range(1, 3), stage="sft")
    assert [(step, name) for step, name, _ in package.logged if "loss" in name] == [
        *((step, "base/loss") for step in range(1, 11)),
        *((step, "sft/loss") for step in (11, 12)),
    ]
    assert [entry for entry in package.logged if "bpb" in entry[1]] == [(4, "base/bpb", 0.5)]
    assert package.ended == 3 and all(options["name"] == "one" for options in package.inits)
    if name == "wandb":
        assert len({options["id"] for options in package.inits}) == 1
    else:
        assert [options["resume"] for options in package.inits] == ["never", "allow", "allow"]


def test_an_evaluation_that_a_kill_put_off_reaches_the_curve(base: Path, package: Package) -> None:
    write(base, "trackio", range(1, 5))
    with trackers.following(config("trackio"), ALONE) as follow:
        metrics = Metrics(base / "runs" / "one" / "metrics.jsonl", "base", 4)
        follow(metrics)
        metrics.amend(bpb=0.5)
        metrics.close()
    assert [entry for entry in package.logged if entry[0] == 4] == [(4, "base/loss", 0.25), (4, "base/lr", 1.0), (4, "base/bpb", 0.5)]


def test_a_tracker_that_comes_later_gets_what_was_before(base: Path, package: Package) -> None:
    write(base, "none", range(1, 5))
    write(base, "trackio", range(5, 7))
    assert [step for step, name, _ in package.logged if name == "base/loss"] == [1, 2, 3, 4, 5, 6]


def test_wandb_is_online_where_there_is_a_key(
    base: Path, package: Package, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write(base, "wandb", range(1, 3))
    assert package.inits[-1]["mode"] == "offline" and "`wandb sync /somewhere`" in capsys.readouterr().err
    netrc = tmp_path / ".netrc"
    netrc.write_text(f"machine api.wandb.ai login user password {KEY}\n")
    netrc.chmod(0o600)
    package.starting = 3
    write(base, "wandb", range(2, 4))
    assert (package.inits[-1]["mode"], package.inits[-1]["resume"]) == ("online", "allow")
    assert [step for step, name, _ in package.logged if name == "base/loss"] == [1, 2, 3]
    monkeypatch.setenv("WANDB_MODE", "offline")
    write(base, "wandb", range(4, 5))
    assert package.inits[-1]["mode"] == "offline" and KEY not in capsys.readouterr().err


def test_what_names_this_machine_stays_here(base: Path, package: Package) -> None:
    write(base, "wandb", range(1, 2))
    told = package.inits[-1]["config"]
    assert told["depth"] == 20 and "/my/texts" not in str(told)


def test_wandb_out_of_reach_is_written_offline(
    base: Path, package: Package, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def unreachable(options: dict[str, Any]) -> None:
        if options["mode"] == "online":
            raise ConnectionError(f"refused\nfor {KEY}")

    package.fail = unreachable
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    write(base, "wandb", range(1, 3))
    err = capsys.readouterr().err
    assert [options["mode"] for options in package.inits] == ["online", "offline"] and len(package.logged) == 4
    assert "warning: Weights & Biases cannot be reached (refused for ***)" in err and KEY not in err


@pytest.mark.long
def test_a_tracker_that_fails_or_hangs_ends_no_training(
    base: Path, package: Package, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(options: dict[str, Any]) -> None:
        raise RuntimeError("the database is locked")

    text = tiny.sentences(tmp_path / "text.txt")
    package.fail = fail
    assert run.train(tiny.config(text, run="failed", log_to="trackio")) == 0
    assert "warning: trackio failed (the database is locked); training continues" in capsys.readouterr().err
    monkeypatch.setattr(trackers, "LAST_SECONDS", 0.5)
    package.fail = lambda options: threading.Event().wait()
    began = time.monotonic()
    assert run.train(tiny.config(text, run="hung", log_to="trackio")) == 0
    assert "warning: trackio does not answer" in capsys.readouterr().err and time.monotonic() - began < 30
    assert run.train(tiny.config(text, run="plain")) == 0
    assert tiny.losses(base, "failed") == tiny.losses(base, "hung") == tiny.losses(base, "plain")


@pytest.mark.long
def test_tensorboards_event_files_after_a_kill(base: Path, tmp_path: Path) -> None:
    """Read back event by event: each step once, the values those of metrics.jsonl, over both stages."""
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    options = {"num_iterations": 200, "sft_iterations": 5, "chat_data": tiny.chats(tmp_path / "chats.jsonl"), "save_every": 20}
    command = ["entrypoint.py", *tiny.flags(tiny.sentences(tmp_path / "text.txt"), **options, eval_every=50, log_to="tensorboard")]
    process = tiny.start(base, *command)
    tiny.wait_for(process, "base step 1/")
    folder = base / "runs" / "tiny" / "tensorboard"
    while not any(path.stat().st_size > 1000 for path in folder.glob("events*")):
        assert process.poll() is None
        time.sleep(0.05)
    process.kill()
    process.communicate()
    killed = len(tiny.losses(base))
    assert 1 <= killed < 200, "it ended before it could be killed"
    done = tiny.call(base, *command, timeout=300)
    assert done.returncode == 0 and f"tensorboard --logdir {base / 'runs'}" in done.stderr, done.stderr
    lines = [json.loads(line) for line in (base / "runs" / "tiny" / "metrics.jsonl").read_text().splitlines()]
    expected = {
        (number, f"{line['stage']}/{name}"): value
        for number, line in enumerate(lines, 1)
        for name, value in line.items()
        if name not in ("stage", "step")
    }
    found = [
        (event.step, value.tag, value.tensor.float_val[0])
        for path in folder.glob("events*")
        for event in EventFileLoader(str(path)).Load()
        for value in event.summary.value
    ]
    assert max(Counter(entry[:2] for entry in found).values()) == 1
    assert {entry[:2]: entry[2] for entry in found} == pytest.approx(expected, rel=1e-6)
    assert {name for _, name in expected} >= {"base/loss", "base/bpb", "sft/loss", "base/lr"} and len(lines) == 205
