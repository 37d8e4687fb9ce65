"""A miniature evaluation bundle and chat tasks, in the published formats; and a model to ask."""

import json
import random
from pathlib import Path

import torch

from nanochat.data.published import sets
from nanochat.model.build import build_model
from nanochat.model.scaling import GPTConfig
from nanochat.model.transformer import Transformer
from nanochat.tokenizer.tokenizer import Tokenizer
from tests.fake_hub import parquet

WORDS = ["the", "cat", "dog", "bird", "sees", "likes", "a", "red", "old", "house", "tree", "and", "runs", "by", "12", "7"]
CORE_YAML = """\
icl_tasks:
-
  label: picking
  dataset_uri: understanding/picking.jsonl
  num_fewshot: [3]
  icl_task_type: multiple_choice
  continuation_delimiter: "\\nAnswer: "
-
  label: referring
  dataset_uri: understanding/referring.jsonl
  num_fewshot: [0]
  icl_task_type: schema
-
  label: saying
  dataset_uri: saying.jsonl
  num_fewshot: [10]
  icl_task_type: language_modeling
"""
META = "Eval Task,Task Category,Task Type,#shots,#datapoints,Random baseline,Centered Metric?,Description\n"
BASELINES = {"picking": 25.0, "referring": 50.0, "saying": 0.0, "of another list": 3.0}


def words(rng: random.Random, count: int) -> str:
    return " ".join(rng.choice(WORDS) for _ in range(count))


def rows(kind: str, count: int) -> list[dict]:
    rng = random.Random(kind)
    if kind == "picking":
        return [
            {"query": words(rng, rng.randint(2, 9)), "choices": [words(rng, rng.randint(1, 4)) for _ in range(4)], "gold": rng.randrange(4)}
            for _ in range(count)
        ]
    if kind == "referring":
        return [
            {"context_options": [words(rng, rng.randint(1, 5)) for _ in range(2)], "continuation": words(rng, 3), "gold": rng.randrange(2)}
            for _ in range(count)
        ]
    return [{"context": f" {words(rng, rng.randint(1, 6))} \n", "continuation": rng.choice(WORDS)} for _ in range(count)]


def write_bundle(folder: Path, count: int = 40) -> Path:
    """A bundle of three tasks, one of each kind, with `count` rows."""
    (folder / "eval_data" / "understanding").mkdir(parents=True)
    (folder / "core.yaml").write_text(CORE_YAML)
    lines = [f'{name},"reading, mostly",kind,0,{count},{chance},yes,text\n' for name, chance in BASELINES.items()]
    (folder / "eval_meta_data.csv").write_text(META + "".join(lines))
    for name, place in (("picking", "understanding/picking"), ("referring", "understanding/referring"), ("saying", "saying")):
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows(name, count))
        (folder / "eval_data" / f"{place}.jsonl").write_text(text)
    return folder


def chat_rows(count: int = 8) -> dict[str, bytes]:
    """Set -> the published columns of it, as parquet."""
    rng = random.Random(5)
    asked = [words(rng, 4) + "?" for _ in range(count)]
    four = [[words(rng, 2) for _ in range(4)] for _ in range(count)]
    labels = [["A", "B", "C", "D"] if i % 2 else ["1", "2", "3", "4"] for i in range(count)]
    arc = {
        "id": [str(i) for i in range(count)],
        "question": asked,
        "choices": [{"text": text, "label": label} for text, label in zip(four, labels, strict=True)],
        "answerKey": [rng.choice(label) for label in labels],
    }
    mmlu = {"question": asked, "subject": ["x"] * count, "choices": four, "answer": [rng.randrange(4) for _ in range(count)]}
    gsm8k = {"question": asked, "answer": [f"It is <<{i}*1000={i}000>>{i}000.\n#### {i},000" for i in range(count)]}
    return {
        "arc-easy-test": parquet("", **arc),
        "arc-challenge-test": parquet("", **arc),
        "mmlu-test": parquet("", **mmlu),
        "gsm8k-test": parquet("", **gsm8k),
    }


def write_chat_sets(count: int = 8) -> None:
    """The chat tasks' files, in the data directory."""
    for name, data in chat_rows(count).items():
        folder = sets.task_folder(name)
        folder.mkdir(parents=True)
        (folder / "test-00000-of-00001.parquet").write_bytes(data)


def tokenizer() -> Tokenizer:
    return Tokenizer.train([" ".join(WORDS) for _ in range(50)], 300)


def model(vocab_size: int, context: int = 256) -> Transformer:
    """A model of random weights, far enough from zero to have opinions."""
    torch.set_num_threads(1)
    shape = {"depth": 2, "dim": 32, "n_head": 2, "n_kv_head": 2, "head_dim": 16, "vocab_size": vocab_size, "max_seq_len": context}
    made = build_model(GPTConfig(**shape))
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for weight in made.parameters():
            weight.copy_(torch.randn(weight.shape, generator=generator) * 0.3)
    return made
