"""The engine against a slow reference that runs the whole sequence again for every token, and the calculator by forced tokens."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nanochat.errors import UsageError
from nanochat.generate.engine import Answer, Engine, answer_text
from nanochat.generate.sampling import Sampling, sample
from nanochat.model.build import build_model
from nanochat.model.gpt import GPT
from nanochat.model.scaling import GPTConfig
from nanochat.model.transformer import Transformer
from nanochat.tokenizer.tokenizer import SPECIAL_TOKENS, Tokenizer

pytestmark = pytest.mark.long

TOKENIZER = Tokenizer([bytes([b]) for b in range(256)])
V = TOKENIZER.vocab_size
END = TOKENIZER.special("<|assistant_end|>")


def config(**changes: Any) -> GPTConfig:
    shape = {"depth": 3, "dim": 64, "n_head": 2, "n_kv_head": 1, "head_dim": 32, "vocab_size": V, "max_seq_len": 64}
    return GPTConfig(**shape | changes)


def random_model(seed: int = 0) -> Transformer:
    """A tiny model whose every weight is random, so that each part of it moves the logits."""
    torch.set_num_threads(1)
    model = build_model(config(), seed=seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * (0.2 if parameter.dim() > 1 else 0.5))
    return model


MODEL = random_model()
ENGINE = Engine(MODEL, TOKENIZER)


@torch.inference_mode()
def full_logits(ids: Sequence[int]) -> torch.Tensor:
    return MODEL.logits(MODEL(torch.tensor([list(ids)]))[0, -1])


def slow_greedy(prompt: list[int], max_tokens: int) -> list[int]:
    """What the engine must say at temperature 0 (no calculator): one full forward pass a token."""
    ids = list(prompt)
    while len(ids) < min(len(prompt) + max_tokens, 64):
        ids.append(int(full_logits(ids).argmax()))
        if ids[-1] in (END, TOKENIZER.bos):
            break
    return ids[len(prompt) :]


def prompts(count: int, seed: int = 1) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 30, (count,), generator=generator).tolist()
    return [[TOKENIZER.bos, *torch.randint(0, 256, (length,), generator=generator).tolist()] for length in lengths]


def test_the_cache_equals_the_full_pass() -> None:
    for prompt, answer in zip(prompts(6), ENGINE.complete(prompts(6), max_tokens=20), strict=True):
        assert answer == slow_greedy(prompt, 20)


def test_a_batch_equals_one_by_one() -> None:
    many = prompts(5)
    for options in ({"temperature": 0.0}, {"temperature": 1.0, "seed": 5}, {"temperature": 1.3, "top_k": 20, "top_p": 0.8, "seed": 5}):
        together = ENGINE.complete(many, max_tokens=10, **options)
        assert ENGINE.complete(many, max_tokens=10, batch_size=2, **options) == together
        for row, prompt in enumerate(many):
            alone = options | ({"seed": 5 + row} if "seed" in options else {})
            assert ENGINE.complete([prompt], max_tokens=10, **alone) == [together[row]]


def test_seeds() -> None:
    prompt = prompts(1)
    answers = {tuple(ENGINE.complete(prompt, max_tokens=12, temperature=1.0, seed=seed)[0]) for seed in (1, 1, 2, 3)}
    assert len(answers) == 3
    assert len({tuple(ENGINE.complete(prompt, max_tokens=12, temperature=1.0)[0]) for _ in range(3)}) > 1


def test_stepwise_equals_complete() -> None:
    many = prompts(4)
    answers: list[list[int]] = [[] for _ in many]
    for step in ENGINE.generate(many, max_tokens=10, temperature=0):
        assert len({row for row, _, _ in step}) == len(step)
        for row, token, forced in step:
            assert not forced
            answers[row].append(token)
    assert answers == ENGINE.complete(many, max_tokens=10)
    assert ENGINE.complete([], max_tokens=10) == []
    assert list(ENGINE.generate([], max_tokens=10)) == []


def test_a_full_context_ends_the_answer() -> None:
    full, almost = [65] * 64, [65] * 62
    answers = ENGINE.complete([full, almost, [65]], max_tokens=100, temperature=1.0, seed=3)
    assert len(answers[0]) == 0
    assert len(answers[1]) <= 2
    assert len(answers[2]) <= 63
    with pytest.raises(UsageError, match="65 tokens"):
        ENGINE.complete([[65] * 65], max_tokens=1)


def test_inference_mode_does_not_leak() -> None:
    for _ in ENGINE.generate([[65]], max_tokens=3, temperature=0):
        assert not torch.is_inference_mode_enabled()


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": -0.1},
        {"temperature": float("nan")},
        {"temperature": float("inf")},
        {"top_k": -1},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"top_p": float("nan")},
        {"seed": -1},
        {"seed": 2**64},
        {"max_tokens": 0},
    ],
)
def test_impossible_values_are_refused_at_once(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        ENGINE.generate([[65]], **{"max_tokens": 1} | options)
    with pytest.raises(UsageError):
        ENGINE.generate([[]], max_tokens=1)


# Sampling


def slow_distribution(logits: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    """Probabilities (V,) that `sample` must draw from, the obvious way."""
    ranked = sorted(range(len(logits)), key=lambda i: -logits[i].item())[: sampling.top_k or len(logits)]
    weights = torch.zeros(len(logits), dtype=torch.float64)
    weights[ranked] = (logits[ranked].double() / sampling.temperature).softmax(-1)
    total = 0.0
    for token in ranked:
        weights[token], total = (0.0 if total >= sampling.top_p else weights[token].item()), total + weights[token].item()
    return weights / weights.sum()


@pytest.mark.parametrize(
    "sampling",
    [Sampling(seed=1), Sampling(0.5, seed=1), Sampling(2.0, top_k=3, seed=1), Sampling(1.0, 6, 0.7, 1), Sampling(1.0, 0, 0.5, 1)],
)
def test_samples_follow_the_distribution(sampling: Sampling) -> None:
    logits = torch.tensor([0.3, 2.0, -1.0, 1.2, 0.9, -3.0, 1.9, 0.0])
    draws = 20_000
    counts = torch.bincount(
        torch.tensor(sample(logits.expand(draws, -1), [sampling] * draws, [sampling.generator(row) for row in range(draws)])), minlength=8
    )
    expected = slow_distribution(logits, sampling)
    assert not counts[expected == 0].any()
    assert (counts / draws - expected).abs().max() < 0.015


@given(st.lists(st.floats(-15, 15), min_size=2, max_size=12), st.floats(0, 3), st.integers(0, 15), st.floats(0.01, 1.0), st.integers(0, 9))
@settings(deadline=None, max_examples=50)
def test_what_is_drawn_is_among_the_likeliest(values: list[float], temperature: float, top_k: int, top_p: float, seed: int) -> None:
    logits = torch.tensor([values])
    sampling = Sampling(temperature, top_k, top_p, seed)
    [token] = sample(logits, [sampling], [sampling.generator()])
    likelier = int((logits[0] > logits[0, token]).sum())
    assert likelier < (top_k or len(values))
    if temperature < 1e-4:
        assert logits[0, token] == logits.max()


# The calculator


class Scripted(GPT):
    """Says scripts[n] to a prompt whose first id is n, whatever it reads; its place in the script is what the cache holds."""

    def __init__(self, scripts: list[list[int]]):
        super().__init__(config())
        self.scripts = scripts
        self.read: list[list[int]] = []

    def forward(self, ids: torch.Tensor, cache: Any = None, counts: torch.Tensor | None = None) -> torch.Tensor:
        assert counts is not None
        if not self.read:  # which script, and from where: kept where a real model keeps a row's last embedding
            cache.previous[:, 0], cache.previous[:, 1] = ids[:, 0], counts
        self.read.append(ids.flatten().tolist())
        cache.lengths += counts
        hidden = torch.zeros(*ids.shape, V)
        for row, (script, start) in enumerate(cache.previous[:, :2].long().tolist()):
            place = int(cache.lengths[row]) - start
            hidden[row, :, self.scripts[script][place] if place < len(self.scripts[script]) else END] = 1.0
        return hidden

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden


def marked(text: str) -> list[int]:
    """Ids of a text in which specials are spelt <|name|>."""
    ids: list[int] = []
    while text:
        name = next((name for name in SPECIAL_TOKENS if text.startswith(name)), None)
        ids += [TOKENIZER.special(name)] if name else list(text[0].encode())
        text = text[len(name or " ") :]
    return ids


def answer_of(script: str, max_tokens: int = 60) -> str:
    model = Scripted([marked(script)])
    [ids] = Engine(model, TOKENIZER).complete([[0]], max_tokens=max_tokens)
    return TOKENIZER.decode(ids)


def test_the_calculators_result_is_forced() -> None:
    script = marked("It is <|python_start|>12+34<|python_end|>" + "?" * 4 + "46.<|assistant_end|>")  # the ?s are overruled
    model = Scripted([script])
    steps = [emitted for [emitted] in Engine(model, TOKENIZER).generate([[0]], max_tokens=60, temperature=0)]
    said = "It is <|python_start|>12+34<|python_end|><|output_start|>46<|output_end|>46.<|assistant_end|>"
    assert TOKENIZER.decode([token for _, token, _ in steps]) == said
    assert TOKENIZER.decode([token for _, token, forced in steps if forced]) == "<|output_start|>46<|output_end|>"
    assert model.read[1:] == [[token] for _, token, _ in steps[:-1]]  # the model reads the forced tokens as its own
    assert answer_text(TOKENIZER, [token for _, token, _ in steps]) == "It is 46."


def test_rows_call_the_calculator_each_in_its_own_time() -> None:
    scripts = ["<|python_start|>1+1<|python_end|>???2", "abcdef<|python_start|>10*10<|python_end|>?????100", "x"]
    model = Scripted([marked(script) for script in scripts])
    answers = [TOKENIZER.decode(ids) for ids in Engine(model, TOKENIZER).complete([[0], [1] * 2, [2] * 3], max_tokens=50)]
    assert answers[2] == "x<|assistant_end|>"
    # Row 2 ended first and was copied out of the cache.
    assert answers[0].startswith("<|python_start|>1+1<|python_end|><|output_start|>2<|output_end|>2")
    assert answers[1].startswith("abcdef<|python_start|>10*10<|python_end|><|output_start|>100<|output_end|>100")


@pytest.mark.parametrize(
    ("script", "answer"),
    [
        ("<|python_start|>1/0<|python_end|>no", "<|python_start|>1/0<|python_end|>no<|assistant_end|>"),  # no result: nothing forced
        ("a<|python_end|>b", "a<|python_end|>b<|assistant_end|>"),  # an end without a start
        (
            "<|python_start|>1<|python_start|>2<|python_end|>???!",
            "<|python_start|>1<|python_start|>2<|python_end|><|output_start|>2<|output_end|>!<|assistant_end|>",
        ),
        ("a<|bos|>b", "a<|bos|>"),
        ("<|python_start|>1+1", "<|python_start|>1+1<|assistant_end|>"),
    ],
)
def test_odd_answers(script: str, answer: str) -> None:
    assert answer_of(script) == answer


def test_max_tokens_counts_forced_tokens() -> None:
    assert answer_of("<|python_start|>1+1<|python_end|>", max_tokens=6) == "<|python_start|>1+1<|python_end|><|output_start|>"


# What a user sees


def test_the_visible_answer() -> None:
    ids = marked("It is <|python_start|>12+34<|python_end|><|output_start|>46<|output_end|>46, 你.<|assistant_end|>")
    assert answer_text(TOKENIZER, ids) == "It is 46, 你."
    answer = Answer(TOKENIZER)
    pieces = [answer.push(token) for token in ids]
    assert "".join(pieces) == answer.text == "It is 46, 你."
    assert answer.parts == [
        {"type": "text", "text": "It is "},
        {"type": "python", "text": "12+34"},
        {"type": "python_output", "text": "46"},
        {"type": "text", "text": "46, 你."},
    ]
    rendered, _ = TOKENIZER.render([{"role": "user", "content": "?"}, {"role": "assistant", "content": answer.parts}])
    assert rendered[-len(ids) :] == ids  # the parts lead back to the same ids
    assert answer_text(TOKENIZER, marked("a<|python_start|>1/0<|python_end|>b")) == "ab"
    assert answer_text(TOKENIZER, [0xE4, 0xBD]) == "\ufffd"
    assert answer_text(TOKENIZER, []) == ""
