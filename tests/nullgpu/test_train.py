"""Whole commands on a GPU that computes nothing: `train` through its stages, as one rank of eight, out of memory, `eval` and `serve`."""

import json
import re
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from tests.nullgpu.machine import CARDS, ROOT, Run, environment, train

SHAPE = {
    "depth": 2,
    "head_dim": 64,
    "max_seq_len": 128,
    "vocab_size": 300,
    "device_batch_size": 2,
    "total_batch_size": 512,  # two micro-steps
    "num_iterations": 4,
    "sft_iterations": 3,
    "eval_every": 2,
    "eval_tokens": 640,  # five rows: two whole batches and a part
    "core_metric_max_per_task": 0,
    "compile": "off",
}
RL = {"rl_iterations": 2, "rl_examples_per_step": 2, "rl_num_samples": 4, "rl_max_new_tokens": 8, "rl_eval_examples": 2}


def options(texts: list[str], **changes: object) -> list[str]:
    return ["train", "--profile=rtx4090", "--run=null", *texts, *(f"--{name}={value}" for name, value in (SHAPE | changes).items())]


def steady(run: Run, stage: str) -> dict[str, int]:
    """The counts of a stage's steps, which from the second one on are all equal, allocate nothing and compile nothing."""
    steps = run.of("step", stage)[1:]
    assert len(steps) >= 2 and all(step["counts"] == steps[0]["counts"] for step in steps), steps
    assert "allocations" not in steps[0]["counts"] and "releases" not in steps[0]["counts"]
    assert [entry["graphs"] for entry in steps] == [0] * len(steps)
    counts: dict[str, int] = steps[0]["counts"]
    return counts


@pytest.mark.long
def test_every_stage_of_a_run(texts: list[str], problems: str, tmp_path: Path) -> None:
    run = train("4090", tmp_path, *options(texts, **RL), problems, "--stage=all")
    assert run.code == 0, run.text
    assert "NVIDIA GeForce RTX 4090" in run.text
    base, sft = steady(run, "base"), steady(run, "sft")
    assert base["launches"] > 200 and base["products"] > 100 and base["products"] == sft["products"]
    assert base["downloads"] == 1 and base["downloaded_bytes"] == 24, "a step copies six numbers back"
    assert base["stream_syncs"] <= 2 and base["uploads"] <= 2 * 2 + 2, "two pinned uploads a micro-step"
    assert [entry["step"] for entry in run.of("evaluate", "base")] == [2, 4] and run.of("sample", "sft")
    learned = run.of("step", "rl")
    assert len(learned) == 2 and learned[0]["counts"]["products"] > 100
    assert len({entry["reserved"] for entry in run.of("step", "base")[1:]}) == 1


@pytest.mark.long
def test_one_of_eight_ranks(texts: list[str], tmp_path: Path) -> None:
    run = train("h100", tmp_path, *options(texts, total_batch_size=4096, sft_iterations=0, nproc_per_node=8), ranks=8)
    assert run.code == 0, run.text
    counts = steady(run, "base")
    assert counts["collectives"] > 10 and counts["collective_bytes"] > 10**6
    assert counts["downloads"] == 1


@pytest.mark.long
def test_out_of_memory_goes_on_with_half_the_batch(texts: list[str], tmp_path: Path) -> None:
    """Another program takes all but 600 MB of a 4050 when the run begins."""
    shape = {"depth": 4, "head_dim": 128, "max_seq_len": 1024, "device_batch_size": 16, "total_batch_size": 16384, "sft_iterations": 0}
    run = train("4050", tmp_path, *options(texts, **shape), NULLGPU_TAKEN=str(CARDS["4050"].memory - (1100 << 20)))
    assert run.code == 0, run.text
    assert "out of memory in base step 1 with micro-batches of 16 sequences" in run.text
    rows = [entry["rows"] for entry in run.of("step", "base")]
    assert rows[0] < 16 and len(set(rows)) == 1, "each later step begins with the batch that fits"
    again = [text for text in run.text.splitlines() if re.match("warning: out of memory", text)]
    assert [int(re.findall(r"continuing with (\d+)", text)[0]) for text in again][-1] == rows[0]


@pytest.mark.long
def test_out_of_memory_with_one_row(texts: list[str], tmp_path: Path) -> None:
    shape = {"depth": 4, "head_dim": 128, "max_seq_len": 4096, "device_batch_size": 2, "total_batch_size": 8192, "sft_iterations": 0}
    run = train("4050", tmp_path, *options(texts, **shape), NULLGPU_TAKEN=str(CARDS["4050"].memory - (700 << 20)))
    assert run.code == 6, run.text
    assert "error: out of memory in base step 1 with one sequence" in run.text and "hint: " in run.text


@pytest.mark.slow
@pytest.mark.parametrize("card", ["4050", "3090", "4090", "5090", "h100"])
def test_every_card(card: str, texts: list[str], problems: str, tmp_path: Path) -> None:
    run = train(card, tmp_path, *options(texts, **RL, deterministic=card == "3090"), problems, "--stage=all")
    assert run.code == 0, run.text
    assert CARDS[card].name in run.text
    steady(run, "base"), steady(run, "sft")


@pytest.mark.slow
@pytest.mark.parametrize(("card", "devices"), [("4090", 1), ("h100", 8)])
def test_nothing_is_compiled_after_the_second_step(card: str, devices: int, texts: list[str], tmp_path: Path) -> None:
    shape = {"compile": "on", "total_batch_size": 512 * devices, "eval_tokens": 640 * devices, "nproc_per_node": devices}
    run = train(card, tmp_path, *options(texts, **shape), ranks=devices, TORCHINDUCTOR_CACHE_DIR=str(tmp_path / "cache"))
    assert run.code == 0, run.text
    for stage in ("base", "sft"):
        assert steady(run, stage)["triton_launches"] > 10
    first, *later = [entry["graphs"] for entry in run.of("evaluate")]
    assert first <= 1 and set(later) <= {0}, "an evaluation compiles once, its last and smaller part too"


@pytest.mark.long
def test_a_model_is_evaluated_and_served(texts: list[str], tmp_path: Path) -> None:
    made = train("4050", tmp_path, *options(texts, num_iterations=2, sft_iterations=1))
    assert made.code == 0, made.text
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "nanochat", "serve", "--run=null", f"--port={port}"]
    environ = environment("4050", NANOCHAT_BASE_DIR=str(tmp_path / "base"))
    with subprocess.Popen(command, cwd=ROOT, env=environ, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as server:
        try:
            answer = asked(f"http://127.0.0.1:{port}/v1/chat/completions", server)
        finally:
            server.terminate()
            server.wait(30)
    assert answer["usage"]["completion_tokens"] == 5


def asked(address: str, server: "subprocess.Popen[str]") -> dict[str, dict[str, int]]:
    """The server's answer of five tokens, once it is up."""
    body = json.dumps({"messages": [{"role": "user", "content": "cat"}], "max_tokens": 5}).encode()
    for _ in range(600):
        assert server.poll() is None, server.stderr and server.stderr.read()
        try:
            request = urllib.request.Request(address, body, {"Content-Type": "application/json"})
            with urllib.request.urlopen(request, timeout=30) as response:
                found: dict[str, dict[str, int]] = json.load(response)
                return found
        except OSError:
            time.sleep(0.1)
    raise AssertionError("the server did not answer within a minute")
