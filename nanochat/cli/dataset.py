"""Commands that download text: `download`, and `python -m nanochat.dataset` as in karpathy/nanochat."""

import os
from typing import TYPE_CHECKING, Annotated

import typer

from nanochat.cli.options import FLAGS, Trial, application, run_config
from nanochat.console import show
from nanochat.errors import UsageError

if TYPE_CHECKING:
    from nanochat.data.shards import Dataset

DEFAULT = 8  # training shards, where nobody has said how many

Limit = Annotated[str | None, typer.Option(metavar="RATE", help="bandwidth limit in bytes per second, as in 500K or 2M")]
Verify = Annotated[bool, typer.Option("--verify", help="hash every file again afterwards")]

app = typer.Typer()
module = application()  # of `python -m nanochat.dataset`


@app.command(context_settings=FLAGS)
def download(
    context: typer.Context,
    shards: Annotated[int | None, typer.Option("-n", "--shards", help="training shards, besides the validation shard; -1: all")] = None,
    dataset: Annotated[str | None, typer.Option(help="climbmix, fineweb-edu, hf:OWNER/NAME or hf:OWNER/NAME:COLUMN")] = None,
    profile: Annotated[str | None, typer.Option("--for", help="profile: download everything that its run needs, to train offline")] = None,
    trial: Trial = False,
    verify: Verify = False,
    limit: Limit = None,
    evaluation: Annotated[bool, typer.Option("--evaluation", help="files of CORE, ARC, MMLU and GSM8K, for `eval`")] = False,
) -> None:
    """Download training text, or all a run needs.

    Training shards and the validation shard, or with --for everything that a profile's run needs. The same command again resumes.
    """
    limit_rate(limit)
    if evaluation:
        from nanochat.data.published.sets import fetch_tasks

        for folder in fetch_tasks(verify):
            show(str(folder))
        if profile is None and shards is None and dataset is None:
            return
    if profile is None:
        if context.args:
            raise UsageError(f"{context.args[0]} is an option of a run", "name whose: download --for PROFILE")
        show(str(have_shards(dataset or "climbmix", shards, verify).folder))
        return
    named = ([f"--dataset={dataset}"] if dataset else []) + ([f"--shards={shards}"] if shards else [])
    config = run_config(profile, trial, [*named, *context.args])
    from nanochat.data.source import text_source
    from nanochat.planning.hardware import choose_hardware
    from nanochat.planning.rules import normal, resolve

    show(str(text_source(resolve(normal(config), hardware=choose_hardware(config))).fetch(verify)))


@module.command()
def dataset(
    shards: Annotated[
        int | None,
        typer.Option("-n", "--num-files", "--num_files", "--shards", metavar="N", help="training shards to have; -1: all of them"),
    ] = None,
    dataset: Annotated[str, typer.Option(help="climbmix, fineweb-edu, hf:OWNER/NAME or hf:OWNER/NAME:COLUMN")] = "climbmix",
    limit: Limit = None,
    verify: Verify = False,
) -> None:
    """Download training shards and the validation shard."""
    limit_rate(limit)
    found = have_shards(dataset, shards, verify)
    show(f"{len(found.training)} training shards and {found.validation.path.name} for validation in {found.folder}")


def have_shards(dataset: str, asked: int | None, check: bool = False) -> "Dataset":
    """Have `asked` training shards of `dataset` (see `shards_wanted`), fetched where they are missing; with `check`, hash every file."""
    from nanochat.data.published.shards import ensure_shards
    from nanochat.data.shards import verify

    found = ensure_shards(dataset, shards_wanted(dataset, asked))
    if check:
        verify(found)
    return found


def shards_wanted(dataset: str, asked: int | None) -> int:
    """How many training shards to have: `asked` (-1: all of them), else as many as the manifest lists, else DEFAULT."""
    from nanochat.data.published.shards import KNOWN, origin
    from nanochat.data.shards import MANIFEST, read_manifest
    from nanochat.paths import dataset_dir

    where = origin(dataset)
    if asked == -1:
        if where.last is None:
            raise UsageError(f"-n -1 (all shards) is only possible for {', '.join(KNOWN)}", "say how many, as in -n 16")
        return where.last
    if asked is not None:
        return asked
    folder = dataset_dir(where.folder)
    return max(len(read_manifest(folder).training), 1) if (folder / MANIFEST).exists() else DEFAULT


def limit_rate(limit: str | None) -> None:
    """Let the downloads of this process take `limit` bytes a second together ("2M"). Raises UsageError."""
    if limit:
        from nanochat.hub.transfer import LIMIT, parse_rate

        parse_rate(limit)
        os.environ[LIMIT] = limit
