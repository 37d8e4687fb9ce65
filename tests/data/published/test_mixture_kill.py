"""A run on zh-tw, text and conversations of five sets by share, that is killed in every stage: its losses are those of one left alone."""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from nanochat.data.shards import open_dataset
from tests import tiny
from tests.data.published.test_mixtures import ENGLISH, SIMPLE_TALK, SIMPLIFIED, TALK, TRADITIONAL, numbered
from tests.fake_hub import Hub, parquet

pytestmark = pytest.mark.slow
# (a line of the run, the longest wait after it in seconds): in a download, while the parts are mixed, in the tokenizer's training, in
# pretraining and its saves, between the stages, and in fine-tuning.
MOMENTS = (
    ("yentinglin-zh_TW_c4: fetching", 0.6),
    ("fineweb-edu: fetching 3", 1.5),
    ("TaiwanChat: fetching", 0.6),
    ("training a tokenizer", 0.3),
    (" base step ", 0.7),
    (" base step ", 0.7),
    ("base step 150/150", 0.4),
    (" sft step ", 0.4),
)


class SlowHub(Hub):
    """Sends each file in two parts with a pause between them, so that a process can be killed in a download."""

    @staticmethod
    def send(handler, status: int, body: bytes, headers=()) -> None:  # type: ignore[no-untyped-def]
        if len(body) < 3000:
            Hub.send(handler, status, body, headers)
            return
        handler.send_response(status)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body[: len(body) // 2])
        handler.wfile.flush()
        time.sleep(0.3)
        handler.wfile.write(body[len(body) // 2 :])


@pytest.fixture
def hub() -> Iterator[SlowHub]:
    """The sets of zh-tw, so small that the mixture ends long before a shard is full."""
    served = SlowHub()
    mixed = [text if index % 10 else SIMPLIFIED + text[:5] for index, text in enumerate(numbered(TRADITIONAL, 600, 5000))]
    served.files["botp/yentinglin-zh_TW_c4"] = {
        f"data/train-0000{index}-of-00003.parquet": parquet("", text=mixed[index::3]) for index in range(3)
    }
    served.files["HPLT/HPLT2.0_cleaned"] = {
        f"zho_Hant/train-0000{index}-of-00004.parquet": parquet("", text=numbered(TRADITIONAL, 200, 1000 * index)) for index in range(4)
    }
    served.files["karpathy/fineweb-edu-100b-shuffle"] = {
        f"shard_{index:05}.parquet": parquet("", text=numbered(ENGLISH, 300, 1000 * index)) for index in (*range(4), 1822)
    }
    served.files["yentinglin/TaiwanChat"] = {
        "data/train-00000-of-00001.parquet": parquet("", conversations=[TALK] * 30 + [SIMPLE_TALK] * 10)
    }
    english = [[{"role": "user", "content": f"Say {index}"}, {"role": "assistant", "content": f"{index}"}] for index in range(50)]
    served.files["HuggingFaceTB/smol-smoltalk"] = {"data/train-00000-of-00001.parquet": parquet("", messages=english)}
    yield served
    served.server.shutdown()
    served.server.server_close()


def begin(base: Path, hub: Hub, ranks: int) -> "subprocess.Popen[str]":
    """Start the run in a session of its own."""
    changes = {"dataset": "zh-tw", "shards": 1, "vocab_size": 400, "num_iterations": 150, "sft_iterations": 60, "save_every": 4}
    values = tiny.MODEL | changes | {"run": "night", "core_metric_max_per_task": 0, "nproc_per_node": ranks}
    command = [sys.executable, "entrypoint.py", "train", "--profile=cpu", *(f"--{name}={value}" for name, value in values.items())]
    env = tiny.environment(base) | {"HF_ENDPOINT": hub.url}
    return subprocess.Popen(
        command, cwd=tiny.ROOT, env=env, text=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True
    )


def reached(process: "subprocess.Popen[str]", lines: list[str]) -> None:
    """Read stderr up to one of `lines`: the work of the first may have been done before the last kill."""
    assert process.stderr
    read = []
    for found in process.stderr:
        read.append(found)
        if any(line in found for line in lines):
            return
    raise AssertionError(f"none of {lines} came:\n{''.join(read)}")


@pytest.mark.parametrize("ranks", [1, 2])
def test_killed_in_every_stage(hub: SlowHub, tmp_path: Path, ranks: int) -> None:
    """All of its processes at once, at a random moment after a line of each stage; then the same command runs to its end."""
    straight = begin(tmp_path / "straight", hub, ranks)
    _, said = straight.communicate(timeout=600)
    assert straight.returncode == 0, said
    rng = random.Random(ranks)
    for number, (line, longest) in enumerate(MOMENTS):
        process = begin(tmp_path / "killed", hub, ranks)
        reached(process, [later for later, _ in MOMENTS[number:]])
        time.sleep(rng.uniform(0, longest))
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate(timeout=60)
        assert process.returncode == -signal.SIGKILL, f"it ended before it could be killed after {line!r}"
    last = begin(tmp_path / "killed", hub, ranks)
    _, said = last.communicate(timeout=600)
    assert last.returncode == 0, said
    assert tiny.losses(tmp_path / "killed", "night") == tiny.losses(tmp_path / "straight", "night")
    assert len(tiny.losses(tmp_path / "killed", "night")) == 210
    sets = [open_dataset(next((tmp_path / name / "data").glob("mixture-zh-tw-*"))) for name in ("straight", "killed")]
    assert [[shard.sha256 for shard in (*one.training, one.validation)] for one in sets] == [
        [shard.sha256 for shard in (*sets[0].training, sets[0].validation)]
    ] * 2
