"""Commands that check before a run starts: plan, doctor."""

import dataclasses
from typing import Annotated

import typer

from nanochat.cli.options import ALSO_CONFIG, FLAGS, AsJson, Commands, Profile, Trial, run_config
from nanochat.console import log, show, show_json

app = Commands()


@app.command(context_settings=FLAGS, rich_help_panel="Start", epilog=ALSO_CONFIG)
def plan(
    context: typer.Context,
    profile: Profile = "auto",
    trial: Trial = False,
    card: Annotated[str, typer.Option(metavar="GPU", help="GPU to plan for instead of this machine's, as in 4070 or A100")] = "",
    price: Annotated[float, typer.Option(metavar="DOLLARS", help="Rent per GPU and hour; 0: what is known of the GPU")] = 0.0,
    as_json: AsJson = False,
) -> None:
    """Show what a run would need and take.

    Prints parameters, tokens, memory, time, disk space, download and cost, and whether the run fits. Trains nothing.
    """
    from nanochat.data.source import text_source
    from nanochat.hardware.gpu_specs import profile_for, require_spec
    from nanochat.planning.autosize import decide
    from nanochat.planning.describe import describe
    from nanochat.planning.hardware import choose_hardware, gpu_hardware
    from nanochat.planning.rules import normal

    if card and profile == "auto":
        spec = require_spec(card)
        profile = profile_for(1, spec.memory, float16=not spec.bf16)
        log(f"auto: profile = {profile} (for the memory of {require_spec(card).name})")
    config = normal(run_config(profile, trial, context.args))
    if card:
        config = config.replace(device="cuda")
    machine = gpu_hardware(require_spec(card), config.nproc_per_node) if card else choose_hardware(config)
    machine = dataclasses.replace(machine, dollars=price) if price else machine
    _, made = decide(config, machine, text_bytes=text_source(config).text_bytes())
    show_json(made.to_dict()) if as_json else show(describe(made), hanging=10)


@app.command(context_settings=FLAGS, rich_help_panel="Start", epilog=ALSO_CONFIG)
def doctor(
    context: typer.Context,
    profile: Profile = "auto",
    trial: Trial = False,
    gpus: Annotated[bool, typer.Option("--gpus", help="Also ten seconds of work on each GPU, and an all-reduce between them")] = False,
    as_json: AsJson = False,
) -> None:
    """Check this machine for problems.

    Lists what would make a run fail or slow, each with a fix. The exit code is 3 if the run would fail.
    """
    from nanochat.doctor.checks import examine
    from nanochat.doctor.findings import describe, healthy, to_json
    from nanochat.hardware.machine import this_machine
    from nanochat.planning.plan import make_plan
    from nanochat.planning.rules import resolve

    asked = run_config(profile, trial, context.args)
    config = resolve(asked)
    findings = examine(config, make_plan(config, this_machine(config.device)), asked=asked.device)
    if gpus:
        from nanochat.doctor.gpus import check_gpus

        findings += check_gpus(config.device)
    show_json(to_json(findings)) if as_json else show(describe(findings), hanging=8)
    raise typer.Exit(0 if healthy(findings) else 3)
