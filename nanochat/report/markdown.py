"""A report as tables for Markdown and HTML, and as Markdown."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from nanochat.console import duration, quantity
from nanochat.evaluation.scores import HEADINGS, score_table
from nanochat.report.curves import STAGE_NAMES
from nanochat.runs.report_schema import Report, StageReport

TASK_NAMES = {"core": "CORE", "chat": "Chat tasks"}
REFERENCE_NOTE = "GPT-2's scores are those that karpathy/nanochat measured (its README, and dev/estimate_gpt3_core.ipynb)."


@dataclass(frozen=True)
class Table:
    """A heading, the columns' headings and the rows; with `total`, the last row summarises the others."""

    heading: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""
    total: bool = False


def title(report: Report) -> str:
    """The run's name, with a note if it is a short test run."""
    kind = " (short test run)" if report["trial"] else ""
    return f"{report['run']}{kind}"


def status(report: Report) -> str:
    """A note for an unfinished run; "" for a finished one."""
    if report["finished"]:
        return ""
    return "Not finished: there are no scores yet." if report["stages"] else "Not started: there are no training steps yet."


def origin(report: Report) -> list[tuple[str, str]]:
    """The date, command and revision of the training run."""
    return [
        (name, value)
        for name, value in (("date", report["date"]), ("command", report["command"]), ("revision", report["revision"]))
        if value
    ]


def facts(report: Report) -> list[tuple[str, str]]:
    """The most important figures."""
    found = []
    if report["parameters"] is not None:
        found.append(("parameters", quantity(report["parameters"])))
    found.append(("tokens seen", quantity(report["tokens"])))
    if report["flops"] is not None:
        found.append(("operations", f"{report['flops']:.1e}"))
    found.append(("time", duration(report["seconds"])))
    if report["bpb"] is not None:
        found.append(("bits per byte", f"{report['bpb']:.3f}"))
    if report["scores"]:
        found.append(("held-out score", _percent(report["scores"].get("trained"))))
    reinforced = report["stages"].get("rl")
    if reinforced and (passed := reinforced["passed"]):
        found += [(f"{name} after reinforcement", _percent(passed[name])) for name in (min(passed), max(passed))]
    return found


def score_rows(report: Report) -> list[tuple[str, dict[str, Any]]]:
    """(skill, {untrained, trained, items}) of the held-out questions, with the total last."""
    scores = report["scores"] or {}
    return [*sorted((scores.get("by_skill") or {}).items()), ("all", scores)] if scores else []


def score_tables(report: Report) -> list[Table]:
    """Tables of the held-out questions, CORE and chat tasks, if evaluated."""
    tables = []
    if rows := score_rows(report):
        cells = [[name, _percent(row.get("untrained")), _percent(row.get("trained")), str(row.get("items", "-"))] for name, row in rows]
        tables.append(Table("Held-out questions", ["skill", "untrained", "trained", "items"], cells, total=True))
    for part, name in TASK_NAMES.items():
        if part in report["tasks"]:
            tables.append(Table(name, HEADINGS, score_table(part, report["tasks"][part]), REFERENCE_NOTE if part == "core" else ""))
    return tables


def training_tables(report: Report) -> list[Table]:
    """Tables of the runs that this one descends from, of the stages, and of the plan and the measured figures."""
    tables = []
    if report["descent"]:
        rows = [[each["run"], each["stage"], str(each["step"]), each["text"] or "-", each["sha256"][:12]] for each in report["descent"]]
        last = max(report["stages"], key=list(STAGE_NAMES).index, default="")
        steps = str(report["stages"][last]["steps"]) if last else "-"
        text = "the user's own text" if report["config"].get("data") else str(report["config"].get("dataset", "-"))
        own = [f"{report['run']} (this run)", last or "-", steps, text if "base" in report["stages"] else "-", "-"]
        tables.append(Table("Line of descent", ["run", "stage", "step", "pretrained on", "sha256"], [*rows, own]))
    if report["stages"]:
        headings = ["stage", "steps", "first loss", "last loss", "bits per byte", "tokens/s", "peak memory"]
        tables.append(Table("Training", headings, _stage_rows(report)))
    if report["plan"]:
        tables.append(Table("Plan and result", ["", "planned", "measured", "ratio"], _plan_rows(report), report["why"]))
    return tables


def step_samples(report: Report) -> list[Table]:
    """Table of samples during training."""
    rows = [[f"{sample['stage']} {sample['step']}", sample["prompt"], sample["text"]] for sample in report["samples_by_step"]]
    return [Table("Samples by step", ["step", "prompt", "continuation"], rows)] if rows else []


def samples(report: Report) -> list[tuple[str, str]]:
    """(prompt, answer) of the trained model."""
    return [(str(sample.get("prompt", "")), str(sample.get("answer", ""))) for sample in report["samples"] if isinstance(sample, dict)]


def _stage_rows(report: Report) -> list[list[str]]:
    return [
        [
            STAGE_NAMES[name],
            str(stage["steps"]),
            *_first_and_last(stage),
            _number(stage["bpb"], ".3f"),
            "-" if stage["tokens_per_second"] is None else quantity(stage["tokens_per_second"]),
            "-" if stage["peak_memory_bytes"] is None else f"{stage['peak_memory_bytes'] / 1e9:.1f} GB",
        ]
        for name, stage in report["stages"].items()
    ]


def _first_and_last(stage: StageReport) -> tuple[str, str]:
    """A stage's first and last rewards, or losses for a stage without rewards."""
    first, last = stage["first_reward"], stage["last_reward"]
    if first is None or last is None:
        return f"{stage['first_loss']:.3f}", f"{stage['last_loss']:.3f}"
    return f"reward {first:.2f}", f"reward {last:.2f}"


def _plan_rows(report: Report) -> list[list[str]]:
    """Planned and measured figures with their ratio."""
    memory = "memory" if report["config"].get("device") == "cuda" else "memory (measured for the whole process)"
    forms: dict[str, tuple[str, Callable[[float], str]]] = {
        "seconds": ("time", duration),
        "tokens": ("pretraining tokens", quantity),
        "tokens_per_second": ("tokens/s", quantity),
        "memory_bytes": (memory, lambda size: f"{size / 1e9:.2f} GB"),
        "cpu_others": ("CPU used by other programs", lambda share: f"{share:.0%}"),
    }
    rows = []
    for name, both in report["plan"].items():
        label, form = forms[name]
        planned, came = both["planned"], both["came"]
        ratio = f"{came / planned:.2f}" if planned and came else "-"
        rows.append([label, *("-" if value is None else form(value) for value in (planned, came)), ratio])
    return rows


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}%"


def _number(value: float | None, pattern: str) -> str:
    return "-" if value is None else format(value, pattern)


def _cell(text: Any) -> str:
    """`text` escaped for a cell of a Markdown table."""
    plain = " ".join(str(text).split())
    return "".join("\\" + letter if letter in "\\`*_[]<>|~#" else letter for letter in plain)


def markdown_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table with right-aligned columns, except for the first."""
    lines = [headings, ["---"] + ["---:"] * (len(headings) - 1), *[[_cell(cell) for cell in row] for row in rows]]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def markdown(report: Report) -> str:
    """The report as Markdown."""
    parts = [f"# {_cell(title(report))}"]
    if said := status(report):
        parts.append(said)
    parts.append(markdown_table(["", ""], facts(report)))
    parts += _sections((*score_tables(report), *training_tables(report)))
    if answers := samples(report):
        parts.append("## Samples")
        for prompt, answer in answers:
            quoted = [f"    > {line}" for line in prompt.splitlines()] + [f"    {line}" for line in answer.splitlines()]
            parts.append("\n".join(quoted))
    parts += _sections(step_samples(report))
    for heading, values in (
        ("Run", dict(origin(report))),
        ("Data", report["data"]),
        ("Machine", report["machine"]),
        ("Config", report["config"]),
    ):
        if values:
            parts += [f"## {heading}", markdown_table(["", ""], [[key, str(value)] for key, value in values.items()])]
    return "\n\n".join(parts) + "\n"


def _sections(tables: Sequence[Table]) -> list[str]:
    return [part for one in tables for part in (f"## {one.heading}", markdown_table(one.columns, one.rows), one.note) if part]
