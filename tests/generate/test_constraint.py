"""Constrained decoding: a random model's answers are JSON of any schema, in the ids of our own and of an imported tokenizer."""

import json
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nanochat.errors import UsageError
from nanochat.export.foreign_folder import read_tokenizer
from nanochat.generate.batching import Batch, SequenceState
from nanochat.generate.constraint import SCHEMA_CHARACTERS, ConstraintCompiler, constrained
from nanochat.generate.sampling import Sampling
from nanochat.tokenizer.tokenizer import Tokenizer
from tests.export.foreign_model import write_qwen3
from tests.generate.models import TOKENIZER, V, random_model

pytestmark = pytest.mark.long
MERGED = Tokenizer.train(['{"name": "Ann", "tags": ["a", "b"], "count": -12.5, "ok": true, "none": null}\n' * 40], 265 + 40)
COMPILERS = {tokenizer.vocab_size: (tokenizer, ConstraintCompiler(tokenizer)) for tokenizer in (TOKENIZER, MERGED)}
MODELS = {size: random_model(size, vocab_size=size, max_seq_len=4096, depth=1, dim=32, n_head=1) for size in COMPILERS}

NAMES = st.sampled_from(["name", "a", "b c", "é", "名字", 'quo"te', "back\\slash", "line\nend"])
LEAVES: st.SearchStrategy[dict[str, Any]] = st.one_of(
    st.just({"type": "boolean"}),
    st.just({"type": "null"}),
    st.builds(lambda low, more: {"type": "integer", "minimum": low, "maximum": low + more}, st.integers(-300, 300), st.integers(0, 1000)),
    st.builds(lambda low: {"type": "number", "minimum": low, "maximum": low + 1}, st.integers(-9, 9)),
    st.builds(lambda least, more: {"type": "string", "minLength": least, "maxLength": least + more}, st.integers(0, 4), st.integers(0, 4)),
    st.sampled_from(
        [{"type": "string", "pattern": "^[a-c]{1,3}-\\d$"}, {"type": "string", "format": "date"}, {"type": ["null", "boolean"]}]
    ),
    st.lists(st.one_of(NAMES, st.integers(-5, 5), st.none()), min_size=1, max_size=4).map(lambda values: {"enum": values}),
    NAMES.map(lambda name: {"const": name}),
)


def _object(properties: dict[str, Any], optional: set[str], closed: bool) -> dict[str, Any]:
    required = [name for name in properties if name not in optional]
    more = {"additionalProperties": False} if closed or not properties else {}
    return {"type": "object", "properties": properties, "required": required} | more


VALUES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.builds(_object, st.dictionaries(NAMES, inner, max_size=4), st.sets(NAMES, max_size=2), st.booleans()),
        st.builds(lambda items, most: {"type": "array", "items": items, "maxItems": most}, inner, st.integers(0, 3)),
        st.lists(inner, min_size=1, max_size=3).map(lambda parts: {"type": "array", "prefixItems": parts, "items": False}),
        st.lists(inner, min_size=1, max_size=3).map(lambda options: {"anyOf": options}),
    ),
    max_leaves=6,
)
ONE = {"type": "array", "items": {"$ref": "#/$defs/one"}, "minItems": 1, "maxItems": 2}
SCHEMAS = st.one_of(VALUES, VALUES.map(lambda value: {"$defs": {"one": value}} | ONE))


def answers(size: int, schemas: list[dict[str, Any] | None], seed: int, most: int = 4000, strict: bool = True) -> list[tuple[str, bool]]:
    """(text, whether it ended by itself) of answers that are generated in one batch, each with its own schema or none."""
    tokenizer, compiler = COMPILERS[size]
    batch = Batch(MODELS[size], tokenizer, len(schemas))
    constraints = [compiler.compile(schema, strict) if schema is not None else None for schema in schemas]
    states = [
        SequenceState(tokenizer, [tokenizer.bos, 65 + i], most if one else 20, Sampling(1.0, seed=seed), i, constraint=one)
        for i, one in enumerate(constraints)
    ]
    ids: list[list[int]] = [[] for _ in states]
    for state in states:
        batch.join(state)
    while batch.sequences:
        for token in batch.step():
            ids[token.sequence.index].append(token.id)
    assert not any(one and one.fault for one in constraints)
    return [(tokenizer.decode([id for id in own if id not in tokenizer.ends]), state.ended) for own, state in zip(ids, states, strict=True)]


@pytest.mark.parametrize("size", COMPILERS)
@settings(max_examples=12, deadline=None)
@given(schemas=st.lists(st.one_of(st.none(), SCHEMAS), min_size=1, max_size=4), seed=st.integers(0, 1 << 30))
def test_what_a_random_model_writes_is_valid(size: int, schemas: list[dict[str, Any] | None], seed: int) -> None:
    """Several schemas in one batch, beside answers without one."""
    for schema, (text, ended) in zip(schemas, answers(size, schemas, seed), strict=True):
        if schema is not None:
            assert ended
            jsonschema.validate(json.loads(text), schema)


def test_an_answer_without_a_form_is_the_same_beside_one_with() -> None:
    [alone] = answers(V, [None], 5)
    assert answers(V, [None, {"type": "object"}], 5, most=50)[0] == alone


def test_an_imported_tokenizers_ids(tmp_path: Path) -> None:
    """Whose special tokens have ids in between, and some ids have no token."""
    write_qwen3(tmp_path, "single")
    tokenizer, _ = read_tokenizer(tmp_path, json.loads((tmp_path / "config.json").read_text()))
    constraint = ConstraintCompiler(tokenizer).compile({"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]})
    for id in tokenizer.encode('{"name": "Ann 名"'):
        assert constraint.allowed()[id] and not constraint.accept(id)
    assert not any(constraint.allowed()[id] for id in (*tokenizer.ends, *tokenizer.specials.values()))
    assert constraint.accept(tokenizer.encode("}")[0])


def test_what_may_end_may_end_by_any_end() -> None:
    """A number may be longer, so that the model decides."""
    constraint = COMPILERS[V][1].compile({"type": "integer"})
    assert not constraint.accept(ord("1"))
    found = set(np.flatnonzero(constraint.allowed()).tolist())
    assert found == {*TOKENIZER.ends, *map(ord, "0123456789")}


def test_the_logits_of_the_model_are_not_changed() -> None:
    """The log probabilities of an answer are the model's own."""
    logits = torch.zeros(2, V + 7)  # a model may have more ids than its tokenizer
    limited = constrained(logits, [None, COMPILERS[V][1].compile({"type": "boolean"})])
    assert not logits.any() and not limited[0].any()
    assert torch.isfinite(limited[1]).nonzero().flatten().tolist() == [ord("f"), ord("t")]
    assert constrained(logits, [None, None]) is logits


@pytest.mark.parametrize(
    ("schema", "others"),
    [
        ({"properties": {"a": {}}}, False),
        ({"$defs": {"x": {"properties": {"a": {}}}}, "$ref": "#/$defs/x"}, False),
        ({"properties": {"a": {}}, "additionalProperties": True}, True),
        ({"type": "object"}, True),
        ({"allOf": [{"properties": {"a": {}}}, {"properties": {"b": {}}}]}, True),
        ({"properties": {"a": {}}, "anyOf": [{"properties": {"b": {}}, "required": ["b"]}, {"required": ["c"]}]}, True),
    ],
)
def test_objects_have_the_properties_that_are_named(schema: dict[str, Any], others: bool) -> None:
    """A weak model would invent more, and not end."""
    constraint = COMPILERS[V][1].compile({"type": "object"} | schema)
    assert constraint.begin(TOKENIZER.encode('{"')) and constraint.allowed()[ord("b")] == others


def test_a_strict_schema_is_followed_or_refused_and_another_as_far_as_possible() -> None:
    compile = COMPILERS[V][1].compile
    for unknown in ({"type": "string", "format": "colour"}, {"not": {"type": "string"}}):
        with pytest.raises(UsageError, match="cannot be used: Un"):
            compile(unknown)
        assert compile(unknown, strict=False).allowed().any()


@pytest.mark.parametrize(
    ("schema", "why"),
    [
        ({"type": 5}, "type must be a string"),
        ({"type": "string", "pattern": "(("}, "unclosed group"),
        ({"$ref": "#"}, "cannot be used"),
        ({"$ref": "file:///etc/hostname"}, "does not fetch"),
        ({"$ref": "#/$defs/missing"}, "cannot be used"),
        ({"allOf": [{"type": "string"}, {"type": "number"}]}, "Unsatisfiable"),
        ({"const": float("nan")}, "cannot be used"),
        ({"const": "\ud800"}, "cannot be used"),
        ({"type": "integer", "multipleOf": 999_999_937}, "fuel exhausted"),
        ({"allOf": [{"anyOf": [{"properties": {f"{i}{j}": {"type": "string"}}} for j in range(8)]} for i in range(8)]}, "too large"),
        ({"const": "x" * SCHEMA_CHARACTERS}, "characters; at most"),
    ],
)
def test_a_schema_that_cannot_be_used_is_refused_with_its_reason(schema: dict[str, Any], why: str) -> None:
    with pytest.raises(UsageError, match=why) as raised:
        COMPILERS[V][1].compile(schema)
    assert "\n" not in raised.value.message


@pytest.mark.parametrize("depth", [200, 5000])
def test_a_deep_schema_is_refused(depth: int) -> None:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(depth):
        schema = {"type": "array", "items": schema}
    with pytest.raises(UsageError, match="recursion"):
        COMPILERS[V][1].compile(schema)


def test_a_form_that_becomes_too_complex_ends_the_answer_with_a_fault() -> None:
    constraint = COMPILERS[V][1].compile({"type": "string", "pattern": "^(.{1,1000}x){1,1000}$"})
    for count in range(1000):
        if constraint.fault or constraint.accept(ord('"' if not count else "xy"[count % 2])):
            break
        constraint.allowed()
    assert constraint.fault
