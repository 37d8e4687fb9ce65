"""Commands that download text: `download`, and `python -m nanochat.dataset` as in karpathy/nanochat."""

import os
from typing import TYPE_CHECKING, Annotated

import typer

from nanochat.cli.options import ALSO_CONFIG, FLAGS, Commands, Trial, application, run_config
from nanochat.console import show
from nanochat.errors import UsageError

if TYPE_CHECKING:
    from nanochat.data.shards import Dataset

DEFAULT = 8  # training shards, where -n is not given

Limit = Annotated[str | None, typer.Option(metavar="RATE", help="Most bytes per second, as in 500K or 2M")]
Verify = Annotated[bool, typer.Option("--verify", help="Hash every file again afterwards")]

DatasetName = Annotated[
    str | None,
    typer.Option(
        metavar="NAME", help="climbmix, fineweb-edu, zh-tw, hf:OWNER/NAME[/SUBSET][:COLUMN], or shares of several; without it, climbmix"
    ),
]

app = Commands()
module = application()  # of `python -m nanochat.dataset`


@app.command(context_settings=FLAGS, rich_help_panel="Data", epilog="With --for it a" + ALSO_CONFIG[1:])
def download(
    context: typer.Context,
    shards: Annotated[
        int | None, typer.Option("-n", "--shards", metavar="N", help="Training shards, besides the validation shard; -1: all")
    ] = None,
    dataset: DatasetName = None,
    profile: Annotated[
        str | None, typer.Option("--for", metavar="PROFILE", help="Download everything that this profile's run needs, to train offline")
    ] = None,
    trial: Trial = False,
    verify: Verify = False,
    limit: Limit = None,
    evaluation: Annotated[
        bool, typer.Option("--evaluation", help="Download the files of CORE, ARC, MMLU and GSM8K, for `nanochat eval`")
    ] = False,
) -> None:
    """Download training text, or all a run needs.

    Fetches training shards and the validation shard, or with --for everything that a profile's run needs. The same command again resumes.
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
            first = context.args[0]
            raise UsageError(
                f"{first} needs the run that it is for", f"`nanochat download --for cpu {first}` downloads for the profile cpu"
            )
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
        typer.Option("-n", "--num-files", "--num_files", "--shards", metavar="N", help="Training shards; -1: all"),
    ] = None,
    dataset: DatasetName = None,
    limit: Limit = None,
    verify: Verify = False,
) -> None:
    """Download training shards and the validation shard."""
    limit_rate(limit)
    found = have_shards(dataset or "climbmix", shards, verify)
    show(f"{len(found.training)} training shards and {found.validation.path.name} for validation in {found.folder}")


def have_shards(dataset: str, asked: int | None, check: bool = False) -> "Dataset":
    """The dataset with `asked` training shards (see `shards_wanted`), missing ones downloaded. With `check`, every file is hashed."""
    from nanochat.data.published.mixtures import ensure_mixture
    from nanochat.data.published.origins import is_mixture, mixture
    from nanochat.data.published.shards import ensure_shards
    from nanochat.data.shards import verify

    if is_mixture(dataset):
        if asked == -1:
            raise UsageError("-n -1 (all shards) is not possible for a mixture", "give a number of shards, as in -n 16")
        found = ensure_mixture(mixture(dataset), DEFAULT if asked is None else asked)
    else:
        found = ensure_shards(dataset, shards_wanted(dataset, asked))
    if check:
        verify(found)
    return found


def shards_wanted(dataset: str, asked: int | None) -> int:
    """Number of training shards to have: `asked` (-1: all), else as many as the manifest lists, else DEFAULT. Raises UsageError."""
    from nanochat.data.published.origins import KNOWN, origin
    from nanochat.data.shards import MANIFEST, read_manifest
    from nanochat.paths import dataset_dir

    where = origin(dataset)
    if asked == -1:
        if where.last is None:
            raise UsageError(f"-n -1 (all shards) is only possible for {', '.join(KNOWN)}", "give a number of shards, as in -n 16")
        return where.last
    if asked is not None:
        return asked
    folder = dataset_dir(where.folder)
    return max(len(read_manifest(folder).training), 1) if (folder / MANIFEST).exists() else DEFAULT


def limit_rate(limit: str | None) -> None:
    """Limit all downloads of this process together to `limit` bytes per second, such as "2M". Raises UsageError."""
    if limit:
        from nanochat.hub.transfer import LIMIT, parse_rate

        parse_rate(limit)
        os.environ[LIMIT] = limit
