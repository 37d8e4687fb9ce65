"""What commands share: options, and a run's config from its flags.

A command declares its own options with Typer. The flags of a run's config are not declared again: they are `nanochat.config.FIELDS`, and
what Typer does not know goes to `parse_flags`, their only parser (`submit` and scripts.base_train take the same flags through it).
"""

import sys
from typing import Annotated, Any

import typer

from nanochat.config import FIELDS, FLAG_NAMES, TEXT_RULES, Config, build_config, load_profile, parse_flags
from nanochat.console import log
from nanochat.errors import UsageError

FLAGS = {"allow_extra_args": True, "ignore_unknown_options": True}  # of a command that also takes the flags of a run's config

MACHINE = ("device_batch_size", "nproc_per_node")  # what a profile says of a machine; with --from the rest is as the source had it

Profile = Annotated[str, typer.Option(help="cpu, rtx4050, rtx4090 (and 3090), h100x8, or auto: by this machine's GPUs")]
Trial = Annotated[bool, typer.Option("--trial", help="short test run for the GPU, about two minutes")]
Run = Annotated[str | None, typer.Option(help="name of the run; default: the newest")]
Device = Annotated[str, typer.Option(help="auto, cuda or cpu")]
AsJson = Annotated[bool, typer.Option("--json", help="one JSON object on stdout")]


def application(help: str | None = None) -> typer.Typer:
    """An application that is started by itself: plain text, -h for --help."""
    return typer.Typer(
        help=help,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
        context_settings={"help_option_names": ["-h", "--help"]},
    )


def fields_help() -> str:
    """A line for each flag of a run's config, for the end of a command's help."""
    lines = [
        f"--{FLAG_NAMES.get(name, name)}  {field.metadata['help']}  [{field.default}]"
        for name, field in FIELDS.items()
        if name not in ("profile", "trial")
    ]
    return "Config fields, with dashes or underscores:\n\n\b\n" + "\n".join(lines)


def run_config(profile: str, trial: bool, arguments: list[str], stage: str = "all") -> Config:
    """The profile's values with the flags on top; with `--from` the values of the run that it names."""
    overrides = parse_flags(arguments)
    if not overrides.get("from_run"):
        return _profile_config(profile, trial, overrides)
    if trial:
        raise UsageError("--trial is a run of its own, and --from continues another", "leave out --trial")
    from nanochat.runs.origin import config_from

    alone = {name: value for name, value in overrides.items() if name not in ("from_run", "num_iterations")}
    machine = {} if profile == "auto" else {name: value for name, value in load_profile(profile).items() if name in MACHINE}
    return config_from(overrides["from_run"], overrides, stage, machine, lambda: _profile_config(profile, trial, alone))


def _profile_config(profile: str, trial: bool, overrides: dict[str, Any]) -> Config:
    """The profile's values with `overrides` on top; of another text than the embedded one, vocabulary and length follow from it."""
    if profile == "auto":
        from nanochat.planning.hardware import detect_profile

        profile = detect_profile()
        log(f"profile: {profile}, by what this machine has")
    config = build_config(profile, trial, overrides)
    if config.profile == "cpu" and not trial:
        from nanochat.data.source import Embedded, text_source

        if not isinstance(text_source(config), Embedded):
            config = build_config(profile, trial, TEXT_RULES | overrides)
    return config


def relaunch() -> list[str]:
    """This same command, after the interpreter: for worker processes."""
    return ["-m", "nanochat", *sys.argv[1:]]
