"""Options that several commands share, and a run's config from its options.

A command declares its own options with Typer. The options of a run's config are declared once, as `nanochat.config.FIELDS`, and their only
parser is `parse_flags`, which gets what Typer does not know (`submit` and scripts.base_train use it too).
"""

import sys
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from nanochat.cli.help import Command, Group
from nanochat.config import PROFILE_NAMES, TEXT_RULES, Config, build_config, load_profile, parse_flags
from nanochat.console import log
from nanochat.errors import UsageError, did_you_mean

FLAGS = {"allow_extra_args": True, "ignore_unknown_options": True}  # of a command that also takes the options of a run's config
ALSO_CONFIG = "Also takes the config options of a run: `nanochat train --help` lists them."  # the epilog of such a command
MACHINE = ("device_batch_size", "nproc_per_node")  # a profile's settings of the machine; with --from all others are the source's


def _profiles(incomplete: str) -> list[str]:
    """Completions of a profile's name."""
    return [name for name in ("auto", *PROFILE_NAMES) if name.startswith(incomplete)]


def _runs(incomplete: str) -> list[str]:
    """Completions of a run's name."""
    from nanochat.paths import runs_dir

    return sorted(folder.name for folder in runs_dir().glob(f"{incomplete}*") if folder.is_dir())


def _device(value: str) -> str:
    """The device, checked as a config's. Raises UsageError."""
    return Config(device=value).device


Profile = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        autocompletion=_profiles,
        help="Profile: cpu, t4, rtx4050, rtx4090 (also for a 3090), speedrun, h100x8; auto: by this machine's GPUs",
    ),
]
Trial = Annotated[bool, typer.Option("--trial", help="Short test run of the profile, about two minutes")]
Run = Annotated[str | None, typer.Option(metavar="NAME", autocompletion=_runs, help="Name of the run; without it, the newest")]
Device = Annotated[str, typer.Option(metavar="auto|cuda|cpu", callback=_device, help="Device; auto: the GPU if there is one")]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object on stdout")]


class Commands(typer.Typer):
    """Commands whose help is in sections."""

    def command(self, name: str | None = None, **settings: Any) -> Any:
        """Register a command, as Typer does, of the class `Command` unless another is given."""
        return super().command(name, **{"cls": Command, **settings})


def application(help: str | None = None, completion: bool = False) -> Commands:
    """An application that is started by itself: plain text, -h for --help."""
    return Commands(
        help=help,
        cls=Group,
        add_completion=completion,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
        context_settings={"help_option_names": ["-h", "--help"]},
    )


def run_config(profile: str, trial: bool, arguments: list[str], stage: str = "all") -> Config:
    """The profile's values, replaced by the flags given; with `--from` the values of the run that it names instead of the profile's."""
    overrides = parse_flags(arguments)
    if not overrides.get("from_run"):
        return _profile_config(profile, trial, overrides)
    if trial:
        raise UsageError("--trial is a run of its own, and --from continues another", "leave out --trial")
    from nanochat.pipeline.mirrored import fetch_source
    from nanochat.runs.origin import config_from

    fetch_source(overrides["from_run"], str(overrides.get("run", "auto")), str(overrides.get("mirror", "")))
    text: dict[str, Any] = {name: overrides[name] for name in ("data", "dataset") if name in overrides}
    machine = {} if profile == "auto" else {name: value for name, value in load_profile(profile).items() if name in MACHINE}
    return config_from(overrides["from_run"], overrides, stage, machine, lambda: _profile_config(profile, trial, text))


def _profile_config(profile: str, trial: bool, overrides: dict[str, Any]) -> Config:
    """The profile's values, replaced by `overrides`. With another text, the cpu profile's vocabulary and steps are auto."""
    if profile == "auto":
        from nanochat.planning.hardware import detect_profile

        profile = detect_profile()
        log(f"auto: profile = {profile} (for this machine's GPUs)")
    config = build_config(profile, trial, overrides)
    if config.profile == "cpu" and not trial:
        from nanochat.data.source import Embedded, text_source

        if not isinstance(text_source(config), Embedded):
            config = build_config(profile, trial, TEXT_RULES | overrides)
    return config


def require_choice(option: str, value: str, known: Sequence[str]) -> str:
    """`value`, which is one of the `known`. Raises UsageError."""
    if value not in known:
        raise UsageError(f"unknown value in {option}={value}", did_you_mean(value, known))
    return value


def require_terminal(hint: str) -> None:
    """Raise UsageError with `hint` if nobody can be asked to confirm."""
    if not sys.stdin.isatty():
        raise UsageError("cannot ask for confirmation: stdin is not a terminal", hint)


def relaunch() -> list[str]:
    """This same command, after the interpreter: for worker processes."""
    return ["-m", "nanochat", *sys.argv[1:]]
