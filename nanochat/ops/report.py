"""A run's report, as report.json for programs, report.md for a terminal or a repository, report.html for a browser.

The page stands alone: no script, no font, no address to fetch, light or dark as the reader's system is.
"""

import json
import math
import os
import platform
import statistics
import tomllib
from collections.abc import Callable, Sequence
from html import escape
from importlib import metadata
from pathlib import Path
from typing import Any

from nanochat.config import Config, convert
from nanochat.console import duration, quantity
from nanochat.data.shards import read_manifest
from nanochat.errors import DataError, NanochatError
from nanochat.evaluation.results import HEADINGS, RESULTS, table
from nanochat.model import scaling
from nanochat.ops import hardware
from nanochat.ops.curves import STAGE_NAMES, svg
from nanochat.paths import atomic_write, atomic_write_json, dataset_dir
from nanochat.train.metrics import SAMPLES, STAGES

TASK_NAMES = {"core": "CORE", "chat": "Chat tasks"}
REFERENCE_NOTE = "GPT-2's scores are those that karpathy/nanochat measured (its README, and dev/estimate_gpt3_core.ipynb)."
SAMPLED = 12  # samples by step that are shown
PLAN = "plan.json"  # in the run's folder: the plan as it was before the first step
CURVE_POINTS = 300  # of each stage's loss; longer runs are averaged down to these


def write_report(run_dir: Path) -> dict[str, Any]:
    """Read config.toml, metrics.jsonl and scores.json of `run_dir` and write report.json, .md and .html; returns the JSON's value.

    Whatever is missing, or torn by a crash, is left out: a running or broken run has a report too. Raises DataError
    where there is no such folder.
    """
    if not run_dir.is_dir():
        raise DataError(f"there is no run in {run_dir}", "give --run the name of one, or start it with train")
    report = _collect(run_dir)
    atomic_write_json(run_dir / "report.json", report)
    atomic_write(run_dir / "report.md", _markdown(report))
    atomic_write(run_dir / "report.html", _html(report))
    return report


# ---- reading --------------------------------------------------------------------------------------------------


def _collect(run_dir: Path) -> dict[str, Any]:
    config = _read_config(run_dir / "config.toml")
    lines = read_metrics(run_dir / "metrics.jsonl")
    results = _read_json(run_dir / "scores.json")
    last = lines[-1] if lines else {}
    shape = _shape(config)
    tokens = results.get("tokens", last.get("tokens", 0))
    measured = [line["bpb"] for line in lines if line["stage"] == "base" and "bpb" in line]
    return {
        "run": run_dir.name,
        "profile": config.get("profile", ""),
        "trial": bool(config.get("trial", False)),
        "finished": bool(results),
        "scores": results.get("scores"),
        "bpb": results.get("bpb", measured[-1] if measured else None),
        "seconds": results.get("seconds", last.get("elapsed_seconds", 0.0)),
        "flops": results.get("flops", float(scaling.flops_per_token(shape) * tokens) if shape else None),
        "tokens": tokens,
        "parameters": results.get("parameters", scaling.count_parameters(shape)["total"] if shape else None),
        "stages": {stage: _stage([line for line in lines if line["stage"] == stage]) for stage in STAGES if _has(lines, stage)},
        "curve": {stage: _curve([line for line in lines if line["stage"] == stage]) for stage in STAGES if _has(lines, stage)},
        "tasks": _read_json(run_dir / RESULTS),
        "plan": _plan(run_dir, lines, results),
        "samples": results.get("samples", []),
        "samples_by_step": _samples_by_step(run_dir / SAMPLES),
        "data": _data(run_dir / "config.toml"),
        "machine": _machine(str(config.get("device", "auto"))),
        "config": config,
    }


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The whole lines of metrics.jsonl that have a stage, a step and a finite loss; [] where there is no file."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    lines = []
    for line in text.splitlines():
        try:
            entry = json.loads(line)
            good = entry["stage"] in STAGES and isinstance(entry["step"], int) and math.isfinite(entry["loss"])
        except (ValueError, KeyError, TypeError):
            continue
        if good:
            lines.append({key: value for key, value in entry.items() if not isinstance(value, float) or math.isfinite(value)})
    return lines


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _plan(run_dir: Path, lines: Sequence[dict[str, Any]], results: dict[str, Any]) -> dict[str, Any]:
    """What was planned before the first step and what came: {figure: {planned, came}}; {} where no plan was kept."""
    planned = _read_json(run_dir / PLAN)
    speeds = [line["tokens_per_second"] for line in lines if line["stage"] == "base" and "tokens_per_second" in line]
    trained = [line["tokens"] for line in lines if line["stage"] == "base" and "tokens" in line]
    came: dict[str, Any] = {
        "seconds": results.get("seconds"),
        "tokens": trained[-1] if trained else None,
        "tokens_per_second": statistics.median(speeds) if speeds else None,
        "memory_bytes": max((line["peak_memory_bytes"] for line in lines if "peak_memory_bytes" in line), default=None),
    }
    flat = planned | {"memory_bytes": (planned.get("memory_bytes") or {}).get("total")}
    return {name: {"planned": flat.get(name), "came": value} for name, value in came.items()} if planned else {}


def _samples_by_step(path: Path) -> list[dict[str, Any]]:
    """What the model said while it was trained: the last samples, oldest first."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        try:
            entry = json.loads(line)
            found.append({name: entry[name] for name in ("stage", "step", "prompt", "text")})
        except (ValueError, KeyError, TypeError):
            continue
    return found[-SAMPLED:]


def _data(path: Path) -> dict[str, str]:
    """What the run read, with its licence and every hash that is needed to repeat it; {} where the record cannot be read."""
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


def _read_config(path: Path) -> dict[str, Any]:
    """The values of the run's config; {} where they cannot be read."""
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return {name: value for name, value in values.items() if name != "frozen"}


def _shape(config: dict[str, Any]) -> scaling.GPTConfig | None:
    """The model's shape, where the config says it."""
    names = ("depth", "aspect_ratio", "head_dim", "max_seq_len", "window_pattern", "vocab_size", "architecture")
    try:
        return scaling.gpt_config(Config(**{name: convert(name, config[name]) for name in names}))
    except (KeyError, AssertionError, NanochatError):
        return None


def _has(lines: Sequence[dict[str, Any]], stage: str) -> bool:
    return any(line["stage"] == stage for line in lines)


def _stage(lines: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What the table of stages shows; `lines` are one stage's and not empty."""
    speeds = [line["tokens_per_second"] for line in lines if "tokens_per_second" in line]
    memory = [line["peak_memory_bytes"] for line in lines if "peak_memory_bytes" in line]
    measured = [line["bpb"] for line in lines if "bpb" in line]
    return {
        "steps": lines[-1]["step"],
        "first_loss": lines[0]["loss"],
        "last_loss": lines[-1]["loss"],
        "bpb": measured[-1] if measured else None,
        "tokens_per_second": statistics.median(speeds) if speeds else None,
        "peak_memory_bytes": max(memory, default=None),
    }


def _curve(lines: Sequence[dict[str, Any]]) -> dict[str, list[list[float]]]:
    """One stage's [step, loss] points, averaged down to CURVE_POINTS, and its [step, bits per byte] points."""
    width = math.ceil(len(lines) / CURVE_POINTS)
    groups = [lines[start : start + width] for start in range(0, len(lines), width)]
    return {
        "loss": [[group[-1]["step"], round(statistics.fmean(line["loss"] for line in group), 5)] for group in groups],
        "bpb": [[line["step"], round(line["bpb"], 5)] for line in lines if "bpb" in line],
    }


def _machine(device: str) -> dict[str, Any]:
    versions = {}
    for package in ("torch", "numpy"):
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return {
        "device": hardware.this_machine(device).name,
        "system": f"{platform.system()} {platform.machine()}",
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        **versions,
    }


# ---- writing --------------------------------------------------------------------------------------------------


def _facts(report: dict[str, Any]) -> list[tuple[str, str]]:
    """The few figures that stand first."""
    facts = []
    if report["parameters"] is not None:
        facts.append(("parameters", quantity(report["parameters"])))
    facts.append(("tokens seen", quantity(report["tokens"])))
    if report["flops"] is not None:
        facts.append(("operations", f"{report['flops']:.1e}"))
    facts.append(("time", duration(report["seconds"])))
    if report["bpb"] is not None:
        facts.append(("bits per byte", f"{report['bpb']:.3f}"))
    if report["scores"]:
        facts.append(("held-out score", _percent(report["scores"].get("trained"))))
    return facts


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}%"


def _number(value: float | None, pattern: str) -> str:
    return "-" if value is None else format(value, pattern)


def score_rows(report: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """(skill, its part of scores.json) of the held-out questions, all of them together last."""
    scores = report["scores"] or {}
    return [*sorted((scores.get("by_skill") or {}).items()), ("all", scores)] if scores else []


def _task_tables(report: dict[str, Any]) -> list[tuple[str, list[list[str]]]]:
    """(heading, rows) of CORE and the chat tasks, where they were asked."""
    return [(name, table(part, report["tasks"][part])) for part, name in TASK_NAMES.items() if part in report["tasks"]]


def _stage_rows(report: dict[str, Any]) -> list[list[str]]:
    return [
        [
            STAGE_NAMES[name],
            str(stage["steps"]),
            f"{stage['first_loss']:.3f}",
            f"{stage['last_loss']:.3f}",
            _number(stage["bpb"], ".3f"),
            "-" if stage["tokens_per_second"] is None else quantity(stage["tokens_per_second"]),
            "-" if stage["peak_memory_bytes"] is None else f"{stage['peak_memory_bytes'] / 1e9:.1f} GB",
        ]
        for name, stage in report["stages"].items()
    ]


def _plan_rows(report: dict[str, Any]) -> list[list[str]]:
    """The plan beside what came, and their ratio."""
    memory = "memory" if report["config"].get("device") == "cuda" else "memory (came: the whole program's)"
    forms: dict[str, tuple[str, Callable[[float], str]]] = {
        "seconds": ("time", duration),
        "tokens": ("tokens of pretraining", quantity),
        "tokens_per_second": ("tokens/s", quantity),
        "memory_bytes": (memory, lambda size: f"{size / 1e9:.2f} GB"),
    }
    rows = []
    for name, both in report["plan"].items():
        label, form = forms[name]
        planned, came = both["planned"], both["came"]
        ratio = f"{came / planned:.2f}" if planned and came else "-"
        rows.append([label, *("-" if value is None else form(value) for value in (planned, came)), ratio])
    return rows


_PLAN_HEADINGS = ["", "planned", "came", "ratio"]
_STAGE_HEADINGS = ["stage", "steps", "first loss", "last loss", "bits per byte", "tokens/s", "peak memory"]


def _title(report: dict[str, Any]) -> str:
    kind = " (a trial: enough to see every stage, not to learn)" if report["trial"] else ""
    return f"{report['run']}{kind}"


def _status(report: dict[str, Any]) -> str:
    if report["finished"]:
        return ""
    return "Not finished: there are no scores yet." if report["stages"] else "Nothing is trained yet."


def _cell(text: Any) -> str:
    """`text` as it is, within one cell of a Markdown table."""
    plain = " ".join(str(text).split())
    return "".join("\\" + letter if letter in "\\`*_[]<>|~#" else letter for letter in plain)


def markdown_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [headings, ["---"] + ["---:"] * (len(headings) - 1), *[[_cell(cell) for cell in row] for row in rows]]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _markdown(report: dict[str, Any]) -> str:
    parts = [f"# {_cell(_title(report))}"]
    if status := _status(report):
        parts.append(status)
    parts.append(markdown_table(["", ""], _facts(report)))
    if rows := score_rows(report):
        cells = [[name, _percent(row.get("untrained")), _percent(row.get("trained")), str(row.get("items", "-"))] for name, row in rows]
        parts += ["## Held-out questions", markdown_table(["skill", "untrained", "trained", "items"], cells)]
    for heading, cells in _task_tables(report):
        parts += [f"## {heading}", markdown_table(HEADINGS, cells)]
        parts += [REFERENCE_NOTE] if heading == TASK_NAMES["core"] else []
    if report["stages"]:
        parts += ["## Training", markdown_table(_STAGE_HEADINGS, _stage_rows(report))]
    if rows_ := _plan_rows(report):
        parts += ["## The plan and what came", markdown_table(_PLAN_HEADINGS, rows_)]
    if report["samples"]:
        parts.append("## Samples")
        for prompt, answer in _samples(report):
            quoted = [f"    > {line}" for line in prompt.splitlines()] + [f"    {line}" for line in answer.splitlines()]
            parts.append("\n".join(quoted))
    if report["samples_by_step"]:
        parts += ["## Samples by step", markdown_table(["step", "prompt", "continuation"], _sample_rows(report))]
    for name in ("data", "machine", "config"):
        if report[name]:
            rows_ = [[key, str(value)] for key, value in report[name].items()]
            parts += [f"## {name.capitalize()}", markdown_table(["", ""], rows_)]
    return "\n\n".join(parts) + "\n"


def _samples(report: dict[str, Any]) -> list[tuple[str, str]]:
    return [(str(sample.get("prompt", "")), str(sample.get("answer", ""))) for sample in report["samples"] if isinstance(sample, dict)]


def _sample_rows(report: dict[str, Any]) -> list[list[str]]:
    return [[f"{sample['stage']} {sample['step']}", sample["prompt"], sample["text"]] for sample in report["samples_by_step"]]


_STYLE = """
:root { color-scheme: light dark; --ink: #1d2127; --dim: #626b76; --line: #d9dde2; --page: #fff; --soft: #f4f6f8;
  --base: #1f6feb; --sft: #b35900; --rl: #8250df; --bpb: #1a7f37; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e8ec; --dim: #97a1ad; --line: #343b44; --page: #14171b; --soft: #1d2228;
  --base: #6cb0ff; --sft: #f0a35a; --rl: #c2a0ff; --bpb: #5fd07c; } }
body { margin: 2rem auto; max-width: 52rem; padding: 0 1rem; background: var(--page); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.6rem; overflow-wrap: anywhere; } h2 { font-size: 1.15rem; margin-top: 2.2rem; }
dl.facts { display: flex; flex-wrap: wrap; gap: .6rem; margin: 0; }
dl.facts div { background: var(--soft); border-radius: .5rem; padding: .5rem .9rem; }
dt { color: var(--dim); font-size: .8rem; } dd { margin: 0; font-size: 1.15rem; font-variant-numeric: tabular-nums; }
.wide { overflow-x: auto; } table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: .3rem .6rem; border-bottom: 1px solid var(--line); overflow-wrap: anywhere; }
th { color: var(--dim); font-weight: 600; font-size: .85rem; }
th:first-child, td:first-child { text-align: left; } tr.all td { font-weight: 700; }
table.pairs td { text-align: left; } table.pairs td:first-child { color: var(--dim); width: 40%; }
.sample { background: var(--soft); border-radius: .5rem; padding: .6rem .9rem; margin: .6rem 0; }
.sample p { margin: .15rem 0; white-space: pre-wrap; overflow-wrap: anywhere; } .prompt { color: var(--dim); }
svg { width: 100%; height: auto; } svg text { fill: var(--dim); font-size: 12px; } .grid { stroke: var(--line); }
.curve { fill: none; stroke-width: 1.8; } .base { stroke: var(--base); } .sft { stroke: var(--sft); stroke-dasharray: 5 3; }
.rl { stroke: var(--rl); stroke-dasharray: 2 2; } .bpb { fill: var(--bpb); }
details summary { cursor: pointer; color: var(--dim); } .note { color: var(--dim); }
"""


def _html(report: dict[str, Any]) -> str:
    def cells_of(headings: Sequence[str], rows: Sequence[Sequence[str]], last: str = "") -> str:
        head = "".join(f"<th>{escape(text)}</th>" for text in headings)
        body = ""
        for row in rows:
            kind = last if row is rows[-1] else ""
            body += f"<tr{kind}>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>"
        return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'

    def pairs(values: dict[str, Any]) -> str:
        rows = "".join(f"<tr><td>{escape(str(key))}</td><td>{escape(str(value))}</td></tr>" for key, value in values.items())
        return f'<table class="pairs"><tbody>{rows}</tbody></table>'

    parts = [f"<h1>{escape(_title(report))}</h1>"]
    if status := _status(report):
        parts.append(f'<p class="note">{escape(status)}</p>')
    facts = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in _facts(report))
    parts.append(f'<dl class="facts">{facts}</dl>')
    if report["curve"]:
        parts += ["<h2>Loss</h2>", svg(report["curve"])]
    if rows := score_rows(report):
        cells = [[name, _percent(row.get("untrained")), _percent(row.get("trained")), str(row.get("items", "-"))] for name, row in rows]
        parts += ["<h2>Held-out questions</h2>", cells_of(["skill", "untrained", "trained", "items"], cells, ' class="all"')]
    for heading, cells in _task_tables(report):
        parts += [f"<h2>{heading}</h2>", cells_of(HEADINGS, cells)]
        parts += [f'<p class="note">{escape(REFERENCE_NOTE)}</p>'] if heading == TASK_NAMES["core"] else []
    if samples := _samples(report):
        parts.append("<h2>Samples</h2>")
        parts += [f'<div class="sample"><p class="prompt">{escape(prompt)}</p><p>{escape(answer)}</p></div>' for prompt, answer in samples]
    if report["stages"]:
        parts += ["<h2>Training</h2>", cells_of(_STAGE_HEADINGS, _stage_rows(report))]
    if rows_ := _plan_rows(report):
        parts += ["<h2>The plan and what came</h2>", cells_of(_PLAN_HEADINGS, rows_)]
    if rows_ := _sample_rows(report):
        parts += ["<h2>Samples by step</h2>", cells_of(["step", "prompt", "continuation"], rows_)]
    if report["data"]:
        parts += ["<h2>Data</h2>", pairs(report["data"])]
    parts += ["<h2>Machine</h2>", pairs(report["machine"])]
    if report["config"]:
        parts.append(f"<h2>Config</h2><details><summary>{len(report['config'])} values</summary>{pairs(report['config'])}</details>")
    policy = "default-src 'none'; style-src 'unsafe-inline'"
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(report['run'])}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n" + "\n".join(parts) + "\n</body>\n</html>\n"
    )
