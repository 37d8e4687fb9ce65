"""Commands on one run that are started at the same moment: one of each kind works, the others say why, and the run is as if alone."""

import os
import re
import shutil
import socket
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from nanochat.runs.checkpoint import verify
from tests import tiny

ROUNDS = int(os.environ.get("NANOCHAT_ROUNDS", 20))
STEPS = 60
OPTIONS = {"num_iterations": STEPS, "save_every": 1, "keep_last": 1}
Done = tuple[int, str]


class Begun:
    """A run that was stopped early, an exported folder of it, and the losses of one that was left alone."""

    def __init__(self, folder: Path):
        self.base, self.text, self.exported = folder / "base", tiny.sentences(folder / "text.txt"), folder / "exported"
        straight = tiny.call(self.base, "entrypoint.py", *self.flags("straight"), timeout=300)
        assert straight.returncode == 0, straight.stderr
        self.losses = tiny.losses(self.base, "straight")
        process = tiny.start(self.base, "entrypoint.py", *self.flags("tiny"))
        tiny.wait_for(process, "base step 1/")
        process.terminate()
        _, err = process.communicate(timeout=60)
        assert process.returncode == 75, err
        done = tiny.call(self.base, "entrypoint.py", "export", "--to=hf", f"--out={self.exported}", "--run=tiny")
        assert done.returncode == 0, done.stderr

    def flags(self, run: str) -> list[str]:
        return tiny.flags(self.text, run, **OPTIONS)


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Begun:
    return Begun(tmp_path_factory.mktemp("begun"))


def at_once(base: Path, *commands: list[str]) -> list[Done]:
    """The exit code and stderr of commands that are started together."""
    started: list[subprocess.Popen[str]] = [tiny.start(base, "entrypoint.py", *command) for command in commands]
    told = [process.communicate(timeout=300)[1] for process in started]
    assert all("Traceback" not in err for err in told), told
    return [(process.returncode, err) for process, err in zip(started, told, strict=True)]


def one_error(done: Done) -> str:
    (error,) = re.findall(r"^error: .*$", done[1], re.MULTILINE)
    assert re.search(r"^hint: .", done[1], re.MULTILINE)
    return str(error)


def trained(done: list[Done]) -> None:
    """Assert that one trained; the other was refused by the lock, or came so late that the run was finished."""
    codes = sorted(code for code, _ in done)
    assert codes in ([0, 3], [0, 0]), done
    for code, err in done:
        if code:
            where = rf"is in use: a training run, process \d+ on {re.escape(socket.gethostname())}"
            assert re.search(where, one_error((code, err))), err
    if codes == [0, 0]:
        assert sum("is finished" in err for _, err in done) == 1, done


def a_round(begun: Begun, folder: Path) -> list[str]:
    """Two trainings, an export and an import: of a run that was begun, then of a name that is new. Returns how they ended."""
    base, out = folder / "base", folder / "out"
    shutil.copytree(begun.base, base)
    train = begun.flags("tiny")
    export, import_ = ["export", "--to=hf", f"--out={out}", "--run=tiny"], ["import", str(begun.exported), "--run=tiny"]
    first, second, exported, imported = at_once(base, train, train, export, import_)
    trained([first, second])
    assert exported[0] == 0, exported
    again = tiny.call(base, "entrypoint.py", "import", str(out), "--run=again")
    assert again.returncode == 0, again.stderr
    assert imported[0] in (2, 3) and "tiny" in one_error(imported), imported
    whole(base, "tiny", begun)
    ended = [f"train {sorted((first[0], second[0]))}, export {exported[0]}, import {imported[0]}"]

    new = begun.flags("new")
    import_ = ["import", str(begun.exported), "--run=new"]
    first, second, imported = at_once(base, new, new, import_)
    if imported[0] == 0:
        for done in (first, second):
            assert done[0] in (2, 3) and re.search("was imported|is in use", one_error(done)), done
        assert not (base / "runs" / "new" / "metrics.jsonl").exists()
    else:
        assert imported[0] in (2, 3) and "new" in one_error(imported), imported
        trained([first, second])
        whole(base, "new", begun)
    shutil.rmtree(folder)
    return [*ended, f"new: train {sorted((first[0], second[0]))}, import {imported[0]}"]


def whole(base: Path, run: str, begun: Begun) -> None:
    """Assert that the run is as if it had been trained alone: every line, the last step, its report, and nothing else."""
    folder = base / "runs" / run
    assert tiny.losses(base, run) == begun.losses and len(begun.losses) == STEPS
    assert verify(folder / "base" / f"step_{STEPS:06d}").step == STEPS
    assert (folder / "report.html").exists() and not (folder / "lock").exists()


@pytest.mark.long
def test_two_trainings_an_export_and_an_import_at_once(begun: Begun, tmp_path: Path) -> None:
    for number in range(2):
        a_round(begun, tmp_path / str(number))


@pytest.mark.slow
def test_two_trainings_an_export_and_an_import_at_once_many_times(begun: Begun, tmp_path: Path) -> None:
    ended = Counter(each for number in range(ROUNDS) for each in a_round(begun, tmp_path / str(number)))
    print("\n".join(f"{count} x {each}" for each, count in ended.items()), file=sys.stderr)
