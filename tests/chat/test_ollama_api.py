"""Ollama's API: the list of models, answers whole and streamed, options, refusals."""

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from nanochat.generate.engine import Engine
from tests.chat.serving import CONTEXT, TOKENIZER, Running, loaded_model, running

pytestmark = pytest.mark.long
CHAT = "/api/chat"


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with running(loaded_model()) as one:
        yield one


def asked(text: str = "hello", **more: Any) -> dict[str, Any]:
    options = {"temperature": 0, "num_predict": 12} | more.pop("options", {})
    return {"model": "tiny", "messages": [{"role": "user", "content": text}], "options": options} | more


def expected(server: Running, text: str, count: int) -> str:
    assert server.scheduler.current
    prompt, _ = TOKENIZER.render_prompt([{"role": "user", "content": text}], CONTEXT)
    return TOKENIZER.decode(Engine(server.scheduler.current.model, TOKENIZER).complete([prompt], max_tokens=count)[0])


def test_the_models(server: Running) -> None:
    [model] = httpx.get(server.url + "/api/tags").json()["models"]
    assert model["name"] == "tiny" and model["size"] == 4000 and model["details"]["family"] == "nanochat"
    assert httpx.get(server.url + "/api/version").json()["version"]


def test_a_whole_answer(server: Running) -> None:
    answer = server.post(asked(stream=False), CHAT).json()
    assert answer["message"] == {"role": "assistant", "content": expected(server, "hello", 12)}
    assert (answer["done"], answer["done_reason"], answer["eval_count"], answer["prompt_eval_count"]) == (True, "length", 12, 9)
    assert answer["model"] == "tiny" and answer["total_duration"] > 0


def test_a_stream_is_the_default(server: Running) -> None:
    with httpx.stream("POST", server.url + CHAT, json=asked() | {"model": "tiny:latest"}, timeout=60) as response:
        assert response.headers["content-type"].startswith("application/x-ndjson")
        lines = [json.loads(line) for line in response.iter_lines()]
    assert "".join(line["message"]["content"] for line in lines) == expected(server, "hello", 12)
    assert [line["done"] for line in lines] == [False] * (len(lines) - 1) + [True] and lines[-1]["eval_count"] == 12


def test_without_messages_the_model_is_loaded(server: Running) -> None:
    assert server.post({"model": "tiny", "messages": []}, CHAT).json()["done_reason"] == "load"


@pytest.mark.parametrize(
    "change",
    [
        {"tools": [{"type": "function"}]},
        {"format": "yaml"},
        {"format": {"type": 5}},
        {"messages": [{"role": "user", "content": "x", "images": ["aGk="]}]},
        {"options": {"temperature": 99}},
        {"messages": "x"},
    ],
)
def test_what_it_cannot_do_is_refused(server: Running, change: dict[str, Any]) -> None:
    response = server.post(asked() | change, CHAT)
    assert response.status_code == 400 and response.json()["error"]["message"]


def test_another_model_is_not_found(server: Running) -> None:
    assert server.post(asked() | {"model": "other"}, CHAT).status_code == 404
