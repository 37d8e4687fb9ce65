"""After `download --for`, training, evaluation and chat run where there is no network, and nothing even tries to reach one."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from nanochat.data.published.origins import KNOWN
from nanochat.data.published.sets import SET_BYTES, TEST_BYTES
from nanochat.data.shards import shard_name
from tests.evaluation.bundle import chat_rows, write_bundle
from tests.fake_hub import Hub, parquet
from tests.tiny import MODEL, ROOT, environment, sentences

pytestmark = pytest.mark.long

# What each process of the run loads first: it notes every address that is looked up or connected to.
WATCH = """
import os, sys

def watch(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto"):
        place = arguments[1] if event in ("socket.connect", "socket.sendto") else arguments[0]
        host = place[0] if isinstance(place, tuple) else place
        if not isinstance(host, (str, bytes)) or str(host).startswith(("127.", "::1", "localhost", "/")):
            return
        with open(os.environ["WATCHED"], "a") as file:
            file.write(f"{event} {place} by {sys.argv}\\n")

sys.addaudithook(watch)
"""


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    """A hub with three shards of text, the sets for fine-tuning, the identity conversations and the bundle."""
    served = Hub()
    lines = sentences(tmp_path / "text.txt", 120_000).read_text().split("\n\n")
    shards = {shard_name(index): parquet("", text=lines[index::3]) for index in range(3)}
    served.files[KNOWN["climbmix"].repo] = shards | {shard_name(6542): parquet("", text=lines[:20])}
    talk = [{"role": "user", "content": "the cat"}, {"role": "assistant", "content": "sees"}]
    served.files["HuggingFaceTB/smol-smoltalk"] = {"data/train-0.parquet": parquet("", messages=[talk] * 40)}
    choices = {"question": ["q"] * 40, "choices": [["a", "b"]] * 40, "answer": [1] * 40}
    tests = chat_rows()
    mmlu = {"all/test-00000-of-00001.parquet": tests["mmlu-test"]}
    served.files["cais/mmlu"] = mmlu | {"auxiliary_train/train-0.parquet": parquet("", **choices)}
    served.files["openai/gsm8k"] = {"main/train-0.parquet": parquet("", question=["1+1"] * 40, answer=["<<1+1=2>>2 #### 2"] * 40)}
    served.files["openai/gsm8k"]["main/test-00000-of-00001.parquet"] = tests["gsm8k-test"]
    arc = {"ARC-Easy": tests["arc-easy-test"], "ARC-Challenge": tests["arc-challenge-test"]}
    served.files["allenai/ai2_arc"] = {f"{name}/test-00000-of-00001.parquet": data for name, data in arc.items()}
    served.assets["/assets/identity_conversations.jsonl"] = (json.dumps(talk) + "\n").encode() * 40
    bundle = tmp_path / "bundle"
    write_bundle(bundle / "eval_bundle")
    archive = shutil.make_archive(str(tmp_path / "bundle"), "zip", bundle)
    served.assets["/assets/eval_bundle.zip"] = Path(archive).read_bytes()
    yield served
    served.server.shutdown()
    served.server.server_close()


def test_a_whole_run_with_loopback_alone(hub: Hub, tmp_path: Path) -> None:
    if subprocess.run(["unshare", "-n", "true"], capture_output=True, check=False).returncode:
        pytest.skip("a namespace without network is not allowed here")
    base, watched = tmp_path / "base", tmp_path / "watched"
    (tmp_path / "watch").mkdir()
    (tmp_path / "watch" / "sitecustomize.py").write_text(WATCH)
    values = (
        MODEL
        | {"dataset": "climbmix", "shards": 2, "vocab_size": 300, "sft_iterations": 2, "max_seq_len": 64, "run": "offline"}
        | {"core_metric_max_per_task": 5}
    )
    flags = [f"--{name}={value}" for name, value in values.items()]
    online = environment(base) | {"HF_ENDPOINT": hub.url, "NANOCHAT_ASSET_URL": f"{hub.url}/assets"}
    command = [sys.executable, "entrypoint.py", "download", "--for", "cpu", "--verify", *flags]
    done = subprocess.run(command, cwd=ROOT, env=online, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert (base / "eval_bundle" / "core.yaml").exists()
    assert {path.name for path in (base / "data" / "tasks").iterdir() if path.is_dir()} == set(SET_BYTES | TEST_BYTES) - {"identity"}

    offline = {key: value for key, value in environment(base).items() if key not in ("HF_ENDPOINT", "NANOCHAT_ASSET_URL")}
    offline |= {"PYTHONPATH": f"{tmp_path / 'watch'}{os.pathsep}{ROOT}", "WATCHED": str(watched)}
    questions = tmp_path / "questions.jsonl"
    questions.write_text(json.dumps({"skill": "talk", "prompt": "the cat", "answer": "sees"}) + "\n")
    for arguments in (
        ["doctor", "--profile=cpu", *flags],
        ["train", "--profile=cpu", *flags],
        ["eval", "--items", str(questions), "--json"],
        ["eval", "--max-per-task=3", "--json"],
        ["chat", "--prompt", "the cat", "--max-tokens=4"],
    ):
        inside = ["unshare", "-n", "sh", "-c", 'ip link set lo up; exec "$@"', "sh", sys.executable, "entrypoint.py", *arguments]
        done = subprocess.run(inside, cwd=ROOT, env=offline, capture_output=True, text=True, timeout=180, check=False)
        assert done.returncode == 0, (arguments, done.stderr)
    assert not watched.exists(), watched.read_text()
    scores = json.loads((base / "runs/offline/evaluation.json").read_text())
    assert {scores[part]["max_per_task"] for part in ("core", "chat")} == {3} and set(scores) == {"summary", "bpb", "core", "chat"}
    assert [line["stage"] for line in map(json.loads, (base / "runs/offline/metrics.jsonl").read_text().splitlines())].count("sft") == 2

    # The watch itself: what does reach out is seen.
    inside = ["unshare", "-n", sys.executable, "entrypoint.py", "doctor", "--profile=rtx4050"]
    elsewhere = offline | {"HF_ENDPOINT": "http://192.0.2.1"}
    seen = subprocess.run(inside, cwd=ROOT, env=elsewhere, capture_output=True, text=True, timeout=60, check=False)
    assert seen.returncode == 3
    assert "192.0.2.1" in watched.read_text()
