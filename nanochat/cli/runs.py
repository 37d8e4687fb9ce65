"""Commands about runs on disk: list them, show one, remove some."""

import sys
from typing import Annotated, Any

import typer

from nanochat.cli.help import Group
from nanochat.cli.options import AsJson, Commands, require_terminal
from nanochat.console import confirm, duration, fitted, log, quantity, show, show_json, terminal_width

HEADINGS = ("run", "stage", "step", "bpb", "score", "parameters", "tokens", "date", "size")

app = Commands(
    cls=Group, help="List, show and remove runs.\n\nWithout a command: a table of all runs, the newest first.", no_args_is_help=False
)


@app.callback(invoke_without_command=True)
def runs(context: typer.Context, as_json: AsJson = False) -> None:
    """List, show and remove runs."""
    if context.invoked_subcommand:
        return
    from nanochat.runs.listing import list_runs

    found = list_runs()
    if as_json:
        show_json({"runs": found})
        return
    if not found:
        log("there are no runs yet; train one in minutes: `nanochat quickstart`")
        return
    rows = [HEADINGS, *(_row(one) for one in found)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADINGS))]
    most = terminal_width() if sys.stdout.isatty() else 10_000
    for row in rows:
        cells = [
            cell.ljust(width) if column < 2 else cell.rjust(width) for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        show(fitted("  ".join(cells).rstrip(), most))


def _row(run: Any) -> tuple[str, ...]:
    """A run's cells, in the order of HEADINGS."""

    def cell(value: Any, form: Any) -> str:
        return "-" if value is None else str(form(value))

    state = "training" if run["running"] else "" if run["finished"] else "not finished"
    notes = ", ".join(filter(None, (f"from {run['from_run']}" if run["from_run"] else "", state)))
    return (
        run["name"] + (f" ({notes})" if notes else ""),
        cell(run["stage"], str),
        cell(run["step"], str),
        cell(run["bpb"], lambda value: f"{value:.3f}"),
        cell(run["score"], lambda value: f"{value:.1%}"),
        cell(run["parameters"], quantity),
        cell(run["tokens"], quantity),
        cell(run["date"], lambda value: value[:16].replace("T", " ")),
        _size(run["size_bytes"]),
    )


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


@app.command(name="show")
def show_run(name: Annotated[str, typer.Argument(metavar="RUN", help="Name of the run")], as_json: AsJson = False) -> None:
    """Show a run's state, checkpoints and command."""
    from nanochat import paths
    from nanochat.errors import DataError
    from nanochat.report.collect import collect
    from nanochat.runs.listing import summary
    from nanochat.runs.record import plain_name

    folder = paths.run_dir(plain_name(name))
    found = summary(folder) if folder.is_dir() else None
    if found is None:
        raise DataError(f"there is no run {name!r} here", "`nanochat runs` lists them")
    report = collect(folder)
    if as_json:
        show_json({**found, "command": report["command"], "revision": report["revision"], "scores": report["scores"]})
        return
    state = "training now" if found["running"] else "finished" if found["finished"] else "not finished: the same train command resumes it"
    facts = [("run", found["name"]), ("state", state)]
    facts += list(zip(HEADINGS[3:], _row(found)[3:], strict=True))
    if found["seconds"] is not None:
        facts.append(("time", duration(found["seconds"])))
    facts += [(key, report[key]) for key in ("command", "revision") if report[key]]
    facts += [("checkpoints", ", ".join(f"{one['stage']} {one['step']}" for one in found["checkpoints"]) or "none yet")]
    facts += [("directory", str(folder))]
    for key, value in facts:
        show(f"{key:12} {value}")


@app.command(name="rm")
def remove(
    names: Annotated[list[str], typer.Argument(metavar="RUN...", help="Names of the runs to remove")],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Remove without asking")] = False,
) -> None:
    """Remove runs with all their checkpoints.

    Asks first. Refuses a run that is training now, and a run whose checkpoints are on its mirror alone.
    """
    from nanochat.runs.listing import list_runs, remove_run

    known = {one["name"]: one for one in list_runs()}
    sizes = [known[name]["size_bytes"] for name in names if name in known]
    if not yes:
        require_terminal("pass --yes")
        if sizes and not confirm(f"Remove {', '.join(names)} ({_size(sum(sizes))})?"):
            log("nothing was removed")
            raise typer.Exit(0)
    for name in names:
        freed = remove_run(name)
        log(f"removed {name}: {_size(freed)} are free again")
