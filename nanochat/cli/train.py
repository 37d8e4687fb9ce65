"""Commands that train: train, quickstart, tokenizer, and identity, which writes conversations to fine-tune on."""

from pathlib import Path
from typing import Annotated

import typer

from nanochat.cli.help import ConfigCommand
from nanochat.cli.options import ALSO_CONFIG, FLAGS, Commands, Profile, Trial, relaunch, require_choice, run_config
from nanochat.config import build_config, flag_name, parse_flags
from nanochat.console import confirm, log, show
from nanochat.errors import UsageError
from nanochat.hardware.nvml import read_driver

QUICKSTART_RUN = "quickstart"
STAGES = ("base", "sft", "rl", "all")

app = Commands()


@app.command(context_settings=FLAGS, cls=ConfigCommand, rich_help_panel="Train")
def train(
    context: typer.Context,
    profile: Profile = "auto",
    trial: Trial = False,
    stage: Annotated[
        str,
        typer.Option(metavar="|".join(STAGES), help="Stage to train; all: base and sft, and rl with --rl_iterations or --problems"),
    ] = "all",
) -> None:
    """Train a model, from the plan to the report.

    Prints the plan, downloads missing data, pretrains, fine-tunes and evaluates. The same command again resumes an interrupted run.
    """
    require_choice("--stage", stage, STAGES)
    config = run_config(profile, trial, context.args, stage)
    stages = (stage,) if stage != "all" else ("base", "sft", *(["rl"] if config.rl_iterations != -1 or config.problems else []))
    from nanochat.pipeline.train import train as run

    raise typer.Exit(run(config, stages, relaunch()))


@app.command(context_settings=FLAGS, rich_help_panel="Start", epilog=ALSO_CONFIG)
def quickstart(context: typer.Context) -> None:
    """Train a small chat model offline in minutes.

    Uses the CPU and text that comes with the program, so it needs no network and no GPU. Prints the score on held-out questions and three
    answers.
    """
    overrides = parse_flags(context.args)
    for name in ("profile", "trial", "from_run"):
        if name in overrides:
            hint = "`nanochat train --help` lists the profiles"
            if name == "from_run":
                hint = f"`nanochat train --from {overrides[name]} --run NEW` begins with a trained model"
            raise UsageError(f"quickstart always trains the cpu profile, without --{flag_name(name)}", hint)
    config = build_config("cpu", False, {"run": QUICKSTART_RUN} | overrides)
    if config.device == "cpu" and (gpus := getattr(read_driver(), "gpus", ())):
        log(f"quickstart trains on the CPU and does not use the {gpus[0].name}; `nanochat train` does")
    from nanochat.pipeline.train import train as run

    code = run(config, relaunch=relaunch())
    if code == 0 and confirm("Chat with the model now?"):
        from nanochat.cli.model import chat

        chat(run=config.run)
    raise typer.Exit(code)


@app.command(context_settings=FLAGS, rich_help_panel="Train", epilog=ALSO_CONFIG)
def tokenizer(context: typer.Context, profile: Profile = "auto") -> None:
    """Train a run's tokenizer and print its path.

    `nanochat train` with the same options uses this tokenizer.
    """
    config = run_config(profile, False, context.args)
    from nanochat.pipeline.prepare import prepare_tokenizer

    show(str(prepare_tokenizer(config)))


@app.command(rich_help_panel="Data")
def identity(
    file: Annotated[
        Path | None, typer.Argument(metavar="FILE", help="TOML file with the model's name, maker, languages and traits")
    ] = None,
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="jsonl file to write; without it, beside the TOML file")] = None,
) -> None:
    """Write conversations about the model's identity.

    Makes them from a TOML file and prints the path of the jsonl file. `nanochat train --identity FILE` uses such a TOML file directly.
    Without FILE it downloads the conversations that karpathy/nanochat publishes.
    """
    if file is None:
        from nanochat.data.published.sets import ensure_identity

        show(str(ensure_identity()))
        return
    from nanochat.data.embedded import identity as who

    path = out or file.with_suffix(".jsonl")
    who.write_conversations(path, who.conversations(who.read_identity(file)))
    show(str(path))
