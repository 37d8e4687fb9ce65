"""Commands that make a model: train, quickstart, tokenizer, identity."""

from pathlib import Path
from typing import Annotated

import typer

from nanochat.cli.options import FLAGS, Profile, Trial, fields_help, relaunch, run_config
from nanochat.config import build_config, parse_flags
from nanochat.console import confirm, show
from nanochat.errors import UsageError

QUICKSTART_RUN = "quickstart"

app = typer.Typer()


@app.command(context_settings=FLAGS, epilog=fields_help())
def train(
    context: typer.Context,
    profile: Profile = "auto",
    trial: Trial = False,
    stage: Annotated[str, typer.Option(help="base, sft, rl, or all: base and sft, and rl if --rl_iterations is given")] = "all",
) -> None:
    """Train a model, from the plan to the report.

    Plan, download what is missing, pretrain, fine-tune, evaluate. The same command again resumes.
    """
    if stage not in ("base", "sft", "rl", "all"):
        raise UsageError(f"stage {stage!r} is unknown", "one of: base, sft, rl, all")
    config = run_config(profile, trial, context.args)
    stages = (stage,) if stage != "all" else ("base", "sft", *(["rl"] if config.rl_iterations != -1 else []))
    from nanochat.pipeline.train import train as run

    raise typer.Exit(run(config, stages, relaunch()))


@app.command(context_settings=FLAGS)
def quickstart(context: typer.Context) -> None:
    """Train a small model here, offline, in minutes.

    From nothing to a chat with no network and no GPU: the embedded text, a score on held-out questions, three answers.
    """
    config = build_config("cpu", False, {"run": QUICKSTART_RUN} | parse_flags(context.args))
    from nanochat.pipeline.train import train as run

    code = run(config, relaunch=relaunch())
    if code == 0 and confirm("Chat with the model now?"):
        from nanochat.cli.model import chat

        chat(run=config.run)
    raise typer.Exit(code)


@app.command(context_settings=FLAGS)
def tokenizer(context: typer.Context, profile: Profile = "auto") -> None:
    """Train a run's tokenizer and print its directory.

    It is the one that `train` with the same options would use.
    """
    config = run_config(profile, False, context.args)
    from nanochat.pipeline.prepare import prepare_tokenizer

    show(str(prepare_tokenizer(config)))


@app.command()
def identity(
    file: Annotated[Path | None, typer.Argument(help="TOML of name, maker, languages and traits; default: the published ones")] = None,
    out: Annotated[Path | None, typer.Option(help="jsonl file to write; default: beside the TOML")] = None,
) -> None:
    """Make conversations that teach who the model is.

    From a TOML file (`train --identity` does the same); without one the published conversations are downloaded.
    """
    if file is None:
        from nanochat.data.published.sets import ensure_identity

        show(str(ensure_identity()))
        return
    from nanochat.data.embedded import identity as who

    path = out or file.with_suffix(".jsonl")
    who.write_conversations(path, who.conversations(who.read_identity(file)))
    show(str(path))
