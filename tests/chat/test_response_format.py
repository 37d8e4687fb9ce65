"""Answers of a given JSON form over real connections, from a model with random weights: OpenAI's client, its Responses API, Ollama's."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

import jsonschema
import openai
import pytest
from pydantic import BaseModel, Field

from tests.chat.serving import Running, loaded_model, one_message, running

pytestmark = pytest.mark.long
HI: Any = [{"role": "user", "content": "hi"}]
SEED = {"seed": 3, "temperature": 1.0}


class Pet(BaseModel):
    """Bounded, so that a random model's answer ends within the context."""

    kind: Literal["cat", "dog"]
    age: int = Field(ge=0, le=30)
    tags: list[Literal["small", "old"]] = Field(max_length=2)


SCHEMA: dict[str, Any] = {"type": "json_schema", "json_schema": {"name": "pet", "strict": True, "schema": Pet.model_json_schema()}}


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with running(loaded_model(context=2048)) as one:
        yield one


def test_pydantics_model_is_parsed_from_the_answer(client: openai.OpenAI) -> None:
    found = client.chat.completions.parse(model="tiny", messages=HI, response_format=Pet, max_tokens=900, n=3, **SEED)
    pets = [choice.message.parsed for choice in found.choices]
    assert all(isinstance(pet, Pet) for pet in pets) and len({pet.model_dump_json() for pet in pets if pet}) > 1
    assert {choice.finish_reason for choice in found.choices} == {"stop"}


def test_a_streamed_answer_is_the_whole_one(client: openai.OpenAI) -> None:
    options: dict[str, Any] = {"model": "tiny", "messages": HI, "response_format": SCHEMA, "max_tokens": 900, **SEED}
    whole = client.chat.completions.create(**options)
    chunks = list(client.chat.completions.create(**options, stream=True))
    streamed = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert streamed == whole.choices[0].message.content and chunks[-1].choices[0].finish_reason == "stop"
    Pet.model_validate_json(streamed)


def test_any_object_and_an_answer_that_is_too_short(client: openai.OpenAI) -> None:
    """Which is the beginning of an object."""
    found = client.chat.completions.create(
        model="tiny", messages=HI, response_format={"type": "json_object"}, max_tokens=1, logprobs=True, **SEED
    )
    [choice] = found.choices
    assert choice.finish_reason == "length" and choice.message.content == "{"
    assert choice.logprobs and choice.logprobs.content and len(choice.logprobs.content) == 1


def test_many_forms_at_once(server: Running) -> None:
    """Each answer has its own, beside answers without one."""
    schemas = [{"type": "integer", "minimum": 10 * i, "maximum": 10 * i + 9} for i in range(6)]
    bodies = [
        one_message("hi", max_tokens=900, seed=i)
        | ({"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": one}}} if i % 3 else {})
        for i, one in enumerate(schemas)
    ]
    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(server.post, bodies))
    for i, answer in enumerate(answers):
        if i % 3:
            assert int(answer.json()["choices"][0]["message"]["content"]) // 10 == i
        else:
            assert answer.status_code == 200


def test_an_answer_that_is_begun_is_continued_in_its_form(server: Running) -> None:
    begun = [*HI, {"role": "assistant", "content": '{"kind": "cat", "age": 1'}]
    answer = server.post({"messages": begun, "response_format": SCHEMA, "max_tokens": 900} | SEED).json()
    pet = Pet.model_validate_json(begun[-1]["content"] + answer["choices"][0]["message"]["content"])
    assert pet.kind == "cat" and str(pet.age).startswith("1")
    refused = server.post({"messages": [*HI, {"role": "assistant", "content": "Sure: "}], "response_format": SCHEMA})
    assert refused.status_code == 400 and "does not begin" in refused.json()["error"]["message"]


def test_the_responses_api(client: openai.OpenAI) -> None:
    found = client.responses.parse(model="tiny", input="hi", text_format=Pet, max_output_tokens=900, temperature=1)
    assert isinstance(found.output_parsed, Pet)
    short = client.responses.create(model="tiny", input="hi", text={"format": {"type": "json_object"}}, max_output_tokens=1)
    assert short.output_text == "{" and short.status == "incomplete"


@pytest.mark.parametrize("stream", [False, True])
def test_ollamas_format(server: Running, stream: bool) -> None:
    body = {
        "model": "tiny",
        "messages": HI,
        "format": Pet.model_json_schema(),
        "stream": stream,
        "options": {"seed": 1, "num_predict": 900},
    }
    lines = [json.loads(line) for line in server.post(body, "/api/chat").text.splitlines()]
    Pet.model_validate_json("".join(line["message"]["content"] for line in lines))
    short = body | {"format": "json", "options": {"num_predict": 3}, "stream": False}
    assert server.post(short, "/api/chat").json()["message"]["content"].startswith("{")


@pytest.mark.parametrize(
    ("form", "said"),
    [
        ({"type": "json_schema"}, "response_format: the type json_schema needs the field json_schema"),
        ({"type": "json_schema", "json_schema": {"name": "x"}}, "response_format.json_schema.schema: is missing"),
        ({"type": "xml"}, "response_format.type: 'xml' is not supported here"),
        ({"type": "json_schema", "json_schema": {"schema": {"type": 5}}}, "the JSON schema cannot be used: type must be"),
        (
            {"type": "json_schema", "json_schema": {"strict": True, "schema": {"not": {}}}},
            'the JSON schema cannot be used: Unimplemented keys: ["not"]',
        ),
    ],
)
def test_a_form_that_cannot_be_had_is_refused_with_its_reason(server: Running, form: Any, said: str) -> None:
    answer = server.post(one_message("hi", response_format=form))
    error = answer.json()["error"]
    assert answer.status_code == 400 and said in error["message"] and error["param"] == "response_format", error


def test_a_form_that_becomes_too_complex_ends_as_an_error(server: Running) -> None:
    """And the server answers on."""
    hard = {"type": "string", "pattern": "^(.{1,1000}x){1,1000}$"}
    form = {"type": "json_schema", "json_schema": {"schema": hard}}
    answer = server.post(one_message("hi", response_format=form, max_tokens=2000) | SEED)
    assert answer.status_code == 400 and "too complex" in answer.json()["error"]["message"]
    assert server.still_answers()


def test_large_schemas_do_not_stop_other_answers(server: Running) -> None:
    """Each takes a part of a second to compile; at most two at a time, and what waits too long is refused."""
    large = {"type": "object", "properties": {f"p{i}": {"type": "integer", "multipleOf": i + 2} for i in range(300)}}
    body = one_message("hi", response_format={"type": "json_schema", "json_schema": {"schema": large}})
    with ThreadPoolExecutor(9) as pool:
        hostile = [pool.submit(server.post, body) for _ in range(8)]
        assert server.post(one_message("hi")).status_code == 200
        statuses = {one.result().status_code for one in hostile}
    assert statuses <= {200, 400, 429} and server.still_answers()


TOOLS: Any = [
    {"type": "function", "function": {"name": "keep", "parameters": Pet.model_json_schema(), "strict": True}},
    {"type": "function", "function": {"name": "stop"}},
]
KEEP: Any = {"type": "function", "function": {"name": "keep"}}


def test_a_tool_that_is_named_is_called(client: openai.OpenAI) -> None:
    """Its arguments are the answer, whole and streamed; nothing is chosen by the model."""
    options: dict[str, Any] = {"model": "tiny", "messages": HI, "tools": TOOLS, "tool_choice": KEEP, "max_tokens": 900, **SEED}
    found = client.chat.completions.create(**options, n=2)
    for choice in found.choices:
        assert choice.finish_reason == "tool_calls" and choice.message.content is None and choice.message.tool_calls
        [call] = choice.message.tool_calls
        assert call.type == "function" and call.function.name == "keep"
        Pet.model_validate_json(call.function.arguments)
    with client.chat.completions.stream(**options) as stream:
        final = stream.get_final_completion().choices[0]
    assert final.message.tool_calls and found.choices[0].message.tool_calls and final.finish_reason == "tool_calls"
    assert final.message.tool_calls[0].function.arguments == found.choices[0].message.tool_calls[0].function.arguments
    history = [*HI, found.choices[0].message, {"role": "tool", "tool_call_id": call.id, "content": "done"}]
    options |= {"messages": history, "tools": TOOLS[1:], "tool_choice": "required"}
    [again] = client.chat.completions.create(**options).choices[0].message.tool_calls or []
    assert again.type == "function" and (again.function.name, json.loads(again.function.arguments)) == ("stop", {})


@pytest.mark.parametrize(
    ("asked", "param", "said"),
    [
        ({"tools": TOOLS}, "tools", "were not taught to call tools"),
        ({"tools": TOOLS, "tool_choice": "auto"}, "tools", "a tool that tool_choice names"),
        ({"tools": TOOLS, "tool_choice": "required"}, "tools", "a tool that tool_choice names"),
        (
            {"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "x"}}},
            "tool_choice",
            "names 'x', which is not in tools",
        ),
        ({"tool_choice": KEEP}, "tool_choice", "names 'keep', which is not in tools"),
        ({"tools": [{"type": "web_search"}]}, "tools", "tools[0].type: 'web_search' is not supported here"),
        (
            {"tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": 5}}}], "tool_choice": "required"},
            "tools",
            "type must",
        ),
    ],
)
def test_a_tool_that_the_model_would_have_to_choose_is_refused(server: Running, asked: Any, param: str, said: str) -> None:
    answer = server.post(one_message("hi") | asked)
    error = answer.json()["error"]
    assert answer.status_code == 400 and said in error["message"] and error["param"] == param, error


def test_tools_beside_a_choice_of_none_change_nothing(server: Running) -> None:
    plain, with_tools = (server.ask("hi", **more)["choices"] for more in ({}, {"tools": TOOLS, "tool_choice": "none"}))
    assert plain == with_tools


def test_the_schema_is_that_of_the_answer(server: Running) -> None:
    """Also from a base model, which continues text."""
    with running(loaded_model(chats=False, context=2048)) as base:
        answer = base.post({"messages": HI, "response_format": SCHEMA, "max_tokens": 900} | SEED).json()
    jsonschema.validate(json.loads(answer["choices"][0]["message"]["content"]), Pet.model_json_schema())
