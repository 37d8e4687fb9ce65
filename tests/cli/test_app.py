"""The command line: every mistake is one error, one hint and the right exit code; signals, processes, streams and help."""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from nanochat.cli import app as cli
from nanochat.errors import NanochatError, Preempted
from nanochat.pipeline import train as run
from nanochat.runs.heartbeat import read_heartbeat
from nanochat.tokenizer.tokenizer import Tokenizer
from tests.tiny import MODEL, ROOT, call, config, environment, flags, losses, sentences, start, wait_for

pytestmark = pytest.mark.long
COMMANDS = ("quickstart", "download", "identity", "tokenizer", "train", "eval", "chat", "plan", "report", "export", "import")


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sentences(tmp_path_factory.mktemp("text") / "text.txt")


def in_process(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of `nanochat ARGUMENTS`, in this process."""
    monkeypatch.setattr(sys, "argv", ["nanochat", *arguments])
    monkeypatch.delenv("NANOCHAT_DEBUG", raising=False)
    capfd.readouterr()
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return (int(ended.value.code or 0), *capfd.readouterr())


def told(err: str) -> tuple[str, str]:
    """The error and the hint: one line each, and no traceback."""
    lines = err.splitlines()
    errors, hints = ([line for line in lines if line.startswith(word)] for word in ("error: ", "hint: "))
    assert len(errors) == len(hints) == 1 and lines[-2:] == [*errors, *hints], err
    assert "Traceback" not in err
    return errors[0], hints[0]


# ---- mistakes -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "code", "error", "hint"),
    [
        ("train --profile cpu --model_dim=512", 2, "unknown config key model_dim", "the width follows from the depth: use --depth"),
        ("train --profile cpu --model-dim 512", 2, "unknown config key model_dim", "use --depth"),
        ("train --profile rtx9999", 2, "unknown profile 'rtx9999'", "cpu, t4, rtx4050, rtx4090, speedrun, h100x8, auto"),
        ("train --profile cpu --max_seq_len=256 --total_batch_size=1000", 2, "--total_batch_size=1000", "--total_batch_size=768 or 1024"),
        (
            "train --profile cpu --total-batch-size=4096 --max-seq-len=256 --device-batch-size=3",
            2,
            "does not divide",
            "may be 1, 2, 4, 8, 16;",
        ),
        ("train --profile cpu --stage=grpo", 2, "--stage", "base, sft, rl, all"),
        ("train --profile cpu --depth=x", 2, "--depth=x is not a whole number", "--depth=20"),
        ("train --profile cpu extra", 2, "unexpected argument 'extra'", "--"),
        ("train --profile", 2, "--profile", "--help"),
        ("plan --profile cpu --json --dephts=3", 2, "unknown config key dephts", "did you mean --depth?"),
        ("quickstart --run=a/b", 2, "is not a directory name", "--run"),
        ("trian", 2, "unknown command 'trian'", "nanochat train`"),
        ("chat --top-k many", 2, "--top-k many is not a whole number", "--help"),
        ("chat --prompt hi", 4, "no trained model yet", "quickstart"),
        ("chat --prompt hi --run nobody", 4, "no run 'nobody'", "nanochat quickstart`"),
        ("eval", 4, "no trained model yet", "quickstart"),
        ("report", 4, "no trained model yet", "quickstart"),
        ("export --to hf --out x", 4, "no trained model yet", "quickstart"),
        ("export --to onnx --out x", 2, "unknown", "hf, gguf"),
        ("import nothing", 4, "no directory nothing", "an export with --to hf"),
        ("import .", 4, "not an export", "config.json"),
        ("report --run nobody", 4, "no run in", "--run"),
    ],
)
def test_mistakes(
    arguments: str, code: int, error: str, hint: str, base: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    found, out, err = in_process(monkeypatch, capfd, *arguments.split())
    said, advice = told(err)
    assert (found, out) == (code, "") and error in said and hint in advice
    assert not (base / "runs").exists()


def broken(folder: Path, kind: str) -> Path:
    """A path whose text cannot be used."""
    table = pa.table({"other": list(range(100))})
    if kind == "a folder without text":
        (folder / "picture.png").write_bytes(b"\x89PNG")
        return folder
    path = folder / ("data.txt" if kind in ("an empty file", "blanks", "too little", "binary") else "data.parquet")
    if kind == "no such path":
        return folder / "nowhere"
    if kind == "a wrong field":
        path = folder / "data.jsonl"
        path.write_text('{"other": 1}\n' * 100)
    elif kind == "no json":
        path = folder / "data.jsonl"
        path.write_text('{"text": "a text"}\nno json\n')
    elif kind == "a wrong column":
        pq.write_table(table, path)
    elif kind == "broken parquet":
        pq.write_table(table, path)
        path.write_bytes(path.read_bytes()[:-20])
    elif kind == "bytes in parquet":
        pq.write_table(pa.table({"text": [1, 2, 3]}), path)
    else:
        path.write_bytes({"an empty file": b"", "blanks": b" \n" * 20_000, "too little": b"short", "binary": os.urandom(50_000)}[kind])
    return path


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("a folder without text", "holds no file that can be read"),
        ("no such path", "does not exist"),
        ("an empty file", "empty"),
        ("blanks", "bytes of text"),
        ("too little", "too little to train on"),
        ("binary", "data.txt"),
        ("broken parquet", "cannot be read as parquet"),
        ("a wrong column", "its columns are: other"),
        ("bytes in parquet", "its columns are: text"),
        ("a wrong field", 'no field "text"'),
        ("no json", "data.jsonl:2 is not JSON"),
    ],
)
def test_text_that_cannot_be_used(
    kind: str, words: str, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "text"
    folder.mkdir()
    code, out, err = in_process(monkeypatch, capfd, *flags(broken(folder, kind)))
    assert words in told(err)[0] and (code, out) == (4, "")
    assert not (base / "runs").exists() and not list(base.glob("data/*"))


def test_a_base_folder_that_cannot_be_written(
    tmp_path: Path, text: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    for place in (tmp_path / "file", Path("/proc/nanochat")):
        monkeypatch.setenv("NANOCHAT_BASE_DIR", str(place))
        for command in (flags(text), ["tokenizer", *flags(text)[1:]]):
            code, _, err = in_process(monkeypatch, capfd, *command)
            error, hint = told(err)
            assert code == 3 and str(place) in error and "NANOCHAT_BASE_DIR" in hint


def raising(error: BaseException) -> Any:
    def command() -> int:
        raise error

    return command


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (OSError(28, "No space left on device", "/x/metrics.jsonl"), 3, "the disk is full"),
        (KeyError("depth"), 1, "KeyError: 'depth'"),
        (RuntimeError("two\nlines"), 1, "RuntimeError: two lines"),
    ],
    ids=["disk", "fault", "lines"],
)
def test_what_nobody_expected(
    error: Exception, code: int, words: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("NANOCHAT_DEBUG", raising=False)
    with pytest.raises(SystemExit) as ended:
        cli.run_and_exit(raising(error))
    assert ended.value.code == code and words in told(capfd.readouterr().err)[0]
    monkeypatch.setenv("NANOCHAT_DEBUG", "1")
    with pytest.raises((type(error), NanochatError)):
        cli.run_and_exit(raising(error))


def test_a_stop_is_no_error(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.delenv("NANOCHAT_DEBUG", raising=False)
    with pytest.raises(SystemExit) as ended:
        cli.run_and_exit(raising(Preempted("stopped", "run it again")))
    assert ended.value.code == 75 and capfd.readouterr().err == "stopped\nhint: run it again\n"
    with pytest.raises(SystemExit) as ended:
        cli.run_and_exit(raising(KeyboardInterrupt()))
    assert ended.value.code == 130


# ---- help -----------------------------------------------------------------------------------------------------


def test_help_needs_no_torch(base: Path) -> None:
    script = """
import sys
from nanochat.cli.app import main

for command in [[], *([name] for name in sys.argv[1:])]:
    sys.argv = ["nanochat", *command, "--help"]
    try:
        main()
    except SystemExit as ended:
        assert not ended.code, command
heavy = {"torch", "numpy", "pyarrow", "requests", "rustbpe"} & set(sys.modules)
assert not heavy, heavy
"""
    done = call(base, "-c", script, *COMMANDS)
    assert done.returncode == 0, done.stderr
    assert all(command in done.stdout for command in COMMANDS)
    assert "--device_batch_size" in done.stdout and "--nproc_per_node" in done.stdout
    assert not base.exists()


# ---- streams --------------------------------------------------------------------------------------------------


def test_json_is_alone_on_stdout(base: Path) -> None:
    done = call(base, "entrypoint.py", "plan", "--profile=cpu", "--json", "--device-batch-size=2", "--save_every", "3")
    assert done.returncode == 0, done.stderr
    plan = json.loads(done.stdout)
    assert plan["profile"] == "cpu" and plan["config"]["device_batch_size"] == 2 and plan["config"]["save_every"] == 3


def test_a_tokenizer_is_trained_and_its_folder_printed(base: Path, text: Path) -> None:
    done = call(base, "entrypoint.py", "tokenizer", *flags(text)[1:])
    assert done.returncode == 0, done.stderr
    assert Tokenizer.load(Path(done.stdout.strip())).vocab_size == 300
    assert "training a tokenizer" in done.stderr


# ---- signals and processes ------------------------------------------------------------------------------------


def test_stopped_and_killed_runs_go_on_with_the_same_losses(base: Path, text: Path) -> None:
    """SIGTERM, then SIGKILL, then to the end, against a run that was left alone."""
    options: dict[str, Any] = {"num_iterations": 40, "save_every": 10, "run": "stopped"}
    process = start(base, "entrypoint.py", *flags(text, **options))
    wait_for(process, "base step 1/40")
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 75 and "which is saved" in err and "run the same command again" in err and "error:" not in err
    process = start(base, "entrypoint.py", *flags(text, **options))
    assert "resuming at step" in wait_for(process, "base: ")
    wait_for(process, "base step")
    process.kill()
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    done = call(base, "entrypoint.py", *flags(text, **options))
    assert done.returncode == 0 and "resuming at step" in done.stderr
    assert run.train(config(text, **options | {"run": "straight"})) == 0
    assert losses(base, "stopped") == losses(base, "straight")


def test_a_second_signal_ends_at_once(base: Path, text: Path) -> None:
    process = start(
        base, "entrypoint.py", *flags(text, total_batch_size=2**19, device_batch_size=64), "--verbose"
    )  # steps of half a minute
    wait_for(process, "packing shard")
    time.sleep(1)
    process.send_signal(signal.SIGINT)
    wait_for(process, "stopping: saving after this step")
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGINT and time.monotonic() - began < 10


def test_a_record_damaged_on_the_way_does_not_end_the_sign_of_life(base: Path, text: Path) -> None:
    process, run_folder = (
        start(base, "entrypoint.py", *flags(text, total_batch_size=2**19, device_batch_size=64), "--verbose"),
        base / "runs" / "tiny",
    )
    wait_for(process, "packing shard")
    while not (before := read_heartbeat(run_folder)):
        assert process.poll() is None
        time.sleep(0.1)
    (run_folder / "config.toml").write_text("damaged")
    deadline = time.monotonic() + 60
    while (read_heartbeat(run_folder) or before)["time"] < before["time"] + 4:  # two beats
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.1)
    process.kill()
    process.communicate(timeout=60)


def test_an_interrupted_tokenizer_training_begins_again(base: Path, tmp_path: Path) -> None:
    rng = random.Random(3)  # words that never come again, so that there is much to count
    letters = str.maketrans("0123456789", "ghijklmnop")
    big = tmp_path / "big.txt"
    big.write_text("\n".join(f"{rng.getrandbits(600):x}".translate(letters) for _ in range(20_000)))
    options = ["tokenizer", *flags(big, vocab_size=2000)[1:]]
    for number, code in ((signal.SIGINT, 130), (signal.SIGKILL, -9)):
        process = start(base, "entrypoint.py", *options)
        wait_for(process, "training a tokenizer")
        process.send_signal(number)
        _, err = process.communicate(timeout=60)
        assert process.returncode == code and "Traceback" not in err
        assert not list(base.glob("tokenizer/*/source.json"))
    done = call(base, "entrypoint.py", *options)
    assert done.returncode == 0 and "training a tokenizer" in done.stderr
    assert Tokenizer.load(Path(done.stdout.strip())).vocab_size == 2000


def test_two_processes_give_the_same_losses(base: Path) -> None:
    """Over shards so small that one step reads several of them."""
    shards = base / "data" / "climbmix"
    shards.mkdir(parents=True)
    parts = sentences(base / "text").read_text().split("\n\n")
    for index in range(6):
        pq.write_table(pa.table({"text": parts[index * 8 : index * 8 + 8]}), shards / f"shard_{index:05}.parquet")
    options = [f"--{name}={value}" for name, value in MODEL.items()] + ["--dataset=climbmix", "--shards=5", "--total_batch_size=2048"]
    one = call(base, "entrypoint.py", "train", "--profile=cpu", *options, "--run=one", "--num_iterations=4")
    assert one.returncode == 0, one.stderr
    two = call(base, "entrypoint.py", "train", "--profile=cpu", *options, "--run=two", "--num_iterations=4", "--nproc_per_node=2")
    assert two.returncode == 0, two.stderr
    assert [loss for _, _, loss in losses(base, "two")] == pytest.approx([loss for _, _, loss in losses(base, "one")], rel=1e-5)
    assert len(re.findall("base step 4/4 . loss", two.stderr)) == 1  # one of them speaks


def test_an_unexpected_error_is_shown_within_bounds(capsys: pytest.CaptureFixture[str]) -> None:
    """A compiler's error holds the whole program that it could not compile."""

    def command() -> int:
        raise RuntimeError("no compiler\n" + "x = y + z\n" * 6000)

    with pytest.raises(SystemExit) as ended:
        cli.run_and_exit(command)
    error, hint = capsys.readouterr().err.splitlines()
    assert ended.value.code == 1 and error.startswith("error: RuntimeError: no compiler x = y + z") and len(error) < 2200
    assert error.endswith("more characters)") and "NANOCHAT_DEBUG=1 shows all of it" in hint


LATE = """
import atexit, os, signal
from nanochat.cli import app

app.dispatch = lambda: 3
atexit.register(os.kill, os.getpid(), signal.SIGTERM)
app.main()
"""


def test_a_request_to_end_that_comes_late_does_not_change_the_code() -> None:
    assert subprocess.run([sys.executable, "-c", LATE], cwd=ROOT, timeout=60, check=False).returncode == 3


@pytest.mark.parametrize("command", [["entrypoint.py"], ["-m", "nanochat"]], ids=" ".join)
def test_every_way_to_start_is_the_same_command(base: Path, command: list[str]) -> None:
    done = call(base, *command, "chat", "--prompt", "hi", "--run", "nobody")
    assert done.returncode == 4 and "no run 'nobody'" in told(done.stderr)[0]


def test_workers_find_the_checkout_from_any_folder(base: Path, text: Path, tmp_path: Path) -> None:
    """They are started as `-m nanochat`, whatever the working directory is."""
    options = flags(text, num_iterations=1, nproc_per_node=2, device_batch_size=2)
    command = [sys.executable, str(ROOT / "entrypoint.py"), *options]
    done = subprocess.run(command, cwd=tmp_path, env=environment(base), capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert [step for _, step, _ in losses(base)] == [1]


BARE = """
import importlib.util, os, sys

found, sys.argv = importlib.util.find_spec, [sys.argv[1], "plan", "--json"]
importlib.util.find_spec = lambda name: None if name == "torch" else found(name)
exec(compile(open(sys.argv[0]).read(), sys.argv[0], "exec"), {"__name__": "__main__", "__file__": sys.argv[0]})
"""


def test_a_python_without_the_packages_hands_over_to_the_one_beside_it(tmp_path: Path) -> None:
    (tmp_path / ".venv/bin").mkdir(parents=True)
    python = tmp_path / ".venv/bin/python"
    python.write_text('#!/bin/sh\necho "$@" in "$PYTHONPATH"\n')
    python.chmod(0o755)
    script = shutil.copy(ROOT / "entrypoint.py", tmp_path)
    kept = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run([sys.executable, "-c", BARE, script], env=kept, capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout == f"{script} plan --json in {tmp_path}\n", done.stderr


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is there")
def test_a_cards_run_on_a_slow_cpu_is_refused_by_train_and_by_doctor(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    for command in ("train", "doctor"):
        done = call(base, "entrypoint.py", command, "--profile=rtx4050")
        assert done.returncode == 3 and "no CUDA device is visible" in done.stdout + done.stderr
    done = call(base, "entrypoint.py", "doctor", "--profile=rtx4050", "--device=cpu")
    assert "the CPU is used" in done.stdout


def test_a_closed_stdin_is_one_clear_error(tmp_path: Path) -> None:
    """As of `nanochat ... <&-`: Python has no sys.stdin then."""
    (tmp_path / "runs" / "x").mkdir(parents=True)
    (tmp_path / "runs" / "x" / "config.toml").write_text("x")
    command = [sys.executable, "entrypoint.py", "runs", "rm", "x"]
    done = subprocess.run(
        command, cwd=ROOT, env=environment(tmp_path), capture_output=True, text=True, preexec_fn=lambda: os.close(0), check=False
    )
    assert done.returncode == 2 and "stdin is not a terminal" in done.stderr, done.stderr
