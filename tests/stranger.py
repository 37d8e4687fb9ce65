"""What the commands of a README's block become where a test executes it: one rule for each kind of command.

    python stranger.py NAME ARGUMENT...    in place of the program NAME, in the folder of a fresh checkout

Each command is done as it is written, or as little of it as shows that it works: fewer steps (by flags that are put behind its own), a
miniature on the CPU of what a card would train, a dry run of what needs root, the network or a cluster. A command that no rule knows ends
with UNKNOWN. What became of each is written into the file $STRANGER, a line {command, kind} each.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

UNKNOWN = 97
STEPS = ("--num_iterations=20", "--sft_iterations=4", "--eval_tokens=1024")
SHAPE = ("--depth=2", "--aspect_ratio=16", "--head_dim=16", "--max_seq_len=64", "--device_batch_size=2", "--total_batch_size=128")
MINIATURE = (
    *STEPS,
    *SHAPE,
    "--vocab_size=300",
    "--core_metric_max_per_task=4",
    "--device=cpu",
    "--compile=off",
    "--hours=0",
    "--nproc_per_node=1",
)
REINFORCED = ("--rl_iterations=2", "--rl_examples_per_step=2", "--rl_num_samples=2", "--rl_max_new_tokens=16", "--rl_eval_examples=4")
HOURS = "--hours=0.01"
DOWNLOADED = ("--shards=2",)
IMAGE = "registry.example/nanochat@sha256:" + 64 * "0"
DONE_AS_WRITTEN = ("plan", "eval", "report", "runs", "chat", "export", "import", "identity", "tokenizer", "download", "disk")
READ_ONLY = "read by its parser: it needs {}"  # by tests/test_readme.py, which has every command of the README
TARGETS = ("test", "check", "test-slow", "test-containers", "test-browser", "lint", "docs", "bench", "lock", "clean")  # not run, only read


def value(words: Sequence[str], flag: str) -> str:
    """What stands behind `--flag` or after `--flag=`; "" where it is not given."""
    for word, following in zip(words, [*words[1:], ""], strict=True):
        if word == flag:
            return following
        if word.startswith(f"{flag}="):
            return word.partition("=")[2]
    return ""


def without(words: Sequence[str], *flags: str) -> list[str]:
    """`words` without these flags and their values, written `--flag value` or `--flag=value`."""
    kept: list[str] = []
    for before, word in zip(["", *words], words, strict=False):
        if before not in flags and word.partition("=")[0] not in flags:
            kept.append(word)
    return kept


def train(words: list[str]) -> tuple[str, list[list[str]]]:
    """`train` or `quickstart`, with its arguments."""
    profile = value(words, "--profile")
    if source := value(words, "--from"):
        fewer = REINFORCED if value(words, "--stage") == "rl" else STEPS
        return f"done from {source} with fewer steps", [[*words, *fewer]]
    if words[0] == "train" and profile not in ("", "auto", "cpu"):  # what a card would do: its plan, and the same small, without the card
        plan = ["plan", *without(words[1:], "--stage")]
        few = DOWNLOADED if "--trial" not in words else ()
        reinforced = REINFORCED if value(words, "--stage") == "rl" or value(words, "--rl_iterations") else ()
        return "planned, then done in miniature on the CPU", [plan, [*words, *MINIATURE, *few, *reinforced]]
    shorter = HOURS if value(words, "--hours") else STEPS
    here = ["--profile=cpu"] if words[0] == "train" else []  # auto would take the card of this machine, if it has one
    return "done with fewer steps", [[*words, *here, *([shorter] if isinstance(shorter, str) else shorter)]]


def entrypoint(words: list[str]) -> tuple[str, list[list[str]]]:
    """The arguments of `nanochat` -> the kind, and the arguments that it is called with, one call after the other."""
    command = words[0]
    if command == "serve":
        return READ_ONLY.format("a browser"), []
    if value(words, "--log_to"):
        return READ_ONLY.format("a package of its own"), []
    if command == "export" and value(words, "--mirror").startswith("s3:"):
        return READ_ONLY.format("a store of its own"), []
    if command in ("train", "quickstart"):
        return train(words)
    if command == "doctor":
        return "done; what it finds is this machine's", [words]
    if words[:2] == ["submit", "k8s"]:
        return "dry run", [[*words, *([] if "--dry-run" in words else ["--dry-run"])]]
    if words[:2] == ["runs", "rm"] or (command == "disk" and "--prune" in words):
        return "done without asking", [[*words, "--yes"]]
    if command == "submit":
        return READ_ONLY.format("a cluster"), []
    if command in DONE_AS_WRITTEN:
        return "done as written", [words]
    raise LookupError(command)


def rule(words: list[str]) -> tuple[str, list[list[str]]]:
    """A command -> its kind, and the commands that are run for it. Raises LookupError where there is no rule."""
    program, rest = words[0], words[1:]
    if program == "nanochat" or (program == "python" and rest[:1] == ["entrypoint.py"]):
        command = rest[program == "python" :]
        if command[:2] == ["runs", "unpack"]:
            elsewhere = f"NANOCHAT_BASE_DIR={os.environ['NANOCHAT_BASE_DIR']}-elsewhere"
            return "done in the data directory of another machine", [["/usr/bin/env", elsewhere, sys.executable, "entrypoint.py", *command]]
        kind, calls = entrypoint(command)
        return kind, [[sys.executable, "entrypoint.py", *call] for call in calls]
    if program == "python" and rest[:2] == ["-m", "nanochat.dataset"]:
        return "done as written", [[sys.executable, *rest]]
    if program == "python" and rest[:2] == ["-m", "scripts.base_train"]:
        return "done with fewer steps", [[sys.executable, *rest, *STEPS, *DOWNLOADED, "--device=cpu"]]
    if program == "torchrun" and "scripts.base_train" in rest:
        flags = rest[rest.index("scripts.base_train") + 1 :]
        return "planned", [[sys.executable, "entrypoint.py", "plan", "--profile=h100x8", "--card=H100", *flags]]
    if program == "make" and rest == ["quickstart"]:
        return "done with fewer steps", [["/usr/bin/make", *rest]]  # it calls .venv/bin/python, and so this file again
    if program == "make" and rest[:1] in (["install"], *([name] for name in TARGETS)):
        return "dry run", [["/usr/bin/make", "--dry-run", *rest]]
    if program == "docker" and rest[:1] == ["compose"]:
        if not _has_compose():
            return READ_ONLY.format("docker compose"), []
        return "its files read by compose", [["docker", "compose", "config", "--quiet"]]
    if program == "uv" or [program, *rest[:1]] in (["git", "clone"], ["sudo", "apt-get"]):
        return READ_ONLY.format("the network"), []
    raise LookupError(program)


def _has_compose() -> bool:
    """Whether the machine's docker, where there is one, knows compose."""
    docker = shutil.which("docker", path=os.environ.get("STRANGERS_PATH"))
    return docker is not None and subprocess.run([docker, "compose", "version"], capture_output=True).returncode == 0


def placeholders(words: list[str], runs: Sequence[str]) -> list[str]:
    """Words in capitals stand for something of the reader's."""
    real = {"REF": IMAGE, "NAME": "nanochat", "my-run": "my-chat", "new.jsonl": "talks.jsonl"} | dict(
        zip(("RUN", "OTHER"), runs, strict=False)
    )
    return [real.get(word, word) for word in words]


def main(words: list[str]) -> int:
    """Do the command; its exit code."""
    runs = sorted(path.name for path in (Path(os.environ["NANOCHAT_BASE_DIR"]) / "runs").glob("*"))
    try:
        kind, calls = rule(placeholders(words, runs))
    except LookupError as unknown:
        print(f"no rule for {unknown} in: {' '.join(words)}", file=sys.stderr)
        return UNKNOWN
    with Path(os.environ["STRANGER"]).open("a", encoding="utf-8") as file:
        file.write(json.dumps({"command": words, "kind": kind}) + "\n")
    path = os.environ["STRANGERS_PATH"]  # with the true programs
    for call in calls:
        code = subprocess.run(call, env=os.environ | {"PATH": path} if call[0] == "docker" else None).returncode
        if code and not (code == 3 and "doctor" in words):
            return code
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
