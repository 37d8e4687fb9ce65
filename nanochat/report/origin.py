"""A run's origin for its report: date, command and revision of the program."""

import shlex
import subprocess
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import nanochat
from nanochat.config import FIELDS, build_config, convert, flag_name
from nanochat.errors import NanochatError
from nanochat.paths import read_json_object
from nanochat.planning.rules import resolve
from nanochat.runs.origin import SHAPE, TEXT
from nanochat.runs.report_schema import REPORT

PACKAGE = "nanochat-appliance"
NOT_FLAGS = ("run", "profile", "trial")


def date(run_dir: Path) -> str:
    """The time of the run's newest step, in UTC; "" if it has neither steps nor a config."""
    for name in ("metrics.jsonl", "config.toml"):
        path = run_dir / name
        if path.is_file():
            return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(path.stat().st_mtime))
    return ""


def known_command(run_dir: Path, config: dict[str, Any]) -> str:
    """`command`, from the run's last report if that had the same config: it resolves a config for each field that differs."""
    known = read_json_object(run_dir / REPORT)
    if known.get("config") == config and isinstance(known.get("command"), str) and known["command"]:
        return str(known["command"])
    return command(config)


def command(config: dict[str, Any]) -> str:
    """The command that trains the run of a config.toml again, its profile and a flag for each value that differs; "" if unknown."""
    try:
        run, profile, trial = str(config["run"]), str(config["profile"]), bool(config["trial"])
        values = {name: convert(name, config[name]) for name in FIELDS if name in config}
        plain = build_config(profile, trial)
        if values.get("from_run"):  # its shape is the source's, and without pretraining its text too
            shortened = values.get("shape")  # an imported model's context may be
            shape = [name for name in SHAPE if name != "max_seq_len" or not shortened]
            skipped = [*shape, *(() if values["num_iterations"] else TEXT)]
            values = {name: value for name, value in values.items() if name not in skipped}
        given = {name: value for name, value in values.items() if name not in NOT_FLAGS and value != getattr(plain, name)}
        if run != plain.run:
            given["run"] = run
        for name in [name for name in given if name != "run"]:
            fewer = {other: value for other, value in given.items() if other != name}
            if _follow(values, profile, trial, fewer):
                given = fewer  # the value follows from the others, or is chosen automatically
    except (KeyError, NanochatError, AssertionError, TypeError, ValueError):
        return ""
    words = ["train", "--profile", profile, *(["--trial"] if trial else [])]
    if (given.get("run"), profile, trial) == ("quickstart", "cpu", False):
        words = ["quickstart"]
        del given["run"]
    return shlex.join(["nanochat", *words, *(f"--{flag_name(name)}={value}" for name, value in given.items() if value != "")])


def _follow(values: dict[str, Any], profile: str, trial: bool, given: dict[str, Any]) -> bool:
    """Whether all `values` follow from those `given` and the profile's. Not if these are impossible without the others."""
    try:
        resolved = resolve(build_config(profile, trial, given))
    except NanochatError:
        return False
    return all(getattr(resolved, field) == value for field, value in values.items())


def revision(run_dir: Path) -> str:
    """The program's version, with the commit in a Git checkout, from the run's first report."""
    known = read_json_object(run_dir / REPORT).get("revision")
    return known if isinstance(known, str) and known else _revision()


def _revision() -> str:
    try:
        version = metadata.version(PACKAGE)
    except metadata.PackageNotFoundError:
        version = ""
    root = Path(nanochat.__file__).resolve().parent.parent
    commit = ""
    if (root / ".git").exists():
        try:
            asked = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
            commit = subprocess.run(asked, capture_output=True, text=True, timeout=5, check=True).stdout.strip()
        except (OSError, subprocess.SubprocessError):
            commit = ""
    return " ".join(part for part in (version, f"({commit})" if commit else "") if part)
