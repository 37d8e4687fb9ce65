"""Mistakes on the command line: the option and its value are named, the hint has what was meant, and its command runs when pasted."""

import ast
import re
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest
import typer

from nanochat import console
from nanochat.cli import app as cli
from nanochat.cli.help import Group

PACKAGE = Path(cli.__file__).parents[1]
MISTAKES = [
    ("trian", "unknown command 'trian'", "did you mean `nanochat train`?"),
    ("frobnicate", "unknown command 'frobnicate'", "`nanochat --help` lists the commands"),
    ("submit k9s", "unknown command 'k9s'", "did you mean `nanochat submit k8s`?"),
    ("train --profile cpu --limit 2M", "--limit", "--limit is an option of `nanochat download`"),
    ("train --profile cpu --top_k=3", "--top_k", "--top-k is an option of `nanochat chat`"),
    ("train --profile cpu --dry-run", "--dry_run", "--dry-run is an option of `nanochat submit k8s`"),
    ("train --profile cpu --stagee=sft", "--stagee", "did you mean --stage?"),
    ("train --profile cpu --dpth=3", "--dpth", "did you mean --depth?"),
    ("train --profile cpu --learning-speed=3", "--learning_speed", "`nanochat train --help` lists the options"),
    ("chat --depth 4", "unknown option --depth", "--depth is an option of `nanochat train`"),
    ("chat --temprature 3", "unknown option --temprature", "did you mean --temperature?"),
    ("serve --xyzzy", "unknown option --xyzzy", "`nanochat serve --help` lists the options"),
    ("--versoin", "unknown option --versoin", "did you mean --version?"),
    ("chat --top-k many", "--top-k many is not a whole number", "`nanochat chat --help`"),
    ("chat --temperature=hot", "--temperature hot is not a number", "`nanochat chat --help`"),
    ("chat --prompt", "--prompt needs a value", "`nanochat chat --help`"),
    ("serve --insecure-no-key=1", "--insecure-no-key takes no value", "`nanochat serve --help`"),
    ("chat hello", "unexpected argument hello", "`nanochat chat --help`"),
    ("import", "DIR is missing", "`nanochat import --help`"),
    ("export --to hf", "--out is missing", "`nanochat export --help`"),
    ("export --to gguff --out x", "--to=gguff", "did you mean gguf? one of: hf, gguf"),
    ("train --profile cpu --stage=slft", "--stage=slft", "did you mean sft?"),
    ("train --profile rtx4091", "unknown profile 'rtx4091'", "did you mean rtx4090?"),
    ("train --profile cpu --device=gpu", "--device=gpu", "one of: auto, cuda, cpu"),
    ("train --profile cpu --device=mps", "--device=mps is not supported: Apple GPUs are not used", "use --device=cpu"),
    ("chat --device mps", "--device=mps is not supported: Apple GPUs are not used", "use --device=cpu"),
    ("serve --device=gpu", "--device=gpu", "one of: auto, cuda, cpu"),
    ("train --profile cpu --depth=0", "--depth=0 is too small", "--depth takes a positive whole number"),
    ("train --profile cpu --shards=0", "--shards=0 is out of range", "or auto"),
    ("train --profile cpu --depth", "--depth needs a value", "for example --depth=20"),
    ("plan --card 4071", "unknown GPU '4071'", "did you mean 4070?"),
    ("quickstart --profile rtx4090", "without --profile", "`nanochat train --help`"),
    ("quickstart --trial", "without --trial", "`nanochat train --help`"),
    ("download --chat_data=x", "--chat_data=x", "`nanochat download --for cpu --chat_data=x`"),
    ("submit status", "NAME is missing", "`nanochat submit status nanochat-h100x8`"),
    ("submit status me --on slurm", "--on=slurm", "one of: k8s, runpod"),
    ("submit runpod --image x:1 --max-price=-1", "--max-price -1 is negative", "0 for no limit"),
]


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], base: Path) -> Any:
    """Runs a mistaken command line in this process; the error and the hint, after a check of exit code 2 and of nothing on stdout."""
    monkeypatch.setattr(console, "_level", console.NORMAL)
    monkeypatch.delenv("NANOCHAT_DEBUG", raising=False)
    console.command.cache_clear()
    monkeypatch.setenv("NANOCHAT_COMMAND", "nanochat")

    def told(line: str) -> tuple[str, str]:
        monkeypatch.setattr(sys, "argv", ["nanochat", *line.split()])
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, err = capfd.readouterr()
        lines = err.splitlines()
        assert (ended.value.code, out) == (2, "") and len(lines) >= 2, err
        assert lines[-2].startswith("error: ") and lines[-1].startswith("hint: "), err
        return lines[-2], lines[-1]

    yield told
    console.command.cache_clear()


@pytest.mark.parametrize(("line", "error", "hint"), MISTAKES, ids=[line for line, _, _ in MISTAKES])
def test_mistakes(line: str, error: str, hint: str, told: Any) -> None:
    said, advice = told(line)
    assert error in said and hint in advice
    for command in re.findall(r"`nanochat ([^`]*)`", advice):
        parse(shlex.split(command))


def parse(arguments: list[str]) -> None:
    """Fail unless the command line is one that exists, with options that the command has; nothing is run."""
    command: Any = typer.main.get_command(cli.app)
    context = typer.Context(command, info_name="nanochat")
    while isinstance(command, Group) and arguments and arguments[0] in command.commands:
        command = command.commands[arguments[0]]
        context, arguments = typer.Context(command, info_name=arguments[0], parent=context), arguments[1:]
    assert not isinstance(command, Group) or command.invoke_without_command or arguments in ([], ["--help"]), arguments
    for option in (text for text in arguments if text.startswith("--") and text != "--help"):
        known = {name for param in command.params for name in param.opts}
        assert option in known or command.context_settings.get("ignore_unknown_options"), option


def test_a_run_that_does_not_exist_has_a_name_that_is_close(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from nanochat.errors import DataError
    from nanochat.runs.names import RECORD
    from nanochat.runs.record import finished_steps

    with pytest.raises(DataError, match="no run 'quickstrat'") as raised:
        finished_steps("quickstrat")
    assert "`nanochat quickstart`" in raised.value.hint
    for name in ("quickstart", "mine"):
        (base / "runs" / name).mkdir(parents=True)
        (base / "runs" / name / RECORD).touch()
    with pytest.raises(DataError, match="no run 'quickstrat'") as raised:
        finished_steps("quickstrat")
    assert raised.value.hint == "did you mean quickstart? runs: mine, quickstart"


def written_commands() -> list[tuple[str, str]]:
    """Every command in backticks in the package's texts, with its file; what is filled in when it is printed is X."""
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                text = "".join(str(part.value) if isinstance(part, ast.Constant) else "X" for part in node.values)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                text = node.value
            else:
                continue
            found += [(str(path.relative_to(PACKAGE)), command) for command in re.findall(r"`nanochat ([^`.A-Z][^`]*)`", text)]
    return sorted(set(found))


@pytest.mark.parametrize(("place", "command"), written_commands(), ids=lambda text: text)
def test_commands_in_messages_exist(place: str, command: str) -> None:
    parse(shlex.split(command))
