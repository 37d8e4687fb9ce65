"""Each command of the READMEs, start pages and guides, read by the parser that would read it; the languages have the same commands."""

import os
import re
import shlex
import subprocess
import sys
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
FOLDERS = ("docs/start", "docs/guides")
PAGES = [
    *READMES,
    *sorted(str(path.relative_to(ROOT)) for folder in FOLDERS for path in (ROOT / folder).glob("*.md")),
    *sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs").glob("from-the-guide*.md")),
]
ENGLISH = [page for page in PAGES if not page.endswith(".zh-TW.md")]
NAMES = ("docker compose run", "docker compose run --rm nanochat", "nanochat import")  # a command's name alone, not a command
AS_IT_IS = {". .venv/bin/activate", ". ~/.cargo/env", "sudo apt-get update", "cd nanochat"}
AS_IT_IS |= {"git clone https://github.com/OWNER/REPOSITORY nanochat"}
DEBIAN = {"git", "make", "gcc", "cargo", "rustup", "python3-venv", "curl", "docker.io", "docker-cli", "docker-buildx", "docker-compose"}
# Programs of the reader's system: their lines are checked as shell, and what follows is not ours to parse.
SYSTEM = {
    "cat",
    "cd",
    "chmod",
    "cp",
    "curl",
    "echo",
    "explorer.exe",
    "export",
    "git",
    "gunzip",
    "kubectl",
    "ls",
    "mkdir",
    "nvidia-smi",
    "ollama",
}
SYSTEM |= {"lm_eval", "openssl", "python3", "rm", "rustup", "sbatch", "ssh", "sudo", "tar", "tensorboard", "trackio", "uname"}


def blocks(page: str) -> list[str]:
    """The shell blocks of a page."""
    return re.findall(r"```sh\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), re.S)


def commands(page: str) -> Iterator[str]:
    """One command after the other: without comments, continued lines joined, `a && b` as two."""
    for block in blocks(page):
        for line in block.replace("\\\n", " ").splitlines():
            for command in re.sub(r"(^|\s)#.*", "", line).split("&&"):
                if command.strip():
                    yield " ".join(command.split())


def inline(page: str) -> Iterator[str]:
    """Whole commands in the running text: those that leave nothing out, as COMMAND and ... do."""
    text = re.sub(r"^```.*?^```$", "", (ROOT / page).read_text(encoding="utf-8"), flags=re.M | re.S)
    for command in re.findall(r"`((?:nanochat|docker compose|make) [^`\n]+)`", text):
        if "..." not in command and "COMMAND" not in command and command not in NAMES:
            yield command


def parse_command(words: list[str]) -> None:
    """Arguments of `nanochat`, by its own parser; where a run is configured, the config is built as well."""
    command, names = typer.main.get_command(app), []
    while hasattr(command, "commands"):
        if words[:1] == ["--help"] or (not words and command.invoke_without_command):
            return
        if names and command.invoke_without_command and not any(word in command.commands for word in words[:1]):
            break  # a group that does something itself, such as `runs`
        names.append(words[0])
        assert words[0] in command.commands, words
        command, words = command.commands[words[0]], words[1:]
    if "--help" in words:
        return
    context = command.make_context(" ".join(names), list(words), resilient_parsing=False)
    if hasattr(command, "commands"):
        return
    if context.args or "profile" in context.params:
        profile = context.params.get("profile") or "cpu"
        if profile == "auto":  # as on a machine that the arguments fit
            profile = "h100x8" if any(word.startswith("--nproc_per_node") for word in context.args) else "cpu"
        given = list(context.args)
        if "--from" in given:  # the run that it names is the reader's
            del given[given.index("--from") : given.index("--from") + 2]
        run_config(profile, bool(context.params.get("trial")), given)


def parse_python(words: list[str]) -> None:
    """`python ...`: the entrypoint, or a module of the guide's."""
    if words[0] == "entrypoint.py":
        parse_command(words[1:])
    elif words[:2] == ["-m", "nanochat.dataset"]:
        typer.main.get_command(module).make_context("nanochat.dataset", list(words[2:]))
    elif words[:2] == ["-m", "scripts.chat_web"]:
        parse_command(["serve", *words[2:]])
    else:
        assert words[:2] == ["-m", "scripts.base_train"], words
        assert (ROOT / "scripts" / "base_train.py").exists()
        configuration.Config(**configuration.parse_flags(words[2:]))


def services() -> set[str]:
    """The services of all compose files."""
    texts = [(ROOT / name).read_text(encoding="utf-8").replace("!reset", "") for name in ("docker-compose.yml", "docker-compose.webui.yml")]
    return {service for text in texts for service in yaml.load(text, yaml.SafeLoader)["services"]}


def parse_compose(words: list[str]) -> None:
    """`docker compose [-f FILE]... [--profile "*"] ACTION ...`: known files and services; after `run SERVICE` a command of `nanochat`."""
    while words[0] == "-f":
        assert (ROOT / words[1]).exists(), words
        words = words[2:]
    if words[:2] == ["--profile", "*"]:
        words = words[2:]
    action, *rest = words
    options = [word for word in rest if word.startswith("-")]
    if action == "run":
        rest = rest[rest[0] == "--rm" :]
        while rest[0] == "-v":
            assert rest[1].count(":") in (1, 2), rest
            rest = rest[2:]
        service, arguments = rest[0], rest[1:]
        assert service in services()
        parse_command(arguments if service == "nanochat" else [service, *arguments])
    elif action == "cp":
        assert rest[0].partition(":")[0] in services(), rest
    else:
        assert action in ("build", "up", "down", "logs", "stop", "pull", "version", "ps", "push"), words
        assert set(options) <= {"-d", "-f", "-v"}
        assert set(rest) - set(options) <= services()


def parse_torchrun(words: list[str]) -> None:
    """`torchrun ... -m scripts.base_train ...`, by torch's parser as our torchrun sets it."""
    from torch.distributed.run import get_args_parser

    parser = get_args_parser()
    parser.allow_abbrev = False
    found = parser.parse_args(words)
    parse_python(["-m", found.training_script, *found.training_script_args])


def parse_uv(words: list[str]) -> None:
    """`uv sync --extra gpu`, maturin through `uv run`, and the project as a tool (tests/test_wheel.py installs it)."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    if words[0] == "sync":
        assert words[1] == "--extra" and words[2] in project["optional-dependencies"]
        return
    if words[:2] == ["tool", "install"]:
        assert words[2] == "--find-links" and words[4:] == [project["name"]]
        return
    if words[:2] == ["pip", "install"]:
        return
    assert words[:3] == ["run", "maturin", "develop"]
    flags = subprocess.run(["maturin", "develop", "--help"], capture_output=True, text=True, check=True, env=environment()).stdout
    assert all(word in flags for word in words[3:] if word.startswith("--"))
    assert (ROOT / words[-1]).exists()


def environment() -> dict[str, str]:
    return os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "UV_SYSTEM_CERTS": "1"}


def parse(command: str) -> None:
    """Fails where nothing would understand the command, or where no test here knows its kind."""
    if command in AS_IT_IS:
        return
    words = shlex.split(command)
    while re.fullmatch(r"[A-Z_]+=.*", words[0]):  # VARIABLE=value in front of a command
        words = words[1:]
        if not words:
            return
    if command.startswith("sudo apt-get install -y "):
        assert set(words[4:]) <= DEBIAN
    elif words[0] == "make":
        subprocess.run(["make", "--dry-run", *words[1:]], cwd=ROOT, check=True, capture_output=True)
    elif words[0] == "nanochat":
        parse_command(words[1:])
    elif words[0] in ("python", "torchrun", "uv"):
        {"python": parse_python, "torchrun": parse_torchrun, "uv": parse_uv}[words[0]](words[1:])
    elif words[:2] == ["docker", "compose"]:
        parse_compose(words[2:])
    elif words[0] == "docker":
        assert words[1] in ("build", "push", "run", "tag", "system", "ps", "stop", "volume", "buildx"), words
    else:
        assert words[0] in SYSTEM, f"no test knows how to read {command!r}"
        assert words[0] != "cp" or (ROOT / words[1]).exists(), words


ALL = list(dict.fromkeys(command for page in PAGES for command in (*commands(page), *inline(page))))


@pytest.mark.parametrize("command", ALL)
def test_a_command_of_the_documents_is_understood(command: str) -> None:
    parse(command)


@pytest.mark.parametrize(
    "command",
    [
        *("nanochat trian", "nanochat chat --promt x", "nanochat train --profile cpu --dept 4", "python entrypoint.py trian"),
        *("docker compose run --rm trainer", "docker compose -f x.yml up", "cp trian x", "dd if=rm", "make trian"),
    ],
)
def test_what_nothing_understands_is_found(command: str) -> None:
    with pytest.raises(BaseException, match=r"(?i)trian|promt|trainer|dept|rm|x\.yml"):
        parse(command)


@pytest.mark.parametrize("page", PAGES)
def test_blocks_are_shell(page: str) -> None:
    for block in blocks(page):
        subprocess.run(["bash", "-n"], input=block, text=True, check=True, capture_output=True)


@pytest.mark.parametrize("page", PAGES)
def test_the_command_has_one_spelling(page: str) -> None:
    """`nanochat`; the README alone says that `python entrypoint.py` is the same."""
    text = (ROOT / page).read_text(encoding="utf-8")
    assert text.count("entrypoint.py") == (page in READMES)


@pytest.mark.parametrize("page", [page for page in ENGLISH if (ROOT / page.replace(".md", ".zh-TW.md")).exists()])
def test_both_languages_have_the_same_commands(page: str) -> None:
    assert list(commands(page)) == list(commands(page.replace(".md", ".zh-TW.md")))
