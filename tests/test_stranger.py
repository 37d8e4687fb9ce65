"""A stranger's path: each README and the guides after it executed from top to bottom, in a fresh checkout with an empty home."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from nanochat.data.published.origins import KNOWN
from nanochat.data.published.sets import TASKS, TESTS
from nanochat.data.shards import shard_name
from tests import stranger, tiny
from tests.evaluation.bundle import chat_rows, write_bundle
from tests.fake_hub import Hub, parquet
from tests.test_readme import ROOT, blocks

pytestmark = pytest.mark.slow
STANDING = ("bash", "sh", "env", "cp", "cat", "awk", "find", "touch", "dirname")  # what shells and make need of a system
PROGRAMS = ("nanochat", "python", "torchrun", "make", "docker", "sudo", "git", "uv")
INSTALLED = ("nanochat", "python")  # which come with the installation, as .venv/bin/activate does
PAGES = (
    "README",
    *(f"docs/guides/{page}" for page in ("train", "your-text", "evaluate", "export", "reinforcement-learning")),
    "docs/from-the-guide",
)


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    """A hub on this machine with all that the pages download, small."""
    served, text = Hub(), tiny.sentences(tmp_path / "shard.txt", 40_000).read_text()
    shard = {"text": text.split("\n\n")}
    talk = [{"role": "user", "content": "你好"}, {"role": "assistant", "content": "你好，我是助手。"}]
    question = {"question": "What is red?", "choices": ["a", "b", "c", "d"], "answer": 1, "subject": "colours"}
    climbmix = KNOWN["climbmix"]
    served.files[climbmix.repo] = {name: parquet("", **shard) for name in map(shard_name, (*range(20), climbmix.last))}
    served.files[KNOWN["fineweb-edu"].repo] = {name: parquet("", **shard) for name in map(shard_name, (0, 1, KNOWN["fineweb-edu"].last))}
    for repo, folder in (
        ("botp/yentinglin-zh_TW_c4", "data"),
        ("HPLT/HPLT2.0_cleaned", "zho_Hant"),
        ("liswei/Taiwan-Text-Excellence-2B", "data"),
    ):
        served.files[repo] = {f"{folder}/train-{number}.parquet": parquet("", **shard) for number in range(3)}
    sets = {
        "smol-smoltalk": {"messages": [talk] * 40},
        "mmlu": {"train": [question] * 8},
        "gsm8k": {"question": ["2*3?"] * 8, "answer": ["It is <<2*3=6>>6.\n#### 6"] * 8},
    }
    for name, columns in sets.items():
        served.files.setdefault(TASKS[name].repo, {})[f"{TASKS[name].prefix}0.parquet"] = parquet("", **columns)
    served.files["yentinglin/TaiwanChat"] = {"data/train-0.parquet": parquet("", messages=[talk] * 40)}
    for name, data in chat_rows().items():
        served.files.setdefault(TESTS[name].repo, {})[f"{TESTS[name].prefix}0.parquet"] = data
    write_bundle(tmp_path / "bundle" / "eval_bundle")
    served.assets["/eval_bundle.zip"] = Path(shutil.make_archive(str(tmp_path / "b"), "zip", tmp_path / "bundle")).read_bytes()
    served.assets["/identity_conversations.jsonl"] = "".join(json.dumps(talk, ensure_ascii=False) + "\n" for _ in range(20)).encode()
    for repo in served.files:
        served.assets[f"/api/datasets/{repo}"] = json.dumps({"cardData": {"license": "cc-by-4.0"}}).encode()
    yield served
    served.server.shutdown()
    served.server.server_close()


class Machine:
    """A checkout in a fresh folder, as `make install` leaves it, and an empty home; programs are those of tests/stranger.py."""

    def __init__(self, folder: Path, hub: str = "http://127.0.0.1:9"):
        self.checkout, self.home, self.record = folder / "checkout", folder / "home", folder / "record"
        self.home.mkdir(parents=True)
        listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True)
        for name in listed.stdout.splitlines():
            if (ROOT / name).is_file():
                (self.checkout / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, self.checkout / name)
        programs, standing = self.checkout / ".venv" / "bin", folder / "bin"
        programs.mkdir(parents=True)
        standing.mkdir()
        for name in STANDING:
            (standing / name).symlink_to(shutil.which(name) or f"/missing/{name}")
        for name in PROGRAMS:
            path = programs / name
            path.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{ROOT / "tests" / "stranger.py"}" {name} "$@"\n')
            path.chmod(0o755)
            if name not in INSTALLED:
                shutil.copy2(path, standing / name)
        (programs / "activate").write_text(f'PATH="{programs}:$PATH"\n')
        (self.checkout / ".venv" / ".installed").touch()
        kept = {name: os.environ[name] for name in ("LANG", "TERM") if name in os.environ}
        self.environment = kept | {
            "PATH": str(standing),
            "HOME": str(self.home),
            "NANOCHAT_BASE_DIR": str(self.home / ".cache" / "nanochat"),
            "STRANGER": str(self.record),
            "STRANGERS_PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "HF_ENDPOINT": hub,
            "NANOCHAT_ASSET_URL": hub,
            "NO_COLOR": "1",
            "OMP_NUM_THREADS": "1",
            "PYTHONUNBUFFERED": "1",
        }

    def execute(self, block: str, timeout: float = 600) -> "subprocess.CompletedProcess[str]":
        """A block as one shell does it that ends with the first command that fails."""
        command = [shutil.which("bash") or "bash", "-eu", "-o", "pipefail", "-c", block]
        where = {"cwd": self.checkout, "env": self.environment, "stdin": subprocess.DEVNULL}
        return subprocess.run(command, **where, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=timeout)

    def done(self) -> list[dict[str, object]]:
        """What became of each command so far."""
        return [json.loads(line) for line in self.record.read_text(encoding="utf-8").splitlines()] if self.record.exists() else []


def example(page: str, language: str) -> str:
    """The one block of `language` in a page."""
    (block,) = re.findall(rf"```{language}\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), re.S)
    return str(block)


def test_the_blocks_of_the_pages(tmp_path: Path, hub: Hub) -> None:
    """Those of the English pages; the Chinese ones have the same commands, which tests/test_readme.py holds."""
    pytest.importorskip("transformers")
    from tests.export.foreign_model import write_qwen3

    end = ".md"
    machine = Machine(tmp_path / "machine", hub.url)
    (machine.home / "my-texts").mkdir()  # a directory of texts and a file of conversations are the reader's own
    tiny.sentences(machine.home / "my-texts" / "one.txt")
    tiny.chats(machine.checkout / "talks.jsonl")
    (machine.checkout / "who.toml").write_text(example(f"docs/guides/your-text{end}", "toml"), encoding="utf-8")
    (machine.checkout / "token.txt").write_text("hf_token\n", encoding="utf-8")
    (machine.home / "more-text").mkdir()
    tiny.sentences(machine.home / "more-text" / "two.txt")
    problems = "".join(json.dumps({"question": f"{number} + 1?", "answer": str(number + 1)}) + "\n" for number in range(40))
    (machine.checkout / "problems.jsonl").write_text(problems, encoding="utf-8")
    (machine.checkout / "questions.jsonl").write_text(example(f"docs/guides/evaluate{end}", "json"), encoding="utf-8")
    write_qwen3(machine.checkout / "path" / "to" / "Qwen3-0.6B")
    for block in [block for page in PAGES for block in blocks(page + end)]:
        before = len(machine.done())
        finished = machine.execute(block if ".venv/bin/activate" in block else f"[ ! -e .activated ] || . .venv/bin/activate\n{block}")
        assert finished.returncode == 0, f"{block}\n{finished.stdout[-6000:]}"
        if ".venv/bin/activate" in block:
            (machine.checkout / ".activated").touch()  # the reader's shell stays as it is from one block to the next
        for entry in machine.done()[before:]:
            print(f"{entry['kind']:<45} {' '.join(entry['command'])}")
    kinds = [entry["kind"] for entry in machine.done()]
    assert {kind.partition(":")[0] for kind in kinds} >= {"done as written", "done with fewer steps", "dry run", "planned"}
    runs = machine.home / ".cache" / "nanochat" / "runs"
    assert all((run / "report.html").exists() for run in runs.iterdir() if run.name not in ("copy", "qwen"))  # which are imported
    names = ("quickstart", "rtx4050", "mine", "my-chat", "half-hour", "small", "formosa", "with-rl", "p", "copy", "d4")
    there = {run.name for run in runs.iterdir()}
    assert set(names) <= there and "rtx4050-trial" not in there  # which the guide removes


@pytest.mark.parametrize(
    "command",
    [
        *("curl -O x", "pip install x", "rm -rf x", "sudo make install", "make dance", "docker run x"),
        *("python x.py", "python entrypoint.py dance", "nanochat dance", "python -m scripts.dance"),
    ],
)
def test_a_command_that_no_rule_knows_fails(command: str, tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    finished = machine.execute(f". .venv/bin/activate\n{command}")
    assert finished.returncode in (127, stranger.UNKNOWN), finished.stdout
    assert machine.done() == []
