"""OpenAI's API as its clients use it, over real connections: answers, streams, errors, and what third-party tools make of it."""

import asyncio
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from nanochat.chat.middleware import Limits
from nanochat.generate.engine import Engine
from tests.chat.serving import CONTEXT, KEY, TOKENIZER, Running, loaded_model, running

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with running(loaded_model()) as one:
        yield one


def expected(server: Running, text: str, max_tokens: int) -> str:
    """What the engine alone answers to a message."""
    assert server.scheduler.current
    prompt, _ = TOKENIZER.render_prompt([{"role": "user", "content": text}], CONTEXT)
    [ids] = Engine(server.scheduler.current.model, TOKENIZER).complete([prompt], max_tokens=max_tokens)
    return TOKENIZER.decode(ids)


def user(text: str) -> list[Any]:
    return [{"role": "user", "content": text}]


# openai's own client


def test_an_answer(server: Running, client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="tiny", messages=user("hello"), temperature=0, max_tokens=12)
    assert answer.choices[0].message.content == expected(server, "hello", 12)
    assert answer.choices[0].finish_reason == "length"
    assert answer.model == "tiny"
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (5 + 4, 12)


def test_a_stream(server: Running, client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(
        model="tiny", messages=user("hello"), temperature=0, max_tokens=12, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == expected(server, "hello", 12)
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "length"
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 12
    assert len({chunk.id for chunk in chunks}) == 1


def test_async_clients_share_the_batch(server: Running) -> None:
    async def ask() -> list[str]:
        async with openai.AsyncOpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0) as client:

            async def one(i: int) -> str:
                stream = await client.chat.completions.create(
                    model="nanochat", messages=user(f"number {i}"), temperature=0, max_tokens=10 + i, stream=True
                )
                return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

            return await asyncio.gather(*map(one, range(12)))

    assert asyncio.run(ask()) == [expected(server, f"number {i}", 10 + i) for i in range(12)]


def test_completions(server: Running, client: openai.OpenAI) -> None:
    answer = client.completions.create(model="tiny", prompt="Once", temperature=0, max_tokens=6, n=2)
    assert len(answer.choices) == 2
    assert answer.choices[0].text == answer.choices[1].text
    many = client.completions.create(model="tiny", prompt=["Once", "upon"], temperature=0, max_tokens=6)
    assert many.choices[0].text == answer.choices[0].text
    ids = client.completions.create(model="tiny", prompt=TOKENIZER.encode("Once"), temperature=0, max_tokens=6, logprobs=2)
    assert ids.choices[0].text == answer.choices[0].text
    assert ids.choices[0].logprobs is not None
    assert len(ids.choices[0].logprobs.tokens or []) == 6
    stream = client.completions.create(model="tiny", prompt="Once", temperature=0, max_tokens=6, stream=True)
    assert "".join(chunk.choices[0].text for chunk in stream) == answer.choices[0].text


def test_sampling_options(server: Running, client: openai.OpenAI) -> None:
    def say(**options: Any) -> list[str | None]:
        answer = client.chat.completions.create(model="tiny", messages=user("hi"), max_tokens=12, **options)
        return [choice.message.content for choice in answer.choices]

    assert say(seed=4, n=3) == say(seed=4, n=3)
    assert len(set(say(seed=4, n=3))) == 3
    assert say(seed=4) != say(seed=5)
    greedy = say(temperature=0)
    assert say(temperature=2, extra_body={"top_k": 1}) == say(top_p=1e-6) == greedy
    assert greedy[0]
    stop = greedy[0][4:6]
    assert say(temperature=0, stop=stop) == [greedy[0][: greedy[0].index(stop)]]


def test_log_probabilities(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="tiny", messages=user("hi"), temperature=0, max_tokens=5, logprobs=True, top_logprobs=3)
    assert answer.choices[0].logprobs and answer.choices[0].logprobs.content
    for token in answer.choices[0].logprobs.content:
        assert token.top_logprobs[0].logprob == token.logprob  # at temperature 0 the likeliest is said
        assert len(token.top_logprobs) == 3
        assert token.bytes == token.top_logprobs[0].bytes


def test_models(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").owned_by == "nanochat"
    with pytest.raises(openai.NotFoundError, match="is not served here"):
        client.models.retrieve("gpt-4o")


@pytest.mark.parametrize(
    ("options", "error", "code"),
    [
        ({"model": "gpt-4o"}, openai.NotFoundError, "model_not_found"),
        ({"messages": user("x" * 2000)}, openai.BadRequestError, "context_length_exceeded"),
        ({"temperature": 2.5}, openai.BadRequestError, "invalid_value"),
        ({"temperature": -1}, openai.BadRequestError, "invalid_value"),
        ({"max_tokens": 0}, openai.BadRequestError, "invalid_value"),
        ({"messages": []}, openai.BadRequestError, "invalid_value"),
        ({"messages": [{"role": "assistant", "content": "I begin"}]}, openai.BadRequestError, "invalid_value"),
        ({"messages": [{"role": "tool", "content": "x", "tool_call_id": "1"}]}, openai.BadRequestError, "invalid_value"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, openai.BadRequestError, "unsupported_parameter"),
        ({"response_format": {"type": "json_schema"}}, openai.BadRequestError, "invalid_value"),
        ({"logit_bias": {"5": 1}}, openai.BadRequestError, "unsupported_parameter"),
        ({"presence_penalty": 0.5}, openai.BadRequestError, "unsupported_parameter"),
        ({"top_logprobs": 3}, openai.BadRequestError, "invalid_value"),
    ],
)
def test_errors_have_openais_shape(client: openai.OpenAI, options: dict[str, Any], error: type[Exception], code: str) -> None:
    with pytest.raises(error) as caught:
        client.chat.completions.create(**{"model": "tiny", "messages": user("hi"), "max_tokens": 3} | options)
    assert caught.value.code == code  # type: ignore[attr-defined]
    assert caught.value.type == "invalid_request_error"  # type: ignore[attr-defined]


def test_what_asks_for_nothing_is_no_error(client: openai.OpenAI) -> None:
    client.chat.completions.create(
        model="tiny",
        messages=user("hi"),
        max_tokens=2,
        frequency_penalty=0,
        response_format={"type": "text"},
        user="someone",
        metadata={"a": "b"},
        extra_body={"tools": [], "unheard_of": 1},
    )


# Conversations


def test_system_messages_parts_and_neighbours_of_one_role(server: Running) -> None:
    plain = server.ask("Be brief.\n\none\n\ntwo")
    messages = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "one"}]},
        {"role": "user", "content": "two"},
    ]
    assert server.post({"messages": messages, "temperature": 0, "max_tokens": 8}).json()["choices"] == plain["choices"]


def test_a_long_history_loses_its_oldest_turns_and_says_so(server: Running) -> None:
    turns = [{"role": role, "content": f"{role} {i} " + "x" * 60} for i in range(6) for role in ("user", "assistant")]
    whole = server.post({"messages": [*turns, *user("last")], "max_tokens": 3, "temperature": 0}).json()
    assert 1 <= whole["dropped_turns"] <= 5
    kept = server.post({"messages": [*turns[2 * whole["dropped_turns"] :], *user("last")], "max_tokens": 3, "temperature": 0}).json()
    assert "dropped_turns" not in kept
    assert kept["choices"] == whole["choices"]
    assert whole["usage"]["prompt_tokens"] <= CONTEXT - 3
    streamed = server.post({"messages": [*turns, *user("last")], "max_tokens": 3, "stream": True}).text
    assert json.loads(streamed.split("\n\n")[0].removeprefix("data: "))["dropped_turns"] == whole["dropped_turns"]


def test_a_conversations_next_turn_is_read_from_the_cache(server: Running) -> None:
    def reused() -> float:
        text = httpx.get(server.url + "/metrics").text
        return float(next(line.split()[1] for line in text.splitlines() if line.startswith("nanochat_prompt_tokens_reused_total")))

    first = server.ask("a message that is long enough to be worth keeping")
    before = reused()
    said = first["choices"][0]["message"]["content"]
    history = [*user("a message that is long enough to be worth keeping"), {"role": "assistant", "content": said}, *user("and on")]
    server.post({"messages": history, "max_tokens": 2})
    assert reused() - before >= first["usage"]["prompt_tokens"]


def test_a_base_model_continues_text() -> None:
    with running(loaded_model(chats=False)) as server:
        chat = server.ask("Once upon")["choices"][0]["message"]["content"]
        completion = server.post({"prompt": "Once upon", "temperature": 0, "max_tokens": 8}, "/v1/completions").json()
        assert chat == completion["choices"][0]["text"]


# Life


def test_without_a_model_the_server_says_what_to_run() -> None:
    with running(None) as server:
        assert httpx.get(server.url + "/healthz").status_code == 200
        assert httpx.get(server.url + "/readyz").status_code == 503
        answer = server.post({"messages": user("hi")})
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "model_not_ready")
        assert answer.headers["retry-after"] == "5"
        assert "quickstart" in httpx.get(server.url + "/api/training").json()["hint"]
        assert httpx.get(server.url + "/v1/models").json()["data"] == []
        server.scheduler.serve(loaded_model())
        assert httpx.get(server.url + "/readyz").json() == {"status": "ready", "model": "tiny"}
        server.ask("hi")


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_frees_its_slot(server: Running, stream: bool) -> None:
    assert server.scheduler.current
    slow = server.scheduler.current.batch
    body = {"messages": user("hi"), "max_tokens": 480, "temperature": 0, "stream": stream}  # greedy: it never ends by itself
    before = slow.free
    with (
        httpx.Client() as client,
        client.stream("POST", server.url + "/v1/chat/completions", json=body, timeout=60)
        if stream
        else (pytest.raises(httpx.ReadTimeout)) as answer,
    ):
        if stream:
            for _ in zip(range(5), answer.iter_lines(), strict=False):  # type: ignore[attr-defined]
                pass
            assert slow.free == before - 1
        else:
            client.post(server.url + "/v1/chat/completions", json=body, timeout=0.15)
    assert server.idle(5)
    assert slow.free == before


def test_metrics(server: Running) -> None:
    server.ask("hi")
    text = httpx.get(server.url + "/metrics").text
    for name in ("requests_waiting", "requests_running", "slots", "generated_tokens_total", "time_to_first_token_seconds_bucket"):
        assert f"nanochat_{name}" in text
    assert 'nanochat_requests_total{path="/v1/chat/completions",status="200"}' in text


def test_no_prompt_reaches_a_log(capfd: pytest.CaptureFixture[str]) -> None:
    with running(loaded_model(), Limits(api_key=KEY)) as server:
        for headers in ({"authorization": f"Bearer {KEY}"}, {"authorization": "Bearer wrong"}):
            server.post({"messages": user("my secret words")}, headers=headers)
        server.post({"messages": user("my secret words"), "temperature": "my secret words"}, headers={"authorization": f"Bearer {KEY}"})
    out, err = capfd.readouterr()
    assert "secret" not in out + err
    assert KEY not in out + err


# Other clients


def test_curl_streams(server: Running) -> None:
    if not shutil.which("curl"):
        pytest.skip("there is no curl")
    body = json.dumps({"messages": user("hi"), "max_tokens": 4, "stream": True, "temperature": 0})
    command = ["curl", "-sN", server.url + "/v1/chat/completions", "-H", "content-type: application/json", "-d", body]
    lines = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout.strip().split("\n\n")
    assert lines[-1] == "data: [DONE]"
    said = "".join(json.loads(line.removeprefix("data: "))["choices"][0]["delta"].get("content", "") for line in lines[:-1])
    assert said == expected(server, "hi", 4)


def test_the_llm_command_line_tool(server: Running, tmp_path: Path) -> None:
    (tmp_path / "extra-openai-models.yaml").write_text(
        f"- model_id: mine\n  model_name: tiny\n  api_base: {server.url}/v1\n  api_key_name: mine\n", encoding="utf-8"
    )
    environment = os.environ | {"LLM_USER_PATH": str(tmp_path), "LLM_MINE_KEY": "none", "OPENAI_API_KEY": "none"}
    command = [sys.executable, "-m", "llm", "-m", "mine", "--key", "none", "-o", "temperature", "0", "-o", "max_tokens", "6", "hello"]
    for extra in ([], ["--no-stream"]):
        done = subprocess.run([*command, *extra], env=environment, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        assert done.stdout.rstrip("\n") == expected(server, "hello", 6).rstrip("\n")


def test_schemathesis_finds_no_server_error(tmp_path: Path) -> None:
    with running(loaded_model(context=128)) as server:
        program = str(Path(sys.executable).parent / "schemathesis")
        command = [program, "run", server.url + "/openapi.json", "--checks", "not_a_server_error,response_schema_conformance"]
        command += [
            "--max-examples",
            "40",
            "--seed",
            "1",
            "--phases",
            "examples,coverage,fuzzing",
            "--exclude-path",
            "/readyz",
            "--no-color",
        ]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stdout[-6000:] + done.stderr
        assert server.idle()
        assert "nanochat_engine_failures_total 0.0" in httpx.get(server.url + "/metrics").text


def test_the_documents_table_lists_every_refused_parameter() -> None:
    from nanochat.chat.schema import REFUSED, ChatRequest, CompletionRequest

    text = (Path(__file__).resolve().parents[2] / "docs" / "guides" / "chat-and-api.md").read_text(encoding="utf-8")
    for name in (*REFUSED, *ChatRequest.model_fields, *CompletionRequest.model_fields):
        assert f"`{name}`" in text, name


def test_health_is_quick_beside_a_full_batch(server: Running) -> None:
    async def measure() -> list[float]:
        async with httpx.AsyncClient(timeout=60) as client:
            body = {"messages": user("hi"), "max_tokens": 60}
            asking = [asyncio.ensure_future(client.post(server.url + "/v1/chat/completions", json=body)) for _ in range(8)]
            seconds = []
            while not all(task.done() for task in asking):
                began = time.monotonic()
                assert (await client.get(server.url + "/healthz")).status_code == 200
                seconds.append(time.monotonic() - began)
            return seconds

    seconds = sorted(asyncio.run(measure()))
    print(f"healthz beside eight answers: median {seconds[len(seconds) // 2] * 1000:.0f} ms, longest {seconds[-1] * 1000:.0f} ms")
    assert seconds[len(seconds) // 2] < 2
