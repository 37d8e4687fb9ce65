"""Exported models in programs that are no dependency of ours: lm-evaluation-harness and llama.cpp, each in an environment of its own.

The environments are made once, in pytest's cache (llama.cpp is compiled, which takes minutes). Run one with -k llama or -k harness.
"""

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from nanochat.export import check_gguf, folder, gguf_file, importer, parity
from nanochat.runs.record import TrainedModel, open_model
from tests.export.random_model import random_model

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[2]
NEW = 48  # tokens of each greedy answer
ASKED = (
    "What is 12 + 34?",
    "0123456789",
    "3.14159 and 1,000,000",
    "12345678901234567890",
    "2 + 2 = 4, 40 + 2 = 42",
    "你是誰？",
    "你是誰？我是小助手。",
    "今天天氣很好！",
    "天 氣 12 很好",
    "漢字不在文中",
    "The cat sat on the mat",
    "the  cat   sat    on",
    "   leading and trailing   ",
    "one\ttab\tand\t\ttwo",
    "line\n\n  x = 1\n",
    "didn't WE'LL I'm",
    "naïve café",
    "🎈🎈 and a\u0301",
    "x=1;y=(2,[3])...",
    "?",
)


def environment(cache: pytest.Cache, name: str, *packages: str) -> Path:
    """The interpreter of an environment with `packages`, made where it is missing."""
    place = cache.mkdir("peers") / name
    python, made = place / "bin" / "python", place / ".made"
    if not made.exists():
        uv = [sys.executable, "-m", "uv"]
        subprocess.run([*uv, "venv", "--quiet", "--clear", "--python", sys.executable, place], check=True)
        subprocess.run([*uv, "pip", "install", "--quiet", "--python", python, *packages], check=True, timeout=1500)
        made.touch()
    return python


def ask(python: Path, script: str, task: dict[str, Any], home: Path) -> Any:
    """What the script answers in its own environment, with no network."""
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_HOME": str(home), "OMP_NUM_THREADS": "1"}
    command = [python, Path(__file__).with_name(script)]
    done = subprocess.run(command, input=json.dumps(task), env=os.environ | offline, text=True, capture_output=True, timeout=600)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


def rendered(ours: TrainedModel, text: str) -> list[int]:
    return ours.tokenizer.render_prompt([{"role": "user", "content": text}], 10_000)[0]


def test_llama_cpp_answers_as_we_do(request: pytest.FixtureRequest, base: Path, tmp_path: Path) -> None:
    """The portable model's GGUF: ids of 20 prompts, 48 greedy tokens after each, and chat answers by its own template, in float32."""
    python = environment(request.config.cache, "llama", "llama-cpp-python")
    ours, out = random_model("qwen3", 4), tmp_path / "gguf"
    gguf_file.write_gguf(ours, out)
    ids = [rendered(ours, text) for text in ASKED]
    texts = [f"<|bos|><|user_start|>{text}<|user_end|><|assistant_start|>" for text in ASKED]
    chats = [[{"role": "user", "content": text}] for text in ASKED]
    found = ask(
        python, "peer_llama.py", {"path": str(out / gguf_file.GGUF), "context": 576, "prompts": texts, "new": NEW, "chats": chats}, tmp_path
    )
    assert found["ids"] == ids
    expected = [parity.greedy(ours.model, [prompt], NEW + 3)[0] for prompt in ids]
    assert found["greedy"] == [new[:NEW] for new in expected]
    ends, tokens = {ours.tokenizer.bos, ours.tokenizer.special("<|assistant_end|>")}, ours.tokenizer.tokens
    stops = [next((place for place, id in enumerate(new) if id in ends), len(new)) for new in expected]
    stopped = sum(stop < NEW for stop in stops)
    print(f"{len(ids)} prompts, {NEW * len(ids)} tokens; {stopped} chat answers end by a stop token")
    assert stopped >= 3
    for text, answer, new, stop in zip(ASKED, found["answers"], expected, stops, strict=True):
        said = [b"".join(tokens[id] for id in new[:end] if id < len(tokens)) for end in range(min(NEW, stop), stop + 1)]
        assert answer in [part.decode("utf-8", "ignore") for part in said], (
            text
        )  # the binding ends behind a whole character, and drops half ones


def test_llama_cpp_reads_an_imported_models_file(request: pytest.FixtureRequest, base: Path, tmp_path: Path) -> None:
    """A foreign Qwen3, imported and written as GGUF: ids of texts, and greedy tokens after them."""
    pytest.importorskip("transformers")
    from tests.export.foreign_model import SHAPES, write_qwen3

    python = environment(request.config.cache, "llama", "llama-cpp-python")
    for shape in SHAPES:
        write_qwen3(tmp_path / shape, shape)
        ours = open_model(importer.import_folder(tmp_path / shape))
        gguf_file.write_gguf(ours, tmp_path / f"{shape}-gguf")
        texts = [f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n" for text in ASKED if "\u0301" not in text]  # it has no NFC
        task = {"path": str(tmp_path / f"{shape}-gguf" / gguf_file.GGUF), "context": 512, "prompts": texts, "new": 24, "chats": []}
        found = ask(python, "peer_llama.py", task, tmp_path)
        assert found["ids"] == [rendered(ours, text) for text in ASKED if "\u0301" not in text]
        ends = set(ours.tokenizer.ends)
        for ids, new in zip(found["ids"], found["greedy"], strict=True):
            wanted = parity.greedy(ours.model, [ids], 24)[0]
            assert new == wanted[: len(new)] and (len(new) == 24 or wanted[len(new)] in ends)


def test_llama_cpp_perplexity_of_the_smaller_types(request: pytest.FixtureRequest, base: Path, tmp_path: Path) -> None:
    """f16 and q8_0 in llama.cpp: perplexity within 1% of f32's, on held-out questions and answers."""
    python = environment(request.config.cache, "llama", "llama-cpp-python")
    ours = random_model("qwen3", 4)
    scored = [check_gguf.heldout_ids(ours.tokenizer, 576)[number] for number in range(0, 96, 4)]
    count = sum(len(row) - 1 for row in scored)
    found = {}
    for outtype in gguf_file.OUTTYPES:
        gguf_file.write_gguf(ours, tmp_path / outtype, outtype)
        task = {"path": str(tmp_path / outtype / gguf_file.GGUF), "context": 576, "prompts": [], "new": 1, "chats": [], "scored": scored}
        found[outtype] = math.exp(ask(python, "peer_llama.py", task, tmp_path)["nats"] / count)
    print(", ".join(f"{outtype} {value:.4f} ({value / found['f32'] - 1:+.3%})" for outtype, value in found.items()))
    model = ours.model
    assert found["f32"] == pytest.approx(check_gguf.perplexity(lambda ids: model.logits(model(torch.tensor([ids])))[0], scored), rel=1e-4)
    assert all(abs(value / found["f32"] - 1) < 0.01 for value in found.values())


TASK = """\
task: local_facts
dataset_path: json
dataset_kwargs: {data_files: {test: FILE}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: "{{choices}}"
doc_to_target: "{{answer}}"
target_delimiter: ""
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
"""


@torch.inference_mode()
def likelihoods(ours: TrainedModel, question: str, choices: list[str]) -> list[float]:
    """Of each choice after the question, by our model."""
    found = []
    for choice in choices:
        before, whole = ours.tokenizer.encode(question), ours.tokenizer.encode(question + choice)
        logits = ours.model.logits(ours.model(torch.tensor([whole[:-1]])))[0].log_softmax(-1)
        targets = torch.tensor(whole[1:])
        found.append(float(logits.gather(1, targets[:, None])[len(before) - 1 :].sum()))
    return found


@pytest.mark.parametrize("architecture", ["nanochat", "qwen3"])
def test_the_harness_scores_as_we_do(architecture: str, request: pytest.FixtureRequest, base: Path, tmp_path: Path) -> None:
    """A local multiple-choice task, offline: the log-likelihood of each choice and the accuracy equal ours."""
    python = environment(request.config.cache, "harness", "lm_eval[hf]", "--constraint", str(ROOT / "requirements.lock"))
    ours, out, tasks = random_model(architecture, 4), tmp_path / "folder", tmp_path / "tasks"
    folder.write_folder(ours, out)
    tasks.mkdir()
    choices = [" cat", " 46", "。", "\n\n"]
    questions = [f"Question: {text}" for text in ASKED if text.strip() == text]  # the harness takes bare numbers for numbers
    documents = [{"question": text, "choices": choices, "answer": number % 4} for number, text in enumerate(questions)]
    (tasks / "items.jsonl").write_text("".join(json.dumps(item) + "\n" for item in documents), encoding="utf-8")
    (tasks / "local_facts.yaml").write_text(TASK.replace("FILE", str(tasks / "items.jsonl")), encoding="utf-8")
    task = {"model": str(out), "trust": architecture == "nanochat", "tasks": str(tasks), "task": "local_facts"}
    found = ask(python, "peer_harness.py", task, tmp_path)
    expected = [likelihoods(ours, item["question"], choices) for item in documents]
    assert found["samples"] == [pytest.approx(row, abs=1e-3) for row in expected]
    right = [max(range(4), key=row.__getitem__) == item["answer"] for row, item in zip(expected, documents, strict=True)]
    assert found["acc"] == pytest.approx(sum(right) / len(right))
