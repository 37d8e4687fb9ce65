"""The help: grouped, whole at 80 and 40 columns, with a profile's values; version, completion, and how much is printed."""

import os
import re
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer

from nanochat import console
from nanochat.cli import app as cli
from nanochat.cli.help import GLOBAL, PANELS, first_line, sections
from nanochat.config import FIELDS, GROUPS, PROFILE_NAMES, flag_name, load_profile, shown
from tests.tiny import ROOT, call, flags, sentences

ROOT_COMMAND = typer.main.get_command(cli.app)


def every_command(command: Any = ROOT_COMMAND, path: tuple[str, ...] = ()) -> dict[tuple[str, ...], Any]:
    """Every command and group by the words that name it."""
    found = {path: command}
    for name, child in getattr(command, "commands", {}).items():
        found |= every_command(child, (*path, name))
    return found


COMMANDS = every_command()


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Any:
    """Runs a command line in this process: exit code, stdout, stderr."""
    monkeypatch.setattr(console, "_level", console.NORMAL)
    monkeypatch.delenv("NANOCHAT_DEBUG", raising=False)
    console.command.cache_clear()
    monkeypatch.setenv("NANOCHAT_COMMAND", "nanochat")

    def run(*arguments: str, columns: int = 80) -> tuple[int, str, str]:
        monkeypatch.setenv("COLUMNS", str(columns))
        monkeypatch.setattr(sys, "argv", ["nanochat", *arguments])
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return (int(ended.value.code or 0), *capfd.readouterr())

    yield run
    console.command.cache_clear()


# ---- commands ----------------------------------------------------------------------------------------------------------------------------


def test_without_a_command_the_help_is_grouped(run: Any) -> None:
    code, out, err = run()
    assert (code, err) == (0, "") and run("--help") == (0, out, "")
    titles = re.findall(r"^(\w[\w ]*):$", out, re.MULTILINE)
    assert titles == [*PANELS, GLOBAL]
    for path, command in COMMANDS.items():
        if len(path) == 1:
            assert re.search(rf"^  {path[0]} +{re.escape(first_line(command))}$", out, re.MULTILINE), path
    assert run("submit")[0] == 0


def test_first_lines_are_short_and_imperative() -> None:
    for path, command in COMMANDS.items():
        line = first_line(command)
        assert path == () or (0 < len(line) <= 50 and line[0].isupper() and line[-1] != "."), (path, line)
        verb = line.split()[0]
        assert not verb.endswith(("s", "ed", "ing")), f"{path}: {verb} is no imperative"


@pytest.mark.parametrize("columns", [80, 40])
@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_help_fits_the_terminal(path: tuple[str, ...], columns: int, run: Any) -> None:
    code, out, err = run(*path, "--help", columns=columns)
    assert (code, err) == (0, "")
    wide = [line for line in out.splitlines() if len(line) > columns and len(line.split()) > 2]
    assert wide == [] and "..." not in out.replace("RUN...", "")


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_options_have_a_metavar_and_a_phrase(path: tuple[str, ...]) -> None:
    command = COMMANDS[path]
    for section in sections(command, typer.Context(command, info_name="nanochat")):
        for entry in section.entries:
            assert "TEXT" not in entry.names or entry.key == "prompt", entry
            assert entry.help and (entry.help[0].isupper() or entry.help.split(",")[0].islower()) and not entry.help.endswith("."), entry


# ---- the config's options ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("trial", [False, True])
@pytest.mark.parametrize("profile", PROFILE_NAMES)
def test_train_shows_the_values_of_the_profile(profile: str, trial: bool, run: Any) -> None:
    _, out, _ = run("train", f"--profile={profile}", *(["--trial"] if trial else []), "--help", columns=200)
    values = load_profile(profile, trial)
    assert f"profile {profile}{', trial' if trial else ''}" in out
    for name, field in FIELDS.items():
        if name not in ("profile", "trial", "shape"):
            default = shown(name, values.get(name, field.default))
            entry = re.search(rf"^  --{flag_name(name)}( \S+)?(\s+.*?)(?=^  --|^\w|\Z)", out, re.MULTILINE | re.DOTALL)
            assert entry and (entry[1] or field.type is bool), name
            text = " ".join(entry[2].split())
            assert text.startswith(field.metadata["help"]) and (text.endswith(f"[default: {default}]") or not default), text
    assert [title for title in GROUPS if f"\n{title} options:\n" in out] == list(GROUPS)


def test_help_after_a_profile_and_before_it(run: Any) -> None:
    assert run("train", "--help", "--profile", "4090") == run("train", "--profile=rtx4090", "-h")
    assert run("train", "--profile", "rtx4051", "--help")[0] == 2


def test_automatic_profiles_are_those_of_the_driver(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without importing torch."""
    from nanochat.hardware.nvml import Driver, GPUStatus

    for gpus, profile in ((), "cpu"), ((6,), "rtx4050"), ((24,), "rtx4090"), ((80,) * 8, "h100x8"):
        found = tuple(GPUStatus("a GPU", memory * 2**30, 0, ()) for memory in gpus)
        monkeypatch.setattr("nanochat.cli.help.read_driver", lambda found=found: Driver("580", found))
        assert f"profile {profile}" in run("train", "--help")[1]
    turing = Driver("580", (GPUStatus("Tesla T4", 15 * 2**30, 0, ()),) * 2)
    monkeypatch.setattr("nanochat.cli.help.read_driver", lambda: turing)
    assert "profile t4" in run("train", "--help")[1]
    monkeypatch.setattr("nanochat.cli.help.read_driver", lambda: None)
    assert "profile cpu" in run("train", "--help")[1]


# ---- version, completion, levels ---------------------------------------------------------------------------------------------------------


def test_version(run: Any) -> None:
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    number = re.search(r'^version = "(.*)"', project, re.MULTILINE)
    assert number and run("--version") == run("-V") == (0, f"nanochat {number[1]}\n", "")


def completed(words: str, **more: str) -> list[str]:
    """What bash is told to complete the last of the words with."""
    asked = {"_NANOCHAT_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(len(words.split(" ")) - 1)}
    command = [sys.executable, "-m", "nanochat"]
    return subprocess.run(
        command, env=os.environ | asked | more, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    ).stdout.split()


@pytest.mark.long
def test_completion(tmp_path: Path) -> None:
    (tmp_path / "runs" / "mine").mkdir(parents=True)
    assert completed("nanochat tr") == ["train"]
    assert completed("nanochat submit run") == ["runpod"]
    assert completed("nanochat train --profile rtx") == ["rtx4050", "rtx4090"]
    assert completed("nanochat train --device_b") == ["--device_batch_size"]
    assert completed("nanochat chat --temp") == ["--temperature"]
    assert completed("nanochat chat --run m", NANOCHAT_BASE_DIR=str(tmp_path)) == ["mine"]


@pytest.mark.long
def test_bash_completes(tmp_path: Path) -> None:
    """The script that --show-completion prints, in a bash that asks for it as readline does."""
    (tmp_path / "nanochat").write_text(f'#!/bin/sh\nexec {sys.executable} -m nanochat "$@"\n')
    (tmp_path / "nanochat").chmod(0o755)
    script = """
eval "$(_NANOCHAT_COMPLETE=source_bash nanochat)"
COMP_WORDS=(nanochat quick) COMP_CWORD=1
$(complete -p nanochat | sed 's/.*-F \\([^ ]*\\) .*/\\1/') nanochat quick nanochat
echo "${COMPREPLY[@]}"
"""
    path = {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(["bash", "-c", script], env=os.environ | path, capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout.split() == ["quickstart"], done.stderr


@pytest.mark.long
def test_quiet_and_verbose(base: Path, tmp_path: Path) -> None:
    """Wherever on the line they are; results are on stdout."""
    options = flags(sentences(tmp_path / "text.txt"))[1:]
    verbose = call(base, "-m", "nanochat", "-v", "tokenizer", *options)
    quiet = call(base, "-m", "nanochat", "tokenizer", *options, "--quiet")
    assert verbose.returncode == quiet.returncode == 0 and verbose.stdout == quiet.stdout != ""
    assert "training a tokenizer" in verbose.stderr and quiet.stderr == ""
    wrong = call(base, "-m", "nanochat", "--quiet", "tokenizer", "--vocab_size=1")
    assert wrong.returncode == 2 and "error: --vocab_size=1" in wrong.stderr and "hint:" in wrong.stderr


def test_the_guide_s_command_has_help(base: Path) -> None:
    done = call(base, "-m", "scripts.base_train", "--help")
    assert done.returncode == 0 and done.stderr == "" and "Usage: python -m scripts.base_train [OPTIONS]" in done.stdout
    assert all(f"--{flag_name(name)}" in done.stdout for name in FIELDS if name not in ("profile", "trial", "shape"))


def test_quickstart_says_that_it_does_not_use_the_gpu(run: Any, monkeypatch: pytest.MonkeyPatch, base: Path) -> None:
    from nanochat.hardware.nvml import Driver, GPUStatus

    monkeypatch.setattr("nanochat.pipeline.train.train", lambda *given, **more: 3)
    assert run("quickstart")[2] == ""
    monkeypatch.setattr("nanochat.cli.train.read_driver", lambda: Driver("580", (GPUStatus("RTX 4050", 6 * 2**30, 0, ()),)))
    assert run("quickstart")[2] == "quickstart trains on the CPU and does not use the RTX 4050; `nanochat train` does\n"
    assert run("quickstart", "--device=cuda")[2] == ""


def test_a_plan_for_a_gpu_takes_the_profile_for_it(run: Any, base: Path) -> None:
    for card, profile, name in (
        ("5090", "rtx4090", "NVIDIA GeForce RTX 5090"),
        ("4060", "rtx4050", "NVIDIA GeForce RTX 4060"),
        ("t4", "t4", "Tesla T4"),
    ):
        code, out, err = run("plan", "--card", card)
        assert code == 0 and f"{profile}, on {name}" in out and f"profile = {profile}" in err


@pytest.mark.long
@pytest.mark.parametrize("line", ["--help", "train --profile rtx4090 --help", "submit k8s --help"])
def test_help_is_quick(line: str) -> None:
    """Half a second of processor time at most: other work on the machine does not count."""

    def seconds() -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "entrypoint.py", *line.split()], cwd=ROOT, capture_output=True, timeout=60, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime

    assert min(seconds() for _ in range(3)) < 0.5
