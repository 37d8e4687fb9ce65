"""`report --compare RUN RUN`: differences of two runs in settings and results, as text and as a page."""

from collections.abc import Callable
from html import escape
from pathlib import Path
from typing import Any, Literal

from nanochat.console import duration, printable, quantity
from nanochat.paths import atomic_write, disk_error
from nanochat.report.collect import write_report
from nanochat.report.curves import NARROW, overlay
from nanochat.report.html import document
from nanochat.report.markdown import markdown_table, score_rows
from nanochat.runs.report_schema import Report

_Figure = Literal["parameters", "tokens", "flops", "seconds", "bpb"]
# Figure of a report -> its format; None is shown as a dash.
_FIGURES: dict[_Figure, Callable[[float], str]] = {
    "parameters": quantity,
    "tokens": quantity,
    "flops": lambda value: f"{value:.2e}",
    "seconds": duration,
    "bpb": lambda value: f"{value:.4f}",
}
_IGNORED = ("run", "profile")  # settings without influence on the result


def compare(first: Path, second: Path) -> dict[str, Any]:
    """Compare two runs, whose reports are updated: {runs, config (differing settings), figures, scores, bpb, samples, curves}.

    bpb has [step, a, b] for pretraining steps at which both were evaluated, samples {prompt, answers} for prompts of both, and curves each
    run's loss by stage. Raises DataError if a run is missing.
    """
    reports = [write_report(folder) for folder in (first, second)]
    one, other = (report["config"] for report in reports)
    names = [name for name in {**one, **other} if name not in _IGNORED and one.get(name) != other.get(name)]
    measured = [_base_bpb(report) for report in reports]
    skills = [_scores(report) for report in reports]
    said = [{str(sample.get("prompt")): str(sample.get("answer")) for sample in report["samples"]} for report in reports]
    return {
        "runs": [report["run"] for report in reports],
        "config": {name: [one.get(name), other.get(name)] for name in names},
        "figures": {name: [report[name] for report in reports] for name in _FIGURES},
        "scores": {name: [skills[0].get(name), skills[1].get(name)] for name in {**skills[0], **skills[1]}},
        "bpb": [[step, measured[0][step], measured[1][step]] for step in sorted(measured[0].keys() & measured[1].keys())],
        "samples": [{"prompt": prompt, "answers": [said[0][prompt], said[1][prompt]]} for prompt in said[0] if prompt in said[1]],
        "curves": [report["curve"] for report in reports],
    }


def write_page(found: dict[str, Any], folder: Path) -> Path:
    """Write a comparison as compare-OTHER.html into the first run's `folder`; returns its path.

    Raises PreflightError if it cannot be written.
    """
    path = folder / f"compare-{found['runs'][1]}.html"
    try:
        atomic_write(path, printable(page(found)))
    except OSError as error:
        raise disk_error(error, "writing the comparison") from error
    return path


def _base_bpb(report: Report) -> dict[int, float]:
    """Bits per byte by step of pretraining."""
    curve = report["curve"].get("base")
    return {int(step): value for step, value in curve["bpb"]} if curve else {}


def _scores(report: Report) -> dict[str, float]:
    """The fraction of held-out questions answered correctly, by skill and in total."""
    return {name: row["trained"] for name, row in score_rows(report) if row.get("trained") is not None}


def _tables(found: dict[str, Any]) -> list[tuple[str, list[str], list[list[str]]]]:
    """(heading, columns, rows) of a comparison's parts that are not empty; the first has no heading."""

    def both(values: list[Any], form: Callable[[Any], str]) -> list[str]:
        return ["-" if value is None else form(value) for value in values]

    heads = ["", *found["runs"]]
    parts = [
        ("", heads, [[name, *both(values, _FIGURES[name])] for name, values in found["figures"].items()]),
        ("Settings that differ", heads, [[name, *both(values, str)] for name, values in found["config"].items()]),
        ("Held-out questions", heads, [[name, *both(values, lambda value: f"{value:.1%}")] for name, values in found["scores"].items()]),
        (
            "Bits per byte at equal steps",
            ["step", *found["runs"]],
            [[str(step), f"{one:.4f}", f"{other:.4f}"] for step, one, other in found["bpb"]],
        ),
        ("Answers to the same prompts", ["prompt", *found["runs"]], [[one["prompt"], *one["answers"]] for one in found["samples"]]),
    ]
    return [part for part in parts if part[2]]


def describe(found: dict[str, Any]) -> str:
    """A comparison as Markdown."""
    parts = [f"# {found['runs'][0]} and {found['runs'][1]}"]
    for heading, columns, rows in _tables(found):
        parts += [*([f"## {heading}"] if heading else []), markdown_table(columns, rows)]
    return "\n\n".join(parts)


def page(found: dict[str, Any]) -> str:
    """A comparison as an HTML page, with both runs' curves in one drawing."""
    title = f"{found['runs'][0]} and {found['runs'][1]}"
    parts = [f"<h1>{escape(title)}</h1>"]
    runs = list(zip(found["runs"], found["curves"], strict=True))
    if any(curve for _, curve in runs):
        drawings = (("desktop", overlay(runs)), ("phone", overlay(runs, NARROW)))
        parts += ["<h2>Loss</h2>", *(f'<div class="{name}">{drawing}</div>' for name, drawing in drawings)]
    for heading, columns, rows in _tables(found):
        head = "".join(f"<th>{escape(text)}</th>" for text in columns)
        body = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
        parts.append(f"<h2>{heading or 'Figures'}</h2>")
        parts.append(f'<div class="wide" tabindex="0"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>')
    return document(title, parts)
