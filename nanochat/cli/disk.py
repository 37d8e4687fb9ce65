"""The command `disk`: what the data directory holds, and removal of what can be made again."""

from typing import TYPE_CHECKING, Annotated

import typer

from nanochat.cli.options import AsJson, application, require_terminal
from nanochat.cli.runs import size_text
from nanochat.console import confirm, log, show, show_json
from nanochat.errors import UsageError

if TYPE_CHECKING:
    from nanochat.runs.storage import Item

AGAIN = {"made": "made again when needed", "downloaded": "downloaded again with --downloads", "": ""}
TITLES = {"tokenizer": "tokenizers", "cache": "caches"}

app = application()


@app.command(rich_help_panel="Inspect")
def disk(
    as_json: AsJson = False,
    prune: Annotated[bool, typer.Option("--prune", help="Remove what can be made again: packed rows, caches, generated text")] = False,
    downloads: Annotated[bool, typer.Option("--downloads", help="With --prune: also data that can be downloaded again")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Remove without asking")] = False,
) -> None:
    """Show the disk space of data and runs, or free some.

    With --prune it asks first, and keeps runs, tokenizers, your own text, files that you put there, and all that a run in training uses.
    """
    from nanochat.runs.storage import list_storage, prunable, to_json
    from nanochat.runs.storage import prune as remove

    if downloads and not prune:
        raise UsageError("--downloads is for --prune", "use `nanochat disk --prune --downloads`")
    items = list_storage()
    chosen = prunable(items, downloads)
    if prune:
        if not chosen:
            log("nothing to remove: all that is left is yours, or in use")
        elif not yes:
            require_terminal("pass --yes")
            _show(chosen, frees=True)
            if not confirm(f"Remove these files ({size_text(sum(item.frees for item in chosen))})?"):
                log("nothing was removed")
                raise typer.Exit(0)
        freed = remove(chosen)
        log(f"{size_text(freed)} freed")
        items = list_storage()
    if as_json:
        show_json(to_json(items) | ({"freed_bytes": freed} if prune else {}))
    elif not prune:
        value = to_json(items)
        _show(items)
        show(f"{size_text(value['bytes'])} in {value['directory']}, {size_text(value['free_bytes'])} free on its disk", hanging=2)
        if chosen:
            log(f"`nanochat disk --prune` frees {size_text(sum(item.frees for item in chosen))}")


def _show(items: "list[Item]", frees: bool = False) -> None:
    """A line for each item."""
    rows = []
    for item in items:
        notes = ["in use by a run in training"] if item.in_use else [AGAIN[item.again] if item.frees else ""]
        notes += [f"used by {', '.join(item.runs)}"] if item.runs else []
        size = size_text(item.frees if frees else item.bytes)
        rows.append((TITLES.get(item.part, item.part), item.name, size, "; ".join(filter(None, notes))))
    widths = [max((len(row[column]) for row in rows), default=0) for column in range(3)]
    for part, name, size, note in rows:
        show(f"{part:{widths[0]}}  {name:{widths[1]}}  {size:>{widths[2]}}  {note}".rstrip(), hanging=2)
