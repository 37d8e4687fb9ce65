"""Training and chat in the environments that people have: odd paths and locales, no home, few files, one core, a read-only directory.

Each is a process with its own limits, in a copy of the package. The quick test has what can be combined at once; the slow ones each alone,
so that one cannot hide another.
"""

import dataclasses
import os
import resource
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.tiny import MODEL, ROOT, chats, environment, sentences

pytestmark = pytest.mark.long
ODD = "我的 資料 é'n"  # a blank, Chinese, an accent, a quotation mark
IN_A_MOUNT = ("unshare", "--mount", "sh", "-ec", 'mount -t tmpfs -o "$1" tmpfs "$2"; shift 2; exec "$@"', "sh")


@dataclasses.dataclass(frozen=True)
class Environment:
    """What differs from a usual process. {tmp} in a value stands for the test's directory."""

    variables: dict[str, str] = dataclasses.field(default_factory=dict)  # "" removes one
    limit: Callable[[], object] = lambda: None  # called in the new process
    folder: str = "{tmp}"  # the working directory
    place: str = "{tmp}/base"  # the data directory
    checkout: str = "{tmp}/checkout"
    mount: tuple[str, str] | None = None  # options and place of a tmpfs, in a mount namespace of its own
    stdin: bool = True


C_LOCALE = {"LC_ALL": "C", "LANG": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
BIG5 = {"LC_ALL": "zh_TW.BIG5", "LOCPATH": "{tmp}/locales", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


def one_core() -> None:
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})


def few_files() -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))


def all_limits() -> None:
    os.umask(0o077)
    one_core()
    few_files()


ALONE = {
    "odd names": Environment(place=f"{{tmp}}/{ODD}/base", checkout=f"{{tmp}}/{ODD}/checkout", folder=f"{{tmp}}/{ODD}"),
    "C locale": Environment(C_LOCALE),
    "C locale, odd names": Environment(C_LOCALE, place=f"{{tmp}}/{ODD}/base", checkout=f"{{tmp}}/{ODD}/checkout"),
    "Big5 locale": Environment(BIG5, place="{tmp}/資料"),
    "no home": Environment({"HOME": "", "XDG_CACHE_HOME": ""}),
    "home that does not exist": Environment({"HOME": "/nonexistent", "XDG_CACHE_HOME": ""}),
    "TMPDIR without exec": Environment({"TMPDIR": "{tmp}/mounted"}, mount=("noexec", "{tmp}/mounted")),
    "nothing with exec": Environment(
        {"HOME": "{tmp}/mounted", "TMPDIR": "{tmp}/mounted"}, place="{tmp}/mounted", mount=("noexec", "{tmp}/mounted")
    ),
    "umask 077": Environment(limit=lambda: os.umask(0o077)),
    "one core": Environment(limit=one_core),
    "few open files": Environment(limit=few_files),
    "closed stdin": Environment(stdin=False),
    "read-only working directory": Environment(folder="/proc"),
    "tmpfs": Environment(place="{tmp}/mounted", mount=("size=512m", "{tmp}/mounted")),
}
AT_ONCE = Environment(
    C_LOCALE | {"HOME": "", "XDG_CACHE_HOME": ""}, all_limits, "/proc", f"{{tmp}}/{ODD}/base", f"{{tmp}}/{ODD}/checkout", stdin=False
)


def mounts() -> bool:
    """Whether this process may mount in a namespace of its own."""
    return (
        bool(shutil.which("unshare"))
        and not subprocess.run([*IN_A_MOUNT, "size=1m", "/mnt", "true"], capture_output=True, check=False).returncode
    )


def run(tmp: Path, kind: Environment, *calls: list[str]) -> "subprocess.CompletedProcess[bytes]":
    """Run commands of a copy of the checkout one after another, in one mount namespace."""

    def filled(text: str) -> str:
        return text.replace("{tmp}", str(tmp))

    checkout = Path(filled(kind.checkout))
    for name in ("nanochat", "profiles"):
        shutil.copytree(ROOT / name, checkout / name, ignore=shutil.ignore_patterns("__pycache__"))
    entry = shutil.copy(ROOT / "entrypoint.py", checkout)
    variables = environment(Path(filled(kind.place))) | {key: filled(value) for key, value in kind.variables.items()}
    command = ["sh", "-ec", "\n".join(shlex.join([sys.executable, str(entry), *call]) for call in calls)]
    if kind.mount:
        options, place = kind.mount
        Path(filled(place)).mkdir()
        command = [*IN_A_MOUNT, options, filled(place), *command]

    def prepare() -> None:
        kind.limit()
        if not kind.stdin:
            os.close(0)

    given = {key: value for key, value in variables.items() if value}
    return subprocess.run(command, cwd=filled(kind.folder), env=given, capture_output=True, timeout=600, preexec_fn=prepare, check=False)


def trains_and_chats(tmp: Path, kind: Environment) -> str:
    """Train a few steps of both stages on files with an odd name, chat in both languages; returns what was said on stderr."""
    text, talks = sentences(tmp / f"{ODD}.txt", 60_000), chats(tmp / f"{ODD}.jsonl")
    options = MODEL | {"num_iterations": 3, "sft_iterations": 2, "run": "odd", "data": str(text), "chat_data": str(talks)}
    train = ["train", "--profile=cpu", *(f"--{name}={value}" for name, value in options.items())]
    chat = ["chat", "--run=odd", "--temperature=0", "--max-tokens=8", "--prompt", "你是誰？"]
    done = run(tmp, kind, train, chat, ["runs"])
    said = done.stderr.decode(errors="replace")
    assert done.returncode == 0, said + done.stdout.decode(errors="replace")
    assert "Traceback" not in said and b"odd" in done.stdout
    return said


def test_all_at_once(tmp_path: Path) -> None:
    (tmp_path / ODD).mkdir()
    said = trains_and_chats(tmp_path, AT_ONCE)
    assert "report: " in said


@pytest.mark.slow
@pytest.mark.parametrize("name", ALONE)
def test_alone(name: str, tmp_path: Path) -> None:
    kind = ALONE[name]
    if kind.mount and not mounts():
        pytest.skip("this process may not mount")
    if kind.variables.get("LC_ALL") == "zh_TW.BIG5":
        make = ["localedef", "-c", "-i", "zh_TW", "-f", "BIG5", str(tmp_path / "locales/zh_TW.BIG5")]
        (tmp_path / "locales").mkdir()
        if not shutil.which("localedef") or subprocess.run(make, capture_output=True, check=False).returncode:
            pytest.skip("this system cannot make the locale zh_TW.BIG5")
    (tmp_path / ODD).mkdir()
    said = trains_and_chats(tmp_path, kind)
    assert ("skipped: fused operations" in said) >= (name == "nothing with exec")  # a slower way is said
