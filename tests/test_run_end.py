"""The end of a run, killed at each of its writes or on a full disk: the next command finishes it, and asks nothing twice.

The run is tiny, with the embedded text's held-out questions. The slow tests take each moment, the others a few.
"""

import json
import re
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from nanochat.export import folder, importer
from nanochat.runs.record import open_model
from tests.export.random_model import random_model
from tests.tiny import MODEL, call

pytestmark = pytest.mark.long

TRAIN = [
    *("entrypoint.py", "train", "--verbose", "--profile=cpu", "--core_metric_max_per_task=0"),
    *(
        f"--{name}={value}"
        for name, value in (MODEL | {"max_seq_len": 64, "num_iterations": 2, "sft_iterations": 2, "run": "tiny"}).items()
    ),
]
REPORT = ["entrypoint.py", "report", "--run=tiny"]
REPORTS = ("report.json", "report.md", "report.html")
KILLED = -signal.SIGKILL
MOST_WRITES = 60


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data directory of a finished run."""
    base = tmp_path_factory.mktemp("finished") / "base"
    done = call(base, *TRAIN, timeout=600)
    assert done.returncode == 0, done.stderr
    return base


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Callable[..., Path]:
    """Makes a new copy of that directory, of which the run lacks some files."""

    def copy(*without: str, to: Path | None = None) -> Path:
        base = to or tmp_path / "copy"
        shutil.rmtree(base, ignore_errors=to is not None)
        shutil.copytree(finished, base, dirs_exist_ok=True)
        for name in without:
            (base / "runs/tiny" / name).unlink()
        return base

    (tmp_path / "copy").mkdir()
    return copy


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A directory on a disk of 32 MB."""
    place = tmp_path / "disk"
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=32m", "tmpfs", str(place)], capture_output=True, check=False).returncode:
        pytest.skip("a small disk needs a mount, which is not allowed here")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def has_summary(base: Path) -> bool:
    results = base / "runs/tiny/evaluation.json"
    return results.exists() and "summary" in json.loads(results.read_text(encoding="utf-8"))


def require_whole(base: Path, finished: Path) -> None:
    """The run has the scores and the report that it had at first, but for the time and the memory that it took."""
    found, first = (json.loads((place / "runs/tiny/report.json").read_text(encoding="utf-8")) for place in (base, finished))
    for name in ("scores", "samples", "bpb", "tokens", "flops", "stages", "curve", "config"):
        assert found[name] == first[name], name
    text, page = ((base / "runs/tiny" / name).read_text(encoding="utf-8") for name in REPORTS[1:])
    assert text.startswith("# tiny") and "small talk" in text and page.endswith("</html>\n") and "small talk" in page
    assert (base / "runs/tiny/heldout.jsonl").read_bytes() == (finished / "runs/tiny/heldout.jsonl").read_bytes()


def require_finished(base: Path, finished: Path, command: list[str]) -> None:
    """`command` ends well and leaves all of the end; the questions are asked again only where their answers were not kept."""
    kept = has_summary(base)
    done = call(base, *command, timeout=600)
    assert done.returncode == 0, done.stderr
    assert ("evaluating the trained model" in done.stderr) == (not kept and command == TRAIN), done.stderr
    require_whole(base, finished)
    again = call(base, *TRAIN, timeout=600)
    assert again.returncode == 0 and "is finished" in again.stderr and "writing the report again" not in again.stderr, again.stderr


def kill_at(base: Path, number: int, command: list[str]) -> int:
    """Run `command`, killed at its write of that number; its exit code."""
    return call(base, "tests/fault_at.py", f"kill:{number}", *command[1:], timeout=600).returncode


# ---- a file that is missing or damaged ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", REPORTS)
@pytest.mark.parametrize("damage", ["missing", "torn", "empty"])
def test_a_report_that_is_not_whole_is_written_again(copied: Callable[..., Path], finished: Path, name: str, damage: str) -> None:
    from nanochat.report.collect import has_report, write_report

    base = copied()
    path = base / "runs/tiny" / name
    assert has_report(path.parent)
    path.unlink() if damage == "missing" else path.write_bytes(path.read_bytes()[:-20] if damage == "torn" else b"")
    assert not has_report(path.parent)
    if (name, damage) in ((REPORTS[2], "missing"), (REPORTS[0], "torn")):  # the others would take the same way
        require_finished(base, finished, TRAIN)
    write_report(path.parent)
    assert has_report(path.parent)


# ---- killed -----------------------------------------------------------------------------------------------------------


def kill_points(copied: Callable[..., Path], finished: Path, command: list[str], numbers: range, *without: str) -> int:
    """Kill `command` at each of those writes; how many there were. After each, `train` ends the run."""
    for number in numbers:
        place = copied(*without, to=finished.parent / str(number))
        code = kill_at(place, number, command)
        if code == 0:
            return number - 1
        assert code == KILLED, code
        require_finished(place, finished, TRAIN)
        shutil.rmtree(place)
    return max(numbers)


def test_killed_where_a_report_is_half_there(copied: Callable[..., Path], finished: Path) -> None:
    # 1 the lock, 2-3 the questions, 4-5 the scores, 6-7 report.md, 8-9 report.html, 10-11 report.json: a file, then its folder synced
    for number, kept in ((4, False), (8, True), (10, True)):
        base = copied("evaluation.json", *REPORTS, to=finished.parent / str(number))
        assert kill_at(base, number, TRAIN) == KILLED
        assert has_summary(base) == kept and not (base / "runs/tiny/report.json").exists()
        require_finished(base, finished, TRAIN)


@pytest.mark.slow
@pytest.mark.parametrize("command", [TRAIN, REPORT], ids=["the end of train", "report"])
def test_killed_at_each_write(copied: Callable[..., Path], finished: Path, command: list[str]) -> None:
    without = ("evaluation.json", *REPORTS) if command == TRAIN else REPORTS
    points = kill_points(copied, finished, command, range(1, MOST_WRITES), *without)
    assert points == (11 if command == TRAIN else 6)


@pytest.mark.slow
def test_an_export_killed_at_each_write(copied: Callable[..., Path], tmp_path: Path) -> None:
    base, points = copied(), 0
    for number in range(1, MOST_WRITES):
        out = tmp_path / f"export-{number}"
        command = ["entrypoint.py", "export", "--to=hf", "--run=tiny", f"--out={out}"]
        code = kill_at(base, number, command)
        if code == 0:
            break
        assert code == KILLED
        points += 1
        if not out.exists():  # what is there is whole
            done = call(base, *command)
            assert done.returncode == 0, done.stderr
        done = call(base, "entrypoint.py", "import", str(out), f"--run=from-{number}")
        assert done.returncode == 0, done.stderr
    assert points >= 10


@pytest.mark.slow
def test_an_import_killed_at_each_write(copied: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base, out, points = copied(), tmp_path / "export", 0
    assert call(base, "entrypoint.py", "export", "--to=hf", "--run=tiny", f"--out={out}").returncode == 0
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(base))
    for number in range(1, MOST_WRITES):
        command = ["entrypoint.py", "import", str(out), f"--run=from-{number}"]
        code = kill_at(base, number, command)
        if code == 0:
            break
        assert code == KILLED
        points += 1
        appeared = (base / "runs" / f"from-{number}").exists()
        done = call(base, *command)
        assert done.returncode == (2 if appeared else 0), done.stderr  # what is there is whole, and is not imported twice
        assert open_model(f"from-{number}").chats
        shutil.rmtree(base / "tokenizer")  # so that each import writes one
    assert points >= 6


# ---- a full disk ------------------------------------------------------------------------------------------------------


def full_disk(copied: Callable[..., Path], finished: Path, disk: Path, room: int) -> int:
    """The end of the run with `room` bytes left from its first write on, then with more: the first exit code."""
    base = copied("evaluation.json", "heldout.jsonl", *REPORTS, to=disk)
    ended = call(base, "tests/fault_at.py", f"room:{room}", *TRAIN[1:], timeout=600)
    assert ended.returncode in (0, 3), ended.stderr
    if ended.returncode:
        assert "error: the disk is full while" in ended.stderr and "Traceback" not in ended.stderr
        (disk / "filler").unlink()
        require_finished(base, finished, TRAIN)
    return ended.returncode


def fill_at(base: Path, number: int, command: list[str]) -> tuple[int, bool]:
    """Run `command` on a disk that is full after its write of that number: its exit code, and whether it had so many writes.

    Where it fails, it says that the disk is full, or is refused before it begins. The disk has room again afterwards.
    """
    done = call(base, "tests/fault_at.py", f"full:{number}", *command[1:], timeout=600)
    (base / "filler").unlink(missing_ok=True)
    assert done.returncode in (0, 3) and "Traceback" not in done.stderr, done.stderr
    if done.returncode:
        full = re.findall(r"^error: (?:the disk is full while|0 MB free in|.*, and 0B are free in) .*$", done.stderr, re.MULTILINE)
        assert len(full) == 1, done.stderr
        assert done.stderr.count("hint: ") == 1, done.stderr
    (writes,) = re.findall(r"^fsyncs: (\d+)$", done.stderr, re.MULTILINE)
    return done.returncode, number <= int(writes)


def empty(disk: Path) -> None:
    for path in disk.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def test_a_disk_that_is_full_at_the_report(small_disk: Path, copied: Callable[..., Path], finished: Path) -> None:
    assert full_disk(copied, finished, small_disk, 80 << 10) == 3


@pytest.mark.slow
def test_a_disk_that_is_full_at_each_write(small_disk: Path, copied: Callable[..., Path], finished: Path) -> None:
    """Room for ever more of the end's files, until there is enough for all."""
    codes = []
    for room in (0, 16 << 10, 48 << 10, *range(56 << 10, 400 << 10, 4 << 10)):
        empty(small_disk)
        codes.append(full_disk(copied, finished, small_disk, room))
        if codes[-1] == 0:
            break
    assert codes[-1] == 0 and codes.count(3) >= 8, codes


@pytest.mark.slow
@pytest.mark.parametrize("command", [TRAIN, REPORT], ids=["the end of train", "report"])
def test_a_disk_that_is_full_after_each_write(small_disk: Path, copied: Callable[..., Path], finished: Path, command: list[str]) -> None:
    without, codes = ("evaluation.json", "heldout.jsonl", *REPORTS) if command == TRAIN else REPORTS, []
    for number in range(MOST_WRITES):
        empty(small_disk)
        code, more = fill_at(copied(*without, to=small_disk), number, command)
        if not more:
            break
        codes.append(code)
        require_finished(small_disk, finished, TRAIN)
    assert codes.count(3) >= (9 if command == TRAIN else 5), codes


@pytest.mark.slow
@pytest.mark.parametrize("to", ["hf", "gguf"])
def test_an_export_on_a_disk_that_is_full_after_each_write(
    small_disk: Path, copied: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, to: str
) -> None:
    base, run, codes = copied(to=small_disk), "tiny", []
    if to == "gguf":
        monkeypatch.setenv("NANOCHAT_BASE_DIR", str(base))
        folder.write_folder(random_model("qwen3", 1), tmp_path / "portable")
        run = importer.import_folder(tmp_path / "portable", "portable")
    for number in range(MOST_WRITES):
        out = small_disk / f"export-{number}"
        command = ["entrypoint.py", "export", f"--to={to}", f"--run={run}", f"--out={out}"]
        code, more = fill_at(base, number, command)
        if not more:
            break
        codes.append(code)
        assert out.exists() == (code == 0) and not list(small_disk.glob(".tmp-*"))
        if code:
            done = call(base, *command)
            assert done.returncode == 0, done.stderr
        if to == "hf":
            done = call(base, "entrypoint.py", "import", str(out), f"--run=from-{number}")
            assert done.returncode == 0, done.stderr
            shutil.rmtree(base / "runs" / f"from-{number}")
        shutil.rmtree(out)
    assert codes.count(3) >= (8 if to == "hf" else 1), codes  # model.gguf is not synced by itself: test_export_faults.py fills it midway


@pytest.mark.slow
def test_an_import_on_a_disk_that_is_full_after_each_write(
    small_disk: Path, copied: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, out, codes = copied(to=small_disk), tmp_path / "export", []
    assert call(base, "entrypoint.py", "export", "--to=hf", "--run=tiny", f"--out={out}").returncode == 0
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(base))
    for number in range(MOST_WRITES):
        shutil.rmtree(base / "tokenizer")  # so that each import writes one
        command = ["entrypoint.py", "import", str(out), f"--run=from-{number}"]
        code, more = fill_at(base, number, command)
        if not more:
            break
        codes.append(code)
        assert (base / "runs" / f"from-{number}").exists() == (code == 0) and not list((base / "runs").glob(".tmp-*"))
        if code:
            done = call(base, *command)
            assert done.returncode == 0, done.stderr
        assert open_model(f"from-{number}").chats
        shutil.rmtree(base / "runs" / f"from-{number}")
    assert codes.count(3) >= 6, codes
