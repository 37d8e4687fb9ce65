"""A run's report from its directory: report.json for programs, report.md for a terminal, report.html for a browser."""

import dataclasses
import json
import math
import os
import platform
import statistics
import tomllib
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from nanochat.config import Config, convert
from nanochat.console import printable
from nanochat.data.shards import read_manifest
from nanochat.errors import DataError, NanochatError
from nanochat.evaluation.results import SUMMARY, read_results
from nanochat.hardware.machine import this_machine
from nanochat.model import scaling
from nanochat.paths import atomic_write, atomic_write_json, dataset_dir, disk_error, read_json_object
from nanochat.redaction import redact
from nanochat.report import origin
from nanochat.report.html import page
from nanochat.report.markdown import markdown
from nanochat.report.planned import compare_with_plan, why
from nanochat.runs.metrics import EVALUATED, SAMPLES, STAGES, read_metrics
from nanochat.runs.record import parse_record
from nanochat.runs.report_schema import REPORT, AncestorReport, Curve, Report, StageReport, StepSample

SAMPLED = 12  # samples by step in the report
PLAN = "plan.json"  # in the run's directory: the plan before the first step
REWARD_STEPS = 10  # first and last steps of reinforcement learning for the mean rewards
CURVE_POINTS = 300  # points of each stage's loss curve; longer runs are averaged


def write_report(run_dir: Path) -> Report:
    """Read config.toml, metrics.jsonl and the results in `run_dir` and write report.md, .html and .json; returns the JSON's value.

    Missing or damaged parts are left out, so that running and broken runs have reports too. The JSON is written last: if it exists, so do
    the others. Raises DataError if there is no such directory, PreflightError if it cannot be written.
    """
    if not run_dir.is_dir():
        raise DataError(f"there is no run in {run_dir}", "set --run to an existing run, or start one with `nanochat train`")
    report = collect(run_dir)
    try:
        for name, text in _texts(report).items():
            atomic_write(run_dir / name, text)
        atomic_write_json(run_dir / REPORT, report)
    except OSError as error:
        raise disk_error(error, "writing the report") from error
    return report


def has_report(run_dir: Path) -> bool:
    """Whether the report of a finished run is complete: no file is missing, damaged, or from another version."""
    try:
        report = json.loads((run_dir / REPORT).read_text(encoding="utf-8"))
        return report["finished"] and all((run_dir / name).read_text(encoding="utf-8") == text for name, text in _texts(report).items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # any damage
        return False


def _texts(report: Report) -> dict[str, str]:
    """The report's Markdown and HTML by file name, with control characters removed, because a terminal may show them."""
    return {"report.md": printable(markdown(report)), "report.html": printable(page(report))}


def collect(run_dir: Path) -> Report:
    """The report of the run in `run_dir`, without writing it."""
    config = _read_config(run_dir / "config.toml")
    lines = read_metrics(run_dir / "metrics.jsonl")
    results = read_results(run_dir)
    summary = results.pop(SUMMARY, {})
    last = lines[-1] if lines else {}
    by_stage = {stage: own for stage in STAGES if (own := [line for line in lines if line["stage"] == stage])}
    shape = _shape(config)
    tokens = summary.get("tokens", last.get("tokens", 0))
    measured = [line["bpb"] for line in by_stage.get("base", []) if "bpb" in line]
    return {
        "run": run_dir.name,
        "profile": config.get("profile", ""),
        "trial": bool(config.get("trial", False)),
        "finished": bool(summary),
        "date": origin.date(run_dir),
        "command": origin.known_command(run_dir, config),
        "revision": origin.revision(run_dir),
        "scores": summary.get("scores"),
        "bpb": summary.get("bpb", measured[-1] if measured else None),
        "seconds": summary.get("seconds", last.get("elapsed_seconds", 0.0)),
        "flops": summary.get("flops", float(scaling.flops_per_token(shape) * tokens) if shape else None),
        "tokens": tokens,
        "parameters": summary.get("parameters", scaling.count_parameters(shape)["total"] if shape else None),
        "stages": {stage: _stage(own) for stage, own in by_stage.items()},
        "curve": {stage: _curve(own) for stage, own in by_stage.items() if EVALUATED[stage] == "bpb"},
        "tasks": results,
        "plan": (plan := compare_with_plan(read_json_object(run_dir / PLAN), lines, summary)),
        "why": why(plan),
        "samples": summary.get("samples", []),
        "samples_by_step": _samples_by_step(run_dir / SAMPLES),
        "descent": _descent(run_dir / "config.toml"),
        "data": _data(run_dir / "config.toml"),
        "machine": _machine(str(config.get("device", "auto"))),
        "config": config,
    }


def _samples_by_step(path: Path) -> list[StepSample]:
    """The last samples during training, oldest first."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").split("\n")  # not at U+2028
    except OSError:
        return []
    found: list[StepSample] = []
    for line in lines:
        try:
            entry = json.loads(line)
            found.append(StepSample(stage=entry["stage"], step=entry["step"], prompt=entry["prompt"], text=entry["text"]))
        except (ValueError, KeyError, TypeError):
            continue
    return found[-SAMPLED:]


def _data(path: Path) -> dict[str, str]:
    """The run's data with its licence and all hashes that reproducing it needs; {} if the record cannot be read."""
    try:
        frozen = tomllib.loads(path.read_text(encoding="utf-8"))["frozen"]
        dataset = read_manifest(dataset_dir(frozen["dataset"]))
    except (OSError, ValueError, KeyError, TypeError, NanochatError):
        return {}
    known = {shard.path.name: shard for shard in (*dataset.training, dataset.validation)}
    names = [*frozen["shards"], dataset.validation.path.name]
    hashes = {name: known[name].content for name in names if name in known}
    facts = {"source": dataset.source, "licence": dataset.licence, "tokenizer": str(frozen["tokenizer"])}
    return facts | {"validation": dataset.validation.path.name} | hashes


def _descent(path: Path) -> list[AncestorReport]:
    """The steps of other runs that the run descends from, as its record has them; [] where it cannot be read."""
    try:
        record = parse_record(path.read_bytes(), path)
    except (OSError, NanochatError):
        return []
    return [AncestorReport(**dataclasses.asdict(ancestor)) for ancestor in record.descent]  # type: ignore[typeddict-item]


def _read_config(path: Path) -> dict[str, Any]:
    """The values of the run's config; {} if they cannot be read."""
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    if "mirror" in values:  # an older version stored its credentials
        values["mirror"] = redact(str(values["mirror"]))
    return {name: value for name, value in values.items() if name != "frozen"}


def _shape(config: dict[str, Any]) -> scaling.GPTConfig | None:
    """The model's shape, if the config has it."""
    names = ("depth", "aspect_ratio", "head_dim", "max_seq_len", "window_pattern", "vocab_size", "architecture")
    try:
        return scaling.gpt_config(Config(**{name: convert(name, config[name]) for name in names}))
    except (KeyError, AssertionError, NanochatError):
        return None


def _stage(lines: Sequence[dict[str, Any]]) -> StageReport:
    """One stage's report; `lines` are its metrics and not empty."""
    speeds = [line["tokens_per_second"] for line in lines if "tokens_per_second" in line]
    memory = [line["peak_memory_bytes"] for line in lines if "peak_memory_bytes" in line]
    measured = [line["bpb"] for line in lines if "bpb" in line]
    rewards = [line["reward"] for line in lines if "reward" in line]
    first, last = (round(statistics.fmean(few), 4) if few else None for few in (rewards[:REWARD_STEPS], rewards[-REWARD_STEPS:]))
    passed = [{key: value for key, value in line.items() if key.startswith("pass@")} for line in lines if "pass@1" in line]
    return {
        "steps": lines[-1]["step"],
        "first_reward": first,
        "last_reward": last,
        "passed": passed[-1] if passed else None,
        "first_loss": lines[0]["loss"],
        "last_loss": lines[-1]["loss"],
        "bpb": measured[-1] if measured else None,
        "tokens_per_second": statistics.median(speeds) if speeds else None,
        "peak_memory_bytes": max(memory, default=None),
    }


def _curve(lines: Sequence[dict[str, Any]]) -> Curve:
    """One stage's [step, loss] points, averaged to CURVE_POINTS, and its [step, bits per byte] points."""
    width = math.ceil(len(lines) / CURVE_POINTS)
    groups = [lines[start : start + width] for start in range(0, len(lines), width)]
    return {
        "loss": [[group[-1]["step"], round(statistics.fmean(line["loss"] for line in group), 5)] for group in groups],
        "bpb": [[line["step"], round(line["bpb"], 5)] for line in lines if "bpb" in line],
    }


def _machine(device: str) -> dict[str, Any]:
    """This machine, and the versions of Python and libraries."""
    versions = {}
    for package in ("torch", "numpy"):
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return {
        "device": this_machine(device).name,
        "system": f"{platform.system()} {platform.machine()}",
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        **versions,
    }
