"""A report as one self-contained page without scripts, fonts or addresses, in the light or dark theme of the reader's system."""

from collections.abc import Sequence
from html import escape
from typing import Any

from nanochat.report import markdown
from nanochat.report.curves import NARROW, svg
from nanochat.runs.report_schema import Report

_STYLE = """
:root { color-scheme: light dark; --ink: #1d2127; --dim: #626b76; --line: #d9dde2; --page: #fff; --soft: #f4f6f8;
  --base: #1f6feb; --sft: #b35900; --rl: #8250df; --bpb: #1a7f37; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e8ec; --dim: #97a1ad; --line: #343b44; --page: #14171b; --soft: #1d2228;
  --base: #6cb0ff; --sft: #f0a35a; --rl: #c2a0ff; --bpb: #5fd07c; } }
body { margin: 2rem auto; max-width: 52rem; padding: 0 1rem; background: var(--page); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.6rem; overflow-wrap: anywhere; } h2 { font-size: 1.15rem; margin-top: 2.2rem; }
dl.origin { margin: 0 0 1rem; color: var(--dim); font-size: .9rem; } dl.origin div { display: flex; gap: .6rem; }
dl.origin dt { flex: 0 0 5rem; font-size: .9rem; } dl.origin dd { font-size: .9rem; }
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
.phone { display: none; } @media (max-width: 40rem) { .phone { display: block; } .desktop { display: none; } }
.bars { width: 7rem; height: 1rem; display: block; } .bars .of { fill: var(--line); } .bars .now { fill: var(--base); }
.bars .was { fill: var(--dim); } code { font: .85rem/1.5 ui-monospace, monospace; overflow-wrap: anywhere; }
.rl { stroke: var(--rl); stroke-dasharray: 2 2; } .bpb { fill: var(--bpb); }
details summary { cursor: pointer; color: var(--dim); } .note { color: var(--dim); }
"""


def page(report: Report) -> str:
    """The content of report.html."""
    parts = [f"<h1>{escape(markdown.title(report))}</h1>"]
    origin = [f"<div><dt>{escape(name)}</dt><dd>{_origin(name, value)}</dd></div>" for name, value in markdown.origin(report)]
    parts.append(f'<dl class="origin">{"".join(origin)}</dl>')
    if status := markdown.status(report):
        parts.append(f'<p class="note">{escape(status)}</p>')
    facts = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in markdown.facts(report))
    parts.append(f'<dl class="facts">{facts}</dl>')
    if report["curve"]:
        drawings = (("desktop", svg(report["curve"])), ("phone", svg(report["curve"], NARROW)))
        parts += ["<h2>Loss</h2>", *(f'<div class="{name}">{drawing}</div>' for name, drawing in drawings)]
    parts += _sections(markdown.score_tables(report), _score_bars(report))
    if samples := markdown.samples(report):
        parts.append("<h2>Samples</h2>")
        parts += [f'<div class="sample"><p class="prompt">{escape(prompt)}</p><p>{escape(answer)}</p></div>' for prompt, answer in samples]
    parts += _sections((*markdown.training_tables(report), *markdown.step_samples(report)))
    if report["data"]:
        parts += ["<h2>Data</h2>", _pairs(report["data"])]
    parts += ["<h2>Machine</h2>", _pairs(report["machine"])]
    if report["config"]:
        parts.append(f"<h2>Config</h2><details><summary>{len(report['config'])} values</summary>{_pairs(report['config'])}</details>")
    return document(report["run"], parts)


def document(title: str, parts: Sequence[str]) -> str:
    """A complete page of `parts`, with a policy that lets it load and run nothing."""
    policy = "default-src 'none'; style-src 'unsafe-inline'"
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(parts)
        + "\n</main>\n</body>\n</html>\n"
    )


def _origin(name: str, value: str) -> str:
    return f"<code>{escape(value)}</code>" if name == "command" else escape(value)


def _score_bars(report: Report) -> list[str]:
    """For each row of the held-out questions a bar of the fractions of correct answers, untrained and trained."""
    bars = []
    for name, row in markdown.score_rows(report):
        trained, untrained = (min(max(float(row.get(key) or 0), 0.0), 1.0) for key in ("trained", "untrained"))
        label = f"{escape(name)}: {untrained:.0%} untrained, {trained:.0%} trained"
        bars.append(
            f'<svg class="bars" viewBox="0 0 100 16" preserveAspectRatio="none" role="img" aria-label="{label}">'
            '<rect class="of" width="100" height="16" rx="2"/>'
            f'<rect class="now" width="{100 * trained:.1f}" height="10" rx="2"/>'
            f'<rect class="was" y="11" width="{100 * untrained:.1f}" height="5" rx="2"/></svg>'
        )
    return bars


def _sections(tables: Sequence[markdown.Table], bars: Sequence[str] = ()) -> list[str]:
    """The tables; the rows of the first one end with `bars`."""
    parts = []
    for number, table in enumerate(tables):
        drawn = bars if number == 0 else ()
        head = "".join(f"<th>{escape(text)}</th>" for text in (*table.columns, *(["correct answers"] if drawn else [])))
        rows = ["".join(f"<td>{escape(cell)}</td>" for cell in row) for row in table.rows]
        rows = [f"{row}<td>{bar}</td>" for row, bar in zip(rows, drawn, strict=True)] if drawn else rows
        marks = [' class="all"' if table.total and number == len(rows) else "" for number in range(1, len(rows) + 1)]
        body = "".join(f"<tr{mark}>{row}</tr>" for mark, row in zip(marks, rows, strict=True))
        parts.append(f"<h2>{table.heading}</h2>")
        parts.append(f'<div class="wide" tabindex="0"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>')
        if table.note:
            parts.append(f'<p class="note">{escape(table.note)}</p>')
    return parts


def _pairs(values: dict[str, Any]) -> str:
    rows = "".join(f"<tr><td>{escape(str(key))}</td><td>{escape(str(value))}</td></tr>" for key, value in values.items())
    return f'<table class="pairs"><tbody>{rows}</tbody></table>'
