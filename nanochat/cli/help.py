"""Help texts: options in sections, the config's by group with a profile's values, laid out for terminals from 40 columns on."""

import dataclasses
import inspect
import shutil
import textwrap
from collections.abc import Iterator
from functools import cache
from typing import Annotated, Any

import typer
from typer.core import CompletionItem, TyperCommand, TyperGroup

from nanochat import console
from nanochat.cli.mistakes import unknown_command, unknown_option
from nanochat.config import FIELDS, GROUPS, UnknownOption, flag_name, load_profile, metavar, profile_name, shown
from nanochat.hardware.gpu_specs import find_spec, profile_for
from nanochat.hardware.nvml import read_driver

WIDEST = 100  # columns that a line takes, however wide the terminal is
STACKED_BELOW = 64  # columns: a narrower terminal gets an option's help text below it
LEFT = 28  # columns for an option at most; a longer one gets its help text below it
GLOBAL = "Global options"
PANELS = ("Start", "Train", "Data", "Use", "Inspect", "Cluster")  # the groups of commands, in order


@dataclasses.dataclass(frozen=True)
class Entry:
    """An option, argument or command in the help. `key` is its name without dashes, `names` as it is typed, with its metavar."""

    key: str
    names: str
    help: str
    note: str = ""  # default, or that it is required

    @property
    def text(self) -> str:
        """The help text with its note."""
        return f"{self.help} [{self.note}]" if self.note else self.help


@dataclasses.dataclass(frozen=True)
class Section:
    """Entries under a title, with an introduction."""

    title: str
    entries: list[Entry]
    introduction: str = ""


class Command(TyperCommand):
    """A command with the global options, whose help is in sections."""

    def __init__(self, *arguments: Any, **values: Any) -> None:
        super().__init__(*arguments, **values)
        self.params = [*self.params, *global_options()]

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Keep what was typed: the help of a command with a profile depends on it, and an error names it."""
        ctx.meta["arguments"] = list(args)
        try:
            return super().parse_args(ctx, args)
        except typer.TyperException as error:
            error.ctx = getattr(error, "ctx", None) or ctx  # type: ignore[attr-defined]
            raise

    def invoke(self, ctx: Any) -> Any:
        """Run the command; an option that it does not know is told with the one that was meant."""
        try:
            return super().invoke(ctx)
        except UnknownOption as error:
            raise unknown_option(error, ctx) from error

    def shell_complete(self, ctx: Any, incomplete: str) -> list[CompletionItem]:
        """Completions of an option, the config's among them where the command takes those."""
        found = super().shell_complete(ctx, incomplete)
        if incomplete.startswith("--") and self.context_settings.get("ignore_unknown_options"):
            typed, taken = incomplete.replace("-", "_"), {item.value for item in found}
            names = {f"--{flag_name(name)}": field for name, field in FIELDS.items() if f"__{flag_name(name)}".startswith(typed)}
            found += [CompletionItem(name, help=field.metadata["help"]) for name, field in names.items() if name not in taken]
        return found

    def get_help(self, ctx: Any) -> str:
        """The help text, as wide as the terminal."""
        return render(self, ctx, sections(self, ctx))


class ConfigCommand(Command):
    """A command whose help lists the options of a run's config as well."""

    def get_help(self, ctx: Any) -> str:
        """The help text, as wide as the terminal."""
        name, trial = chosen_profile(ctx.meta.get("arguments", []))
        *own, shared = sections(self, ctx)
        return render(self, ctx, [*own, *config_sections(name, trial), shared])


class Group(TyperGroup):
    """Commands, with the global options; without a command it shows its help, unless it does something itself."""

    def __init__(self, *arguments: Any, **values: Any) -> None:
        super().__init__(*arguments, **values)
        self.params = [*self.params, *global_options()]

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Without a command, ask for the help."""
        works = ctx.resilient_parsing or self.invoke_without_command
        return super().parse_args(ctx, args or ([] if works else ["--help"]))

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The command that the arguments begin with. Raises UsageError."""
        if args[0] not in self.commands and not ctx.resilient_parsing:
            raise unknown_command(args[0], ctx)
        return super().resolve_command(ctx, args)

    def get_help(self, ctx: Any) -> str:
        """The help text, as wide as the terminal."""
        return render(self, ctx, sections(self, ctx))


@cache
def global_options() -> list[Any]:
    """The parameters that every command has."""
    holder = typer.Typer(add_completion=False)

    @holder.command()
    def _options(
        verbose: Annotated[
            bool,
            typer.Option("--verbose", "-v", help="Details on stderr: automatic values, kernels, addresses", **_level(console.VERBOSE)),
        ] = False,
        quiet: Annotated[
            bool, typer.Option("--quiet", "-q", help="Warnings, errors and results only, without progress", **_level(console.QUIET))
        ] = False,
    ) -> None:
        pass

    return typer.main.get_command(holder).params


def _level(level: int) -> dict[str, Any]:
    """Parameters of an option that sets the level of messages."""

    def choose(value: bool) -> None:
        if value:
            console.set_level(level)

    return {"callback": choose, "expose_value": False, "is_eager": True, "show_default": False, "rich_help_panel": GLOBAL}


def sections(command: Any, ctx: Any) -> list[Section]:
    """The sections of a command's or group's help: arguments, options, global options, then commands by their panels."""
    found: dict[str, list[Entry]] = {"Arguments": [], "Options": []}
    for param in command.get_params(ctx):
        if not param.hidden:
            title = "Arguments" if param.param_type_name == "argument" else param.rich_help_panel or "Options"
            if param.name in ("help", "version", "install_completion", "show_completion"):
                title = GLOBAL
            found.setdefault(title, []).append(_entry(param, ctx))
    found[GLOBAL] = found.pop(GLOBAL, [])  # last
    commands: dict[str, list[Entry]] = {panel: [] for panel in PANELS}
    for name, child in getattr(command, "commands", {}).items():
        if not child.hidden:
            commands.setdefault(child.rich_help_panel or "Commands", []).append(Entry(name, name, first_line(child)))
    return [Section(title, entries) for title, entries in {**commands, **found}.items() if entries]


def first_line(command: Any) -> str:
    """The first line of a command's help, without its full stop."""
    return inspect.cleandoc(command.help or "").partition("\n")[0].removesuffix(".")


def paragraphs(command: Any) -> list[str]:
    """The paragraphs of a command's help, each on one line."""
    return [" ".join(part.split()) for part in inspect.cleandoc(command.help or "").split("\n\n")]


def _entry(param: Any, ctx: Any) -> Entry:
    """The entry of an option or argument."""
    if param.param_type_name == "argument":
        names = param.metavar or param.name.upper()
        names = names if param.required else f"[{names}]"
    else:
        # An underscored spelling is accepted for each dashed one, and not shown.
        kept = [option for option in (*param.opts, *param.secondary_opts) if option.replace("_", "-") == option or "-" not in option[2:]]
        kept = [option for option in kept if "_" not in option]
        names = ", ".join(sorted(kept, key=len))
        names += "" if param.is_flag else f" {param.metavar or 'TEXT'}"
    default = param.get_default(ctx, call=False)
    note = "required" if param.required else ""
    if param.show_default and default is not False and default not in (None, "", (), []) and param.name != "help":
        note = f"default: {default:g}" if isinstance(default, float) else f"default: {'on' if default is True else default}"
    help = (param.help or "").removesuffix(".")
    return Entry(param.name, names, "Show this help" if param.name == "help" else help, note)


def config_sections(profile: str, trial: bool = False) -> list[Section]:
    """A section for each group of the config's fields, with the values of `profile` as defaults ("": those of no profile)."""
    values = {name: declared.default for name, declared in FIELDS.items()} | (load_profile(profile, trial) if profile else {})
    found = []
    for title, group in GROUPS.items():
        names = [name for name in group.__annotations__ if name not in ("profile", "trial", "shape")]  # nobody types a shape
        found.append(Section(f"{title} options", [_field_entry(name, values[name]) for name in names]))
    whose = f"the profile {profile}{', trial' if trial else ''}" if profile else "no profile"
    more = "`nanochat train --profile NAME --help` shows those of another."
    opening = f"Defaults are those of {whose}. {more} Dashes and underscores are the same in an option's name."
    found[0] = dataclasses.replace(found[0], introduction=opening)
    return found


def _field_entry(name: str, value: Any) -> Entry:
    about = FIELDS[name].metadata
    help = f"{about['help']}; auto: {about['auto']}" if about["auto"] else about["help"]
    default = shown(name, value)
    return Entry(name, f"--{flag_name(name)} {metavar(name)}".rstrip(), help, f"default: {default}" if default else "")


def chosen_profile(arguments: list[str]) -> tuple[str, bool]:
    """The profile that a command line names ("auto" and none: by this machine's GPUs), and whether it is a trial. Raises UsageError."""
    name = "auto"
    for index, argument in enumerate(arguments):
        key, equals, value = argument.partition("=")
        if key == "--profile":
            name = value if equals else (arguments[index + 1] if index + 1 < len(arguments) else name)
    if name in ("auto", "--help", "-h"):
        gpus = getattr(read_driver(), "gpus", ())  # by the driver alone: importing torch takes seconds
        spec = find_spec(gpus[0].name) if gpus else None
        float16 = spec is not None and not spec.bf16
        return profile_for(len(gpus), gpus[0].total if gpus else 0, float16=float16), "--trial" in arguments
    return profile_name(name), "--trial" in arguments


def usage(command: Any, ctx: Any) -> str:
    """Usage of a command: its name, arguments and options."""
    if hasattr(command, "commands"):
        return f"{ctx.command_path} COMMAND [OPTIONS]"
    arguments = [param for param in command.params if param.param_type_name == "argument"]
    names = [param.metavar or param.name.upper() for param in arguments]
    typed = [name if param.required else f"[{name}]" for name, param in zip(names, arguments, strict=True)]
    return " ".join([ctx.command_path, *typed, "[OPTIONS]"])


def render(command: Any, ctx: Any, parts: list[Section]) -> str:
    """A command's help as text."""
    return layout(usage(command, ctx), paragraphs(command), parts, command.epilog or "")


def layout(usage: str, paragraphs: list[str], parts: list[Section], epilog: str = "") -> str:
    """A help text, as wide as the terminal."""
    width = max(min(shutil.get_terminal_size().columns, WIDEST), 20)
    blocks = [_wrapped(f"Usage: {usage}", width, hanging=4)]
    blocks += [_wrapped(paragraph, width) for paragraph in paragraphs]
    column = min(max(len(entry.names) for section in parts for entry in section.entries), LEFT) + 4
    blocks += ["\n".join(_section_lines(section, width, column)) for section in parts]
    return "\n\n".join(blocks + ([_wrapped(epilog, width)] if epilog else []))


def _section_lines(section: Section, width: int, column: int) -> Iterator[str]:
    """A section's lines: in two columns, the second one from `column` on, or with the help text below where the terminal is narrow."""
    yield f"{section.title}:"
    if section.introduction:
        yield _wrapped(section.introduction, width, indent=2)
    for entry in section.entries:
        if width < STACKED_BELOW:
            yield _wrapped(entry.names, width, indent=2, hanging=4)
            yield _wrapped(entry.text, width, indent=6)
            continue
        text = _wrapped(entry.text, width, indent=column)
        if len(entry.names) + 4 > column:
            yield f"  {entry.names}"
            yield text
        else:
            yield f"  {entry.names}".ljust(column) + text[column:]


def _wrapped(text: str, width: int, indent: int = 0, hanging: int = 0) -> str:
    margin = " " * indent
    return textwrap.fill(
        console.runnable(text),
        width,
        initial_indent=margin,
        subsequent_indent=margin + " " * hanging,
        break_on_hyphens=False,
        break_long_words=False,
    )
