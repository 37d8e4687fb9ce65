"""`report --compare RUN RUN`: what differs between two runs, in their settings and in what came of them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from nanochat.console import duration, quantity
from nanochat.report.collect import write_report
from nanochat.report.markdown import markdown_table, score_rows
from nanochat.runs.report_schema import Report

_Figure = Literal["parameters", "tokens", "flops", "seconds", "bpb"]
# Figure of a report -> how it is shown; None is shown as a dash.
_FIGURES: dict[_Figure, Callable[[float], str]] = {
    "parameters": quantity,
    "tokens": quantity,
    "flops": lambda value: f"{value:.2e}",
    "seconds": duration,
    "bpb": lambda value: f"{value:.4f}",
}
_IGNORED = ("run", "profile")  # settings that always differ and decide nothing


def compare(first: Path, second: Path) -> dict[str, Any]:
    """Two runs, reports written anew: {runs, config: {name: [a, b]} where they differ, figures, scores, bpb: [[step, a, b]]}.

    bpb has the bits per byte of the steps of pretraining at which both were evaluated. Raises DataError if a run is missing.
    """
    reports = [write_report(folder) for folder in (first, second)]
    one, other = (report["config"] for report in reports)
    names = [name for name in {**one, **other} if name not in _IGNORED and one.get(name) != other.get(name)]
    measured = [_base_bpb(report) for report in reports]
    skills = [_scores(report) for report in reports]
    return {
        "runs": [report["run"] for report in reports],
        "config": {name: [one.get(name), other.get(name)] for name in names},
        "figures": {name: [report[name] for report in reports] for name in _FIGURES},
        "scores": {name: [skills[0].get(name), skills[1].get(name)] for name in {**skills[0], **skills[1]}},
        "bpb": [[step, measured[0][step], measured[1][step]] for step in sorted(measured[0].keys() & measured[1].keys())],
    }


def _base_bpb(report: Report) -> dict[int, float]:
    """Bits per byte by step of pretraining."""
    curve = report["curve"].get("base")
    return {int(step): value for step, value in curve["bpb"]} if curve else {}


def _scores(report: Report) -> dict[str, float]:
    """The share of held-out questions that a run answers, by skill and over all."""
    return {name: row["trained"] for name, row in score_rows(report) if row.get("trained") is not None}


def describe(found: dict[str, Any]) -> str:
    """A comparison as Markdown."""

    def both(values: list[Any], form: Callable[[Any], str]) -> list[str]:
        return ["-" if value is None else form(value) for value in values]

    heads = ["", *found["runs"]]
    figures = [[name, *both(values, _FIGURES[name])] for name, values in found["figures"].items()]
    parts = [f"# {found['runs'][0]} and {found['runs'][1]}", markdown_table(heads, figures)]
    if found["config"]:
        settings = [[name, *both(values, str)] for name, values in found["config"].items()]
        parts += ["## Settings that differ", markdown_table(heads, settings)]
    if found["scores"]:
        scores = [[name, *both(values, lambda value: f"{value:.1%}")] for name, values in found["scores"].items()]
        parts += ["## Held-out questions", markdown_table(heads, scores)]
    if found["bpb"]:
        steps = [[str(step), f"{one:.4f}", f"{other:.4f}"] for step, one, other in found["bpb"]]
        parts += ["## Bits per byte at equal steps", markdown_table(["step", *found["runs"]], steps)]
    return "\n\n".join(parts)
