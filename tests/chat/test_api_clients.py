"""What clients of OpenAI-compatible servers send beyond the plainest requests, over real connections."""

import json
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
import torch

from nanochat.chat.prepare import prepare_chat
from nanochat.chat.schema import ChatRequest
from nanochat.generate.engine import Engine
from tests.chat.serving import CONTEXT, PATH, TOKENIZER, Running, loaded_model, running

pytestmark = pytest.mark.long
TEXT = "the cat sees a dog"
BOS = TOKENIZER.bos


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with running(loaded_model()) as one:
        yield one


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


# ---- conversations as clients keep them


def prompt(server: Running, messages: list[Any], **more: Any) -> list[int]:
    """The ids that a conversation becomes."""
    assert server.scheduler.current
    return prepare_chat(ChatRequest(messages=messages, **more), server.scheduler.current).prompts[0]


def message(role: str, content: Any, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content} | more


CALL: list[Any] = [{"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}}]
CALLED = message("assistant", None, tool_calls=CALL)


@pytest.mark.parametrize(
    ("sent", "meant"),
    [
        ([message("assistant", "Welcome!"), message("user", "hi")], [message("user", "hi")]),
        (
            [
                message("user", "hi"),
                message("assistant", None, tool_calls=CALL),
                message("tool", "x", tool_call_id="a"),
                message("user", "and?"),
            ],
            [message("user", "hi\n\nx\n\nand?")],
        ),
        ([message("user", "hi"), {"role": "assistant", "tool_calls": CALL}, message("user", "so?")], [message("user", "hi\n\nso?")]),
        (
            [message("user", "a"), message("assistant", "b"), message("assistant", "c"), message("user", "d")],
            [message("user", "a"), message("assistant", "b\n\nc"), message("user", "d")],
        ),
        ([message("system", None), message("user", "hi")], [message("user", "hi")]),
    ],
)
def test_a_conversation_becomes_what_is_meant(server: Running, sent: list[Any], meant: list[Any]) -> None:
    assert prompt(server, sent) == TOKENIZER.render_prompt(meant, CONTEXT)[0]
    assert server.post({"messages": sent, "max_tokens": 2}).status_code == 200


def test_an_answer_that_is_begun_is_continued(server: Running, client: openai.OpenAI) -> None:
    start = [message("user", "hi"), message("assistant", "Once upon")]
    ids = prompt(server, start)
    assert ids == TOKENIZER.render_prompt(start[:1], CONTEXT)[0] + TOKENIZER.encode("Once upon")
    assert ids == prompt(server, start, continue_final_message=True)
    assert server.scheduler.current
    [right] = Engine(server.scheduler.current.model, TOKENIZER).complete([ids], max_tokens=6)
    found = client.chat.completions.create(model="tiny", messages=start, max_tokens=6, temperature=0)  # type: ignore[arg-type]
    assert found.choices[0].message.content == TOKENIZER.decode(right)  # what comes after, alone
    for wrong in ({"messages": start, "continue_final_message": False}, {"messages": start[:1], "continue_final_message": True}):
        answer = server.post(wrong)
        assert answer.status_code == 400 and answer.json()["error"]["param"] == "continue_final_message"
    too_long = server.post({"messages": [*start[:1], message("assistant", "word " * 400)]})
    assert too_long.status_code == 400 and too_long.json()["error"]["code"] == "context_length_exceeded"


def test_names_of_the_served_model(server: Running, client: openai.OpenAI) -> None:
    for name in ("tiny", "tiny:latest", "nanochat", "nanochat:latest", ""):
        assert server.post({"model": name, "messages": [message("user", "hi")], "max_tokens": 1}).status_code == 200
    assert client.models.retrieve("tiny:latest").id == "tiny"
    for name in ("tiny:newest", "other", ":latest:latest"):
        assert server.post({"model": name, "messages": [message("user", "hi")]}).status_code == 404


HI: dict[str, Any] = {"messages": [message("user", "hi")]}
IMAGE = [{"type": "text", "text": "hi"}, {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA"}}]


@pytest.mark.parametrize(
    ("body", "said", "param"),
    [
        ({"messages": [message("user", 5)]}, "messages[0].content: must be a text or a list, and is 5", "messages"),
        (
            {"messages": [message("user", IMAGE)]},
            "messages[0].content[1].type: 'image_url' is not supported here",
            "messages",
        ),
        ({"messages": [message("robot", "hi")]}, "messages[0].role: 'robot' is not supported here; it may be 'system',", "messages"),
        ({"messages": ["hi"]}, "messages[0]: must be an object, and is 'hi'", "messages"),
        ({"messages": []}, "messages: has 0 items; at least 1 are allowed", "messages"),
        ({"messages": [message("user", "\ud800")]}, "messages[0].content: the text has a lone surrogate", "messages"),
        ({}, "messages: is missing", "messages"),
        (HI | {"stop": list("abcde")}, "stop: has 5 items; at most 4 are allowed", "stop"),
        (HI | {"stop": 3}, "stop: must be a text or a list, and is 3", "stop"),
        (HI | {"temperature": 3}, "temperature: must be less than or equal to 2", "temperature"),
        (HI | {"temperature": "warm"}, "temperature: must be a number, and is 'warm'", "temperature"),
        (HI | {"stream": 1}, "stream: must be true or false, and is 1", "stream"),
        (HI | {"tools": CALL}, "unsupported parameter: tools: the models that are trained here were not taught to call tools", "tools"),
        (HI | {"logit_bias": {"5": 1}}, "unsupported parameter: logit_bias: it changes the answer", "logit_bias"),
        ([1], "must be an object, and is a list", None),
    ],
)
def test_what_is_wrong_is_said_in_words(server: Running, body: Any, said: str, param: str | None) -> None:
    """No name of a type of Python's or of a validator is in it."""
    answer = httpx.post(server.url + PATH, content=json.dumps(body), headers={"content-type": "application/json"})
    error = answer.json()["error"]
    assert answer.status_code == 400 and said in error["message"] and error["param"] == param, error
    assert not any(word in error["message"] for word in ("function-after", "Input should", "str]", "constrained-str"))


def test_a_prompt_of_the_wrong_kind(server: Running) -> None:
    answer = server.post({"prompt": {"a": 1}}, "/v1/completions")
    assert answer.json()["error"]["message"] == "prompt: must be a text or a list, and is an object"
    answer = httpx.post(server.url + PATH, content="{", headers={"content-type": "application/json"})
    assert answer.status_code == 400 and answer.json()["error"]["message"].startswith("the body is not JSON: ")
    answer = httpx.post(server.url + PATH, content=json.dumps(HI), headers={"content-type": "application/x-www-form-urlencoded"})
    assert answer.status_code == 400 and "send the header Content-Type: application/json" in answer.json()["error"]["message"]


# ---- the Responses API


def test_a_response(server: Running, client: openai.OpenAI) -> None:
    """The answer of the chat completion with the same messages, in the client's own types; whole and streamed."""
    messages: Any = [message("system", "be brief"), message("user", "hi")]
    right = client.chat.completions.create(model="tiny", messages=messages, max_tokens=6, temperature=0)
    asked: Any = {"model": "tiny", "instructions": "be brief", "input": "hi", "max_output_tokens": 6, "temperature": 0}
    found = client.responses.create(**asked)
    assert found.output_text == right.choices[0].message.content and right.usage and found.usage
    assert (found.usage.input_tokens, found.usage.output_tokens) == (right.usage.prompt_tokens, right.usage.completion_tokens)
    assert found.status == "incomplete" and found.incomplete_details and found.incomplete_details.reason == "max_output_tokens"
    events = list(client.responses.create(**asked, stream=True))
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == found.output_text
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert (events[0].type, events[-1].type) == ("response.created", "response.incomplete")
    assert events[-1].response.output_text == found.output_text  # type: ignore[union-attr]


def test_a_response_to_a_conversation(server: Running, client: openai.OpenAI) -> None:
    first = client.responses.create(model="tiny", input=[message("user", "hi")], max_output_tokens=3, temperature=0)  # type: ignore[list-item]
    history: Any = [
        message("user", "hi"),
        *(item.model_dump() for item in first.output),
        message("user", [{"type": "input_text", "text": "so?"}]),
    ]
    second = client.responses.create(model="tiny", input=history, max_output_tokens=4, temperature=0)
    messages: Any = [message("user", "hi"), message("assistant", first.output_text), message("user", "so?")]
    right = client.chat.completions.create(model="tiny", messages=messages, max_tokens=4, temperature=0)
    assert second.output_text == right.choices[0].message.content


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"tools": [{"type": "web_search"}]}, "tools"),
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"text": {"format": {"type": "json_schema", "name": "x"}}}, "text"),
        ({"input": [message("user", [{"type": "input_image", "image_url": "x"}])]}, "input"),
        ({"input": []}, "input"),
    ],
)
def test_what_a_response_cannot_be(client: openai.OpenAI, more: dict[str, Any], param: str) -> None:
    with pytest.raises(openai.BadRequestError) as raised:
        client.responses.create(**{"model": "tiny", "input": "hi"} | more)
    assert raised.value.param == param
