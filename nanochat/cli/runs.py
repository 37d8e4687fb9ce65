"""Commands about runs on disk: list them, show one, stop one, remove some, move one to another machine."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from nanochat.cli.help import Group
from nanochat.cli.options import AsJson, Commands, require_terminal
from nanochat.columns import fitted
from nanochat.console import confirm, duration, log, quantity, show, show_json, terminal_width

HEADINGS = ("run", "stage", "step", "bpb", "score", "parameters", "tokens", "date", "size")

app = Commands(
    cls=Group,
    help="List, show, stop, move and remove runs.\n\nWithout a command: a table of all runs, the newest first.",
    no_args_is_help=False,
)


@app.callback(invoke_without_command=True)
def runs(context: typer.Context, as_json: AsJson = False) -> None:
    """List, show, stop, move and remove runs."""
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
        size_text(run["size_bytes"]),
    )


def size_text(count: int) -> str:
    """A size on disk in MB or GB."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


@app.command(name="show")
def show_run(name: Annotated[str, typer.Argument(metavar="RUN", help="Name of the run")], as_json: AsJson = False) -> None:
    """Show a run's state, checkpoints and command."""
    from nanochat import paths
    from nanochat.errors import DataError
    from nanochat.report.collect import collect
    from nanochat.runs.listing import summary
    from nanochat.runs.names import plain_name

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
        show(f"{key:12} {value}", hanging=None if key == "command" else 13)  # a command can be copied


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
        if sizes and not confirm(f"Remove {', '.join(names)} ({size_text(sum(sizes))})?"):
            log("nothing was removed")
            raise typer.Exit(0)
    for name in names:
        freed = remove_run(name)
        log(f"removed {name}: {size_text(freed)} freed")


@app.command(name="stop")
def stop(
    name: Annotated[str, typer.Argument(metavar="RUN", help="Name of the run")],
    wait: Annotated[float, typer.Option(min=1, metavar="SECONDS", help="Seconds to wait for its checkpoint")] = 180,
) -> None:
    """Stop a training run from another terminal.

    The run finishes its step, saves a checkpoint and exits with code 75. The same train command resumes it. Works across containers and
    machines that share the data directory.
    """
    from nanochat.runs.stop import stop_run

    stopped = stop_run(name, wait)
    if stopped is None:
        log(f"no process is training {name}")
        return
    if not stopped.step:
        log(f"stopped {name}: it had no checkpoint to save yet")
        return
    what = "saved" if stopped.saved else "its newest checkpoint is"
    log(f"stopped {name}: {what} {stopped.stage} step {stopped.step}; the same train command resumes it")


@app.command(name="pack")
def pack_run(
    name: Annotated[str, typer.Argument(metavar="RUN", help="Name of the run")],
    out: Annotated[Path | None, typer.Argument(metavar="FILE", help="Archive to write, - for stdout; without it, RUN.tar")] = None,
) -> None:
    """Pack a run into one file for another machine.

    The archive has the run's checkpoints and record, its tokenizer and, if the run was trained on your own text, that text. Other text is
    generated or downloaded again there.
    """
    from nanochat.runs.archive import pack

    file = (out or Path(f"{name}.tar")).expanduser()
    packed = pack(name, None if str(file) == "-" else file)
    text = ", with your text" if packed.has_text else ""
    log(f"packed {name} into {file}: {packed.describe()}{text}, {size_text(packed.bytes)}")
    for path in packed.files_elsewhere:
        log(f"warning: {path} is not in the archive: copy it to the same path there")
    if str(file) != "-":
        log(f"on the other machine: `nanochat runs unpack {file.name}`")


@app.command(name="unpack")
def unpack_run(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Archive that `runs pack` wrote")],
    replace: Annotated[bool, typer.Option("--replace", help="Replace the run here if the archive continues it")] = False,
) -> None:
    """Unpack a run from another machine.

    Checks every hash first. The run then resumes with its train command, with the same losses on the same kind of machine.
    """
    from nanochat.report.origin import command
    from nanochat.runs.archive import unpack

    packed = unpack(file.expanduser(), replace)
    log(f"unpacked the run {packed.run}: {packed.describe()}")
    for path in packed.files_elsewhere:
        log(f"warning: {path} was not in the archive: copy it to the same path here")
    if packed.record and (resume := command(packed.record.config.to_dict())):
        log(f"resume it with `{resume}`")
    log(f"chat with it: `nanochat chat --run {packed.run}`")
