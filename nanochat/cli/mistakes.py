"""Mistakes on the command line as errors with a hint: the closest option or command, or the command that an option belongs to."""

import re
from collections.abc import Iterator
from typing import Any

from typer import TyperException

from nanochat.config import FIELDS, UnknownOption, flag_name
from nanochat.errors import UsageError, closest

SHOWN_OWNERS = 3  # commands that a hint names
EXPECTED = {"valid integer": "a whole number", "valid number": "a number"}  # in Typer's words and in ours


def usage_error(error: TyperException) -> UsageError:
    """Turn Typer's error into one that names the option and the value."""
    context = getattr(error, "ctx", None)
    what = "commands" if hasattr(getattr(context, "command", None), "commands") else "options"
    lists = f"`{context.command_path if context else 'nanochat'} --help` lists the {what}"
    if option := getattr(error, "option_name", None):
        if not hasattr(error, "possibilities"):
            return UsageError(f"{option} takes no value" if "does not take" in error.message else f"{option} needs a value", lists)
        return UsageError(f"unknown option {option}", _where(option.lstrip("-"), context) or lists)
    parameter = getattr(error, "param", None)
    if parameter is None:
        found = re.fullmatch(r"Got unexpected extra arguments?(?:\(s\))? \((.*)\)", error.message)
        return UsageError(f"unexpected argument {found[1]}" if found else error.message.rstrip("."), lists)
    typed = parameter.param_type_name == "option"
    name = max(parameter.opts, key=len) if typed else parameter.metavar or parameter.name.upper()
    if hasattr(error, "param_type"):
        return UsageError(f"{name} is missing", lists)
    value = _value(context.meta.get("arguments", []), parameter.opts) if typed and context else ""
    expected = next((plain for theirs, plain in EXPECTED.items() if theirs in error.message), "")
    why = f" is not {expected}" if expected else f": {error.message.rstrip('.')}"
    return UsageError(f"{name} {value}".rstrip() + why, lists)


def unknown_command(word: str, context: Any) -> UsageError:
    """A command that a group does not have."""
    close = closest(word, context.command.commands)
    hint = f"did you mean `{context.command_path} {close}`?" if close else f"`{context.command_path} --help` lists the commands"
    return UsageError(f"unknown command {word!r}", hint)


def unknown_option(error: UnknownOption, context: Any) -> UsageError:
    """An option that neither the command nor the config has; where no other program's name explains it, with what all commands have."""
    plain = error.hint.startswith(("did you mean", "`nanochat train"))
    hint = _where(error.name, context) if plain else ""
    return UsageError(error.message, hint) if hint else error


def _where(option: str, context: Any) -> str:
    """A hint for an option that a command lacks: the commands that have it, or the command's own option that is close; "" else."""
    name = option.replace("_", "-")
    fields = {flag_name(field).replace("_", "-"): flag_name(field) for field in FIELDS}
    owners = [path for path, command in _leaves(context.find_root().command, "nanochat") if name in _options(command)]
    if owners or name in fields:
        return f"--{name} is an option of {', '.join(f'`{path}`' for path in owners[:SHOWN_OWNERS]) or '`nanochat train`'}"
    known = _options(context.command) | (fields.keys() if context.command.context_settings.get("ignore_unknown_options") else set())
    close = closest(name, sorted(known))
    return f"did you mean --{fields.get(close, close)}?" if close else ""


def _leaves(command: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Every command below `command` that has no commands itself, with how it is typed."""
    children = getattr(command, "commands", None)
    if children is None:
        yield path, command
        return
    for name, child in children.items():
        yield from _leaves(child, f"{path} {name}")


def _options(command: Any) -> set[str]:
    """A command's long options without dashes in front."""
    return {text[2:].replace("_", "-") for param in command.params for text in (*param.opts, *param.secondary_opts) if text[:2] == "--"}


def _value(arguments: list[str], names: list[str]) -> str:
    """The value that was given for the option of these names."""
    for index, argument in enumerate(arguments):
        key, equals, value = argument.partition("=")
        if key in names:
            return value if equals else next(iter(arguments[index + 1 :]), "")
    return ""
