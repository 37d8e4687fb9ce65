"""What clients of OpenAI-compatible servers send beyond the plainest requests, over real connections."""

from collections.abc import Iterator
from typing import Any

import openai
import pytest
import torch

from tests.chat.serving import TOKENIZER, Running, loaded_model, running

pytestmark = pytest.mark.long
TEXT = "the cat sees a dog"
BOS = TOKENIZER.bos


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with running(loaded_model()) as one:
        yield one


@pytest.fixture(scope="module")
def client(server: Running) -> openai.OpenAI:
    return openai.OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0)


# ---- completions: echo, as lm-evaluation-harness scores answers with it


@pytest.fixture(scope="module")
def log_probs(server: Running) -> torch.Tensor:
    """Log probabilities (T, V) after BOS and each token of TEXT, by the model's own forward pass."""
    assert server.scheduler.current
    model = server.scheduler.current.model
    with torch.inference_mode():
        return model.logits(model(torch.tensor([[BOS, *TOKENIZER.encode(TEXT)]]))[0]).log_softmax(-1)


@pytest.mark.parametrize("max_tokens", [0, 1, 2])
@pytest.mark.parametrize("kind", ["text", "ids", "ids with BOS"])
def test_an_echoed_prompt_has_log_probabilities(client: openai.OpenAI, log_probs: torch.Tensor, kind: str, max_tokens: int) -> None:
    """Of each of the client's tokens but the first, and of each token of the answer."""
    ids = TOKENIZER.encode(TEXT)
    prompt: Any = {"text": TEXT, "ids": ids, "ids with BOS": [BOS, *ids]}[kind]
    own = int(kind == "ids with BOS")
    found = client.completions.create(model="tiny", prompt=prompt, max_tokens=max_tokens, echo=True, logprobs=2, temperature=0).choices[0]
    logs = found.logprobs
    assert logs and logs.tokens and logs.token_logprobs and logs.top_logprobs
    assert len(logs.tokens) == len(logs.token_logprobs) == len(logs.top_logprobs) == own + len(ids) + max_tokens
    assert TEXT in found.text and found.finish_reason == "length" and logs.token_logprobs[0] is None and logs.top_logprobs[0] is None
    right = [log_probs[place, id].item() for place, id in enumerate(ids)]
    assert logs.token_logprobs[1 : own + len(ids)] == pytest.approx(right[1 - own :], abs=1e-4)
    assert max(logs.top_logprobs[own + 3].values()) == pytest.approx(log_probs[3].max().item(), abs=1e-4)


def test_an_answers_special_token_is_counted_where_the_prompt_is_echoed(server: Running) -> None:
    """lm-evaluation-harness leaves out the last entry, which must be the answer's."""
    assert server.scheduler.current
    model, end = server.scheduler.current.model, TOKENIZER.special("<|assistant_end|>")
    asked = {"model": "tiny", "prompt": TEXT, "max_tokens": 1, "temperature": 0, "logprobs": 1}
    with torch.no_grad():
        model.head.weight[end] = 100 * model(torch.tensor([[BOS, *TOKENIZER.encode(TEXT)]]))[0, -1]
        try:
            plain, echoed = (server.post(asked | more, "/v1/completions").json()["choices"][0]["logprobs"] for more in ({}, {"echo": True}))
        finally:
            model.head.weight[end] = 0
    assert (len(plain["tokens"]), len(echoed["tokens"])) == (0, len(TOKENIZER.encode(TEXT)) + 1)


def test_echo_with_several_answers_and_in_a_stream(client: openai.OpenAI) -> None:
    many = client.completions.create(model="tiny", prompt=["a", "b"], max_tokens=2, echo=True, n=2)
    assert [choice.text[0] for choice in many.choices] == ["a", "a", "b", "b"] and many.choices[0].logprobs is None
    options: dict[str, Any] = {"model": "tiny", "prompt": "ab", "max_tokens": 3, "echo": True, "seed": 1}
    streamed = "".join(chunk.choices[0].text for chunk in client.completions.create(**options, stream=True))
    assert streamed == client.completions.create(**options).choices[0].text


@pytest.mark.parametrize("options", [{"max_tokens": 0}, {"prompt": [BOS + 1]}, {"prompt": [1, BOS]}, {"prompt": "a " * 600, "echo": True}])
def test_what_no_completion_can_be(client: openai.OpenAI, options: dict[str, Any]) -> None:
    with pytest.raises(openai.BadRequestError):
        client.completions.create(**{"model": "tiny", "prompt": "a"} | options)
