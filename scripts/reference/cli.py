"""docs/reference/cli.md: every command with its options, and the config options by group, from the parser."""

from collections.abc import Iterator
from typing import Any

import typer

from nanochat.cli.app import app
from nanochat.cli.help import GLOBAL, PANELS, Entry, config_sections, first_line, paragraphs, sections
from scripts.reference.catalog import Language
from scripts.reference.markdown import page, switch, table

NAME = "cli"
SHARED = ("help", "verbose", "quiet")  # shown once for all commands


def document(language: Language) -> str:
    """The page in a language."""

    def say(text: str) -> str:
        return language.page(NAME, text)

    root = typer.main.get_command(app)
    leaves = sorted(_leaves(root, _context(root)), key=lambda leaf: PANELS.index(root.commands[leaf[0].split()[1]].rich_help_panel))
    parts = [
        say("Every command and option. `nanochat` alone lists the commands, and `nanochat COMMAND --help` the options of one."),
        say(
            "An option takes its value after a space or `=`, and dashes and underscores are the same in its name: `--max-seq-len 512` is "
            "`--max_seq_len=512`. Exit codes are in [exit-codes.md](exit-codes.md), environment variables in [settings.md](settings.md)."
        ),
        f"## {say('Commands')}",
        *_overview(root, say),
        f"## {say(GLOBAL)}",
        say("Every command takes `--verbose`, `--quiet` and `--help`. The others are for `nanochat` itself."),
        table([say("option"), say("meaning")], _rows(_shared(root), say)),
        *(part for path, command, context in leaves for part in _command(path, command, context, say)),
        f"## {say('Config options')}",
        say(
            "Options of `nanochat train` and of the commands that refer to it. The values of each profile are in "
            "[profiles.md](profiles.md#values). `auto` (also -1) is replaced by a value that the run prints and stores."
        ),
        *(
            part
            for section in config_sections("")
            for part in (f"### {say(section.title)}", table([say("option"), say("meaning")], _rows(section.entries, say)))
        ),
        f"## {say('Shell completion')}",
        say(
            "`nanochat --install-completion` adds completion of commands, options, profiles and runs to bash, zsh, fish or PowerShell. It "
            "works in the next shell. `nanochat --show-completion` prints the script instead."
        ),
    ]
    return page(say("Command line"), "the parser in nanochat/cli/", switch(NAME, language.suffix), parts)


def _context(root: Any) -> typer.Context:
    return typer.Context(root, info_name="nanochat", help_option_names=["-h", "--help"])


def _leaves(command: Any, context: Any) -> Iterator[tuple[str, Any, Any]]:
    """Every command that does something: how it is typed, the command, its context."""
    for name, child in command.commands.items():
        inner = typer.Context(child, info_name=name, parent=context)
        if getattr(child, "invoke_without_command", True):  # a command, or a group that is one too
            yield inner.command_path, child, inner
        if hasattr(child, "commands"):
            yield from _leaves(child, inner)


def _overview(root: Any, say: Any) -> Iterator[str]:
    """The commands by their groups, each with a link."""
    rows = []
    for section in sections(root, _context(root)):
        for entry in section.entries:
            command = root.commands.get(entry.key)
            if command is None:
                continue
            children = getattr(command, "commands", None)
            links = [f"[`{entry.names}`](#nanochat-{entry.key})"]
            if children:
                links = links if command.invoke_without_command else []
                links += [f"[`{entry.key} {name}`](#nanochat-{entry.key}-{name})" for name in children]
            rows.append((say(section.title), ", ".join(links), say(first_line(command))))
    yield table([say("group"), say("command"), say("what it does")], rows)


def _shared(root: Any) -> list[Entry]:
    found = sections(root, _context(root))
    return next(section for section in found if section.title == GLOBAL).entries


def _command(path: str, command: Any, context: Any, say: Any) -> Iterator[str]:
    """One command's heading, text and options."""
    yield f"## {path}"
    for paragraph in paragraphs(command):
        yield say(paragraph)
    for section in sections(command, context):
        if section.title == "Commands":
            continue
        entries = [entry for entry in section.entries if entry.key not in SHARED]
        if entries:
            if section.title not in ("Arguments", "Options", GLOBAL):
                yield f"**{say(section.title)}**"
            yield table([say("argument" if section.title == "Arguments" else "option"), say("meaning")], _rows(entries, say))
    if command.epilog:
        yield say(command.epilog)


def _rows(entries: list[Entry], say: Any) -> Iterator[tuple[str, str]]:
    for entry in entries:
        note, _, value = entry.note.partition(": ")
        template = f"{{help}} ({note}: {{value}})" if value else f"{{help}} ({note})" if note else "{help}"
        yield f"`{entry.names}`", say(template).format(help=say(entry.help), value=f"`{value}`")
