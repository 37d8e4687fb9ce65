"""Every command of both READMEs is parsed by the very parser that would read it; commands for a GPU or the network go no further."""

import re
import shlex
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer.main
import yaml

from nanochat import config as configuration
from nanochat.cli.app import app
from nanochat.cli.dataset import module
from nanochat.cli.options import run_config

ROOT = Path(__file__).resolve().parent.parent
READMES = ("README.md", "README.zh-TW.md")
AS_IT_IS = {"SUDO=$(command -v sudo || true)", ". .venv/bin/activate", "$SUDO apt-get update"}
DEBIAN = {"make", "gcc", "cargo", "python3-venv"}


def blocks(readme: str) -> list[str]:
    """The shell blocks of a README."""
    return re.findall(r"```sh\n(.*?)```", (ROOT / readme).read_text(encoding="utf-8"), re.S)


def commands(readme: str) -> Iterator[str]:
    """One command after the other: comments gone, continued lines joined, `a && b` taken apart."""
    for block in blocks(readme):
        for line in block.replace("\\\n", " ").splitlines():
            for command in re.sub(r"(^|\s)#.*", "", line).split("&&"):
                if command.strip():
                    yield " ".join(command.split())


def parse_command(words: list[str]) -> None:
    """Arguments of entrypoint.py, by its own parser; where a run is configured, the config is built as well."""
    command, names = typer.main.get_command(app), []
    while hasattr(command, "commands"):
        names.append(words[0])
        assert words[0] in command.commands, words
        command, words = command.commands[words[0]], words[1:]
    context = command.make_context(" ".join(names), list(words), resilient_parsing=False)
    if context.args or "profile" in context.params:
        profile = context.params.get("profile") or "cpu"
        run_config("cpu" if profile == "auto" else profile, bool(context.params.get("trial")), context.args)


def parse_python(words: list[str]) -> None:
    """`python ...`: the entrypoint, or a module of the guide's."""
    if words[0] == "entrypoint.py":
        parse_command(words[1:])
    elif words[:2] == ["-m", "nanochat.dataset"]:
        typer.main.get_command(module).make_context("nanochat.dataset", list(words[2:]))
    else:
        assert words[:2] == ["-m", "scripts.base_train"], words
        assert (ROOT / "scripts" / "base_train.py").exists()
        configuration.Config(**configuration.parse_flags(words[2:]))


def parse_compose(words: list[str]) -> None:
    """`docker compose ...`: known service, and what follows it is an entrypoint command."""
    services = yaml.load((ROOT / "docker-compose.yml").read_text(encoding="utf-8").replace("!reset", ""), yaml.SafeLoader)["services"]
    action, *rest = words
    options = [word for word in rest if word.startswith("-")]
    if action == "run":
        assert rest[0] == "--rm"
        service, arguments = rest[1], rest[2:]
        assert service in services
        parse_command(arguments if service == "nanochat" else [service, *arguments])
    else:
        assert action in ("build", "up", "down", "logs", "stop"), words
        assert set(options) <= {"-d", "-f"}
        assert set(rest) - set(options) <= set(services)


def parse_torchrun(words: list[str]) -> None:
    """`torchrun ... -m scripts.base_train ...`, by torch's parser as our torchrun sets it."""
    from torch.distributed.run import get_args_parser

    parser = get_args_parser()
    parser.allow_abbrev = False
    found = parser.parse_args(words)
    parse_python(["-m", found.training_script, *found.training_script_args])


def parse_uv(words: list[str]) -> None:
    """`uv sync --extra gpu` and maturin through `uv run`."""
    if words[0] == "sync":
        extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
        assert words[1] == "--extra" and words[2] in extras
        return
    assert words[:3] == ["run", "maturin", "develop"]
    flags = subprocess.run(["maturin", "develop", "--help"], capture_output=True, text=True, check=True, env=environment()).stdout
    assert all(word in flags for word in words[3:] if word.startswith("--"))
    assert (ROOT / words[-1]).exists()


def environment() -> dict[str, str]:
    import os
    import sys

    return os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "UV_SYSTEM_CERTS": "1"}


def parse(command: str) -> None:
    """Fails where nothing would understand the command, or where no test here knows its kind."""
    if command in AS_IT_IS:
        return
    words = shlex.split(command)
    if command.startswith("$SUDO apt-get install -y "):
        assert set(words[4:]) <= DEBIAN
    elif words[0] == "make":
        subprocess.run(["make", "--dry-run", *words[1:]], cwd=ROOT, check=True, capture_output=True)
    elif words[0] in ("python", "torchrun", "uv"):
        {"python": parse_python, "torchrun": parse_torchrun, "uv": parse_uv}[words[0]](words[1:])
    elif words[:2] == ["docker", "compose"]:
        parse_compose(words[2:])
    else:
        assert words[0] == "cp" and (ROOT / words[1]).exists(), f"no test knows how to read {command!r}"


ALL = list(dict.fromkeys(command for readme in READMES for command in commands(readme)))


@pytest.mark.parametrize("command", ALL)
def test_a_command_of_the_readme_is_understood(command: str) -> None:
    parse(command)


@pytest.mark.parametrize("command", ["python entrypoint.py trian", "python entrypoint.py chat --promt x", "docker compose run --rm trainer",
                                     "python entrypoint.py train --profile cpu --dept 4", "rm -rf x"])  # fmt: skip
def test_what_nothing_understands_is_found(command: str) -> None:
    with pytest.raises(BaseException, match=r"(?i)trian|promt|trainer|dept|rm"):
        parse(command)


@pytest.mark.parametrize("readme", READMES)
def test_blocks_are_shell(readme: str) -> None:
    for block in blocks(readme):
        subprocess.run(["bash", "-n"], input=block, text=True, check=True, capture_output=True)


def test_both_readmes_have_the_same_commands() -> None:
    english, chinese = (list(commands(readme)) for readme in READMES)
    assert english == chinese
