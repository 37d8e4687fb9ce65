"""CORE's prompts against the reference's rule, and its scores against a computation that is slow and plain."""

import hashlib
import json
import random
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from nanochat.distributed.ranks import single
from nanochat.errors import DataError
from nanochat.evaluation import scorer
from nanochat.evaluation.core import choose_examples, common_length, read_core
from nanochat.evaluation.runner import evaluate_tasks
from nanochat.evaluation.scorer import Scorer, Span
from nanochat.model.transformer import Transformer
from nanochat.tokenizer.tokenizer import Tokenizer
from tests.evaluation.bundle import BASELINES, CORE_YAML, model, rows, tokenizer, write_bundle

# karpathy/nanochat's core_eval.py at 92d63d4 made these of the same 40 rows (Jinja templates, shuffle 1337, examples 1234 + index).
PUBLISHED = {
    "picking": "52fbd5047e05fdc0ff5736ef2e867c6f61e8706a29f9b352b12b9b764568c71a",
    "referring": "001a3932c93202d0e6caf3e457ac7a853348e35b8e4687c4b14960ee84c27718",
    "saying": "21b3bbc4ce1a4e35b8d52a0d5cd7e94a442ec1a481ab7ff25fb4a35984770122",
}


@given(st.integers(1, 400), st.integers(0, 25), st.data())
def test_examples_are_the_references(count: int, shots: int, data: st.DataObject) -> None:
    index = data.draw(st.integers(0, count - 1))
    others = [i for i in range(count) if i != index]
    expected = random.Random(1234 + index).sample(others, min(shots, len(others)))
    assert choose_examples(index, count, shots) == expected


def test_prompts_are_the_references(tmp_path: Path) -> None:
    for task in read_core(write_bundle(tmp_path / "bundle")):
        prompts = [task.prompts(index) for index in range(len(task))]
        assert hashlib.sha256(json.dumps(prompts).encode()).hexdigest() == PUBLISHED[task.name]


def test_a_prompt_by_hand(tmp_path: Path) -> None:
    """The first row after the shuffle, behind the rows that its seed chooses."""
    picking, _, saying = read_core(write_bundle(tmp_path / "bundle"))
    asked = rows("picking", 40)
    random.Random(1337).shuffle(asked)
    shown = [asked[1:][i] for i in random.Random(1234).sample(range(39), 3)]
    text = "".join(f"{row['query']}\nAnswer: {row['choices'][row['gold']]}\n\n" for row in shown)
    assert picking.prompts(0) == [f"{text}{asked[0]['query']}\nAnswer: {choice}" for choice in asked[0]["choices"]]
    before, whole = saying.prompts(0)
    assert before == before.strip() and whole == f"{before} {saying.rows[0]['continuation']}"


def nats_of(gpt: Transformer, ids: list[int]) -> list[tuple[float, bool]]:
    """(nats, whether it was the likeliest) of every id but the first, read alone."""
    with torch.no_grad():
        logits = gpt.logits(gpt(torch.tensor([ids])))[0, :-1].double()
    found = F.log_softmax(logits, dim=-1)
    return [(-found[place, id].item(), int(logits[place].argmax()) == id) for place, id in enumerate(ids[1:])]


def slow_accuracy(gpt: Transformer, tok: Tokenizer, kind: str, prompts: list[list[str]], golds: list[int]) -> float:
    right = 0
    for texts, gold in zip(prompts, golds, strict=True):
        ids = [[tok.bos, *tok.encode(text)] for text in texts]
        if kind == "saying":
            start = len(ids[0])
            assert ids[1][:start] == ids[0]
            right += all(hit for _, hit in nats_of(gpt, ids[1])[start - 1 :])
            continue
        means = []
        for one in ids:
            if kind == "picking":
                start = next(i for i in range(1000) if len({other[i] for other in ids}) > 1)
            else:
                same = next(i for i in range(1000) if len({other[-1 - i] for other in ids}) > 1)
                start = len(one) - same
            scored = [nats for nats, _ in nats_of(gpt, one)[start - 1 :]]
            means.append(sum(scored) / len(scored))
        right += means.index(min(means)) == gold
    return right / len(prompts)


def test_scores_equal_a_slow_computation(tmp_path: Path) -> None:
    tok = tokenizer()
    gpt = model(tok.vocab_size)
    tasks = read_core(write_bundle(tmp_path / "bundle"))
    for seed, picky in ((0, 1.0), (1, 30.0)):  # the second one's likeliest token is often the same: some words are said
        with torch.no_grad():
            gpt.head.weight.copy_(torch.randn(gpt.head.weight.shape, generator=torch.Generator().manual_seed(seed)) * 0.3)
            gpt.head.weight[tok.encode(" cat")[0]] *= picky
        found = evaluate_tasks("core", tasks, Scorer(gpt, tok), single(), tmp_path / str(seed), "a model")
        centred = []
        for task in tasks:
            golds = [row.get("gold", 0) for row in task.rows]
            expected = slow_accuracy(gpt, tok, task.name, [task.prompts(i) for i in range(len(task))], golds)
            assert found["tasks"][task.name]["accuracy"] == pytest.approx(expected, abs=1e-6)
            chance = BASELINES[task.name] / 100
            centred.append((expected - chance) / (1 - chance))
        assert found["score"] == pytest.approx(sum(centred) / 3, abs=1e-5)
    assert found["tasks"]["saying"]["accuracy"] > 0


def test_batches_halves_and_other_ranks_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tok = tokenizer()
    gpt = model(tok.vocab_size)
    tasks = read_core(write_bundle(tmp_path / "bundle"))
    whole = evaluate_tasks("core", tasks, Scorer(gpt, tok), single(), tmp_path / "whole", "a model")
    assert evaluate_tasks("core", tasks, Scorer(gpt, tok, batch_tokens=1), single(), tmp_path / "alone", "a model") == whole

    score_batch, largest = scorer.score_batch, []

    def crowded(gpt: Transformer, spans: list[Span], padding: int) -> list[tuple[float, bool]]:
        if len(spans) > 5:
            raise torch.OutOfMemoryError("injected")
        largest.append(len(spans))
        return score_batch(gpt, spans, padding)

    monkeypatch.setattr(scorer, "score_batch", crowded)
    assert evaluate_tasks("core", tasks, Scorer(gpt, tok), single(), tmp_path / "crowded", "a model") == whole
    assert max(largest) in (4, 5) and min(largest) >= 1


def test_a_text_longer_than_the_context_loses_its_beginning(tmp_path: Path) -> None:
    tok = tokenizer()
    gpt = model(tok.vocab_size, context=16)
    spans = read_core(write_bundle(tmp_path / "bundle"))[0].spans(0, tok)
    assert min(len(span.ids) for span in spans) > 16
    for span, (nats, _) in zip(spans, Scorer(gpt, tok).score_spans(spans), strict=True):
        scored = span.end - span.start
        expected = [value for value, _ in nats_of(gpt, span.ids[-16:])[-scored:]]
        assert nats == pytest.approx(sum(expected) / len(expected), rel=1e-4)


def test_common_beginnings() -> None:
    assert common_length([[1, 2, 3], [1, 2, 4], [1, 2]]) == 2
    assert common_length([[1], [2]]) == 0 and common_length([[5, 6]]) == 2


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("core.yaml", "icl_tasks: 3\n"),
        ("core.yaml", "{"),
        ("eval_meta_data.csv", "Eval Task,Random baseline\npicking,25\n"),
        ("eval_data/saying.jsonl", '{"context": "a"}\n'),
        ("eval_data/understanding/picking.jsonl", '{"query": "a", "choices": ["b"], "gold": 1}\n'),
        ("eval_data/saying.jsonl", "\n"),
        ("eval_data/saying.jsonl", "[" * 100_000),
        ("eval_data/saying.jsonl", "[1]\n"),
        ("core.yaml", "[" * 100_000),
        ("core.yaml", CORE_YAML.replace("saying.jsonl", "../../secret.jsonl")),
        ("core.yaml", CORE_YAML.replace("saying.jsonl", "/dev/zero")),
        ("core.yaml", CORE_YAML.replace("[10]", "[1000000000000]")),
    ],
)
def test_another_bundle_is_refused(file: str, text: str, tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "bundle")
    (tmp_path / "secret.jsonl").write_text('{"context": "a", "continuation": "b"}\n')
    (bundle / file).write_text(text)
    with pytest.raises(DataError, match="is not the evaluation bundle"):
        read_core(bundle)


def test_few_rows_are_enough(tmp_path: Path) -> None:
    """Fewer rows than examples: all others are shown."""
    tasks = read_core(write_bundle(tmp_path / "bundle"), 2)
    assert [len(task) for task in tasks] == [2, 2, 2]
    assert tasks[2].prompts(1)[1].count("\n\n") == 1
