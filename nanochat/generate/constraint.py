"""Constrained decoding: the ids that may come next in an answer of a given JSON form, by llguidance.

llguidance (https://github.com/guidance-ai/llguidance) compiles a JSON schema to a grammar over bytes, and computes from an answer's bytes
which tokens may follow. Shapes: B sequences, V vocabulary.
"""

import json
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nanochat.errors import UsageError
from nanochat.hardware.extras import needed
from nanochat.kernels.transfer import to_device
from nanochat.tokenizer.tokenizer import Tokenizer

SCHEMA_CHARACTERS = 32_000
# A foreign schema must not take long, or much memory: each bound is below llguidance's own default. Measured in docs/experiments/log.md.
LIMITS = {
    "max_items_in_row": 500,
    "initial_lexer_fuel": 200_000,
    "step_lexer_fuel": 100_000,
    "step_max_items": 20_000,
    "max_lexer_states": 5_000,
    "max_grammar_size": 50_000,
}
# A weak model would write blanks without end.
WHITESPACE = r"[\x20\x0A\x0D\x09]{1,20}"
OPEN = {"additionalProperties", "unevaluatedProperties", "patternProperties", "anyOf", "oneOf", "$ref"}  # may name more properties
TOO_COMPLEX = "the JSON schema is too complex to follow"


class Constraint:
    """The JSON form of one answer, and how much of it is written."""

    def __init__(self, matcher: Any):
        self._matcher = matcher
        self.fault = ""  # the reason why the form can no longer be followed

    def copy(self) -> "Constraint":
        """The same form for another answer."""
        return Constraint(self._matcher.deep_copy())

    def allowed(self) -> np.ndarray:
        """Whether each id may come next: bool (V,), padded to whole bytes. After a fault, only an end may."""
        bits = self._matcher.compute_bitmask()
        if self._matcher.is_error():
            self.fault = TOO_COMPLEX
        return np.unpackbits(np.frombuffer(bits, np.uint8), bitorder="little").astype(bool)

    def accept(self, token: int) -> bool:
        """Take in the answer's next id. Returns whether nothing may follow any more."""
        if not self._matcher.consume_token(token):
            self.fault = self.fault or TOO_COMPLEX
        return bool(self._matcher.is_stopped())

    def begin(self, ids: Sequence[int]) -> bool:
        """Take in the ids of a text that the answer continues. Returns whether it begins an answer of this form."""
        return int(self._matcher.try_consume_tokens(list(ids))) == len(ids)


class ConstraintCompiler:
    """Makes constraints for the answers in one tokenizer's ids. Its table of tokens is built for the first of them. Thread-safe.

    A schema at the limits takes up to half a second of CPU time, without the interpreter's lock.
    """

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer

    def compile(self, schema: dict[str, Any], strict: bool = True) -> Constraint:
        """A constraint to JSON values of `schema`. If not `strict`, keywords that cannot be enforced are ignored.

        Objects have no properties beside those that the schema names, unless it has a keyword of OPEN.
        Raises UsageError with the reason if it has a fault, cannot be enforced, or is too large.
        """
        llguidance = self._library
        options = {"whitespace_pattern": WHITESPACE, "lenient": not strict, "item_separator": ",", "key_separator": ":"}
        limits = llguidance.LLParserLimits(**LIMITS, precompute_large_lexemes=False, verbose_errors=False)
        try:
            text = json.dumps(schema)
            if len(text) > SCHEMA_CHARACTERS:
                raise ValueError(f"it has {len(text):,} characters; at most {SCHEMA_CHARACTERS:,} are possible")
            closed = schema if '"allOf"' in text else _closed(schema)
            grammar = llguidance.LLMatcher.grammar_from_json_schema(json.dumps(closed), overrides=options)
            matcher = llguidance.LLMatcher(self._table, grammar, log_level=0, limits=limits)
            wrong = "" if any(matcher.compute_bitmask()) else "no value is valid"
            wrong = matcher.get_error() or wrong
        except (ValueError, RecursionError) as error:
            wrong = str(error)
        if wrong:
            raise UsageError(f"the JSON schema cannot be used: {' '.join(wrong.split())}")
        return Constraint(matcher)

    @cached_property
    def _library(self) -> Any:  # loaded for the first schema
        return needed("llguidance", "llguidance", "an answer of a JSON form")

    @cached_property
    def _table(self) -> Any:
        """The tokenizer's tokens as bytes; special tokens, which no text yields, are allowed nowhere but at the end."""
        llguidance = self._library
        return llguidance.LLTokenizer(llguidance.TokenizerWrapper(_Tokens(self._tokenizer)), eos_token=list(self._tokenizer.ends))


def _closed(schema: Any) -> Any:
    """The schema, with objects that have the named properties alone: a weak model would write others without end.

    Not for schemas with allOf, whose parts each name some of an object's properties.
    """
    if not isinstance(schema, dict):
        return schema
    found = dict(schema)
    for key, value in schema.items():
        if key in ("properties", "$defs", "definitions") and isinstance(value, dict):
            found[key] = {name: _closed(inner) for name, inner in value.items()}
        elif key in ("anyOf", "oneOf", "prefixItems") and isinstance(value, list):
            found[key] = [_closed(inner) for inner in value]
        elif key in ("items", "additionalProperties"):
            found[key] = _closed(value)
    if schema.get("properties") and not OPEN & schema.keys():
        found["additionalProperties"] = False
    return found


class _Tokens:
    """A tokenizer in the form that llguidance reads."""

    def __init__(self, tokenizer: Tokenizer):
        texts = [None if id in tokenizer.ends else tokenizer.bytes_of(id) for id in range(tokenizer.vocab_size)]
        self.tokens = [text or f"<|{id}|>".encode() for id, text in enumerate(texts)]
        self.special_token_ids = [id for id, text in enumerate(texts) if not text]
        self.bos_token_id, self.eos_token_id = tokenizer.bos, tokenizer.ends[0]
        self._encode = tokenizer.encode

    def __call__(self, text: str) -> list[int]:
        return self._encode(text)


def constrained(logits: Tensor, constraints: Sequence[Constraint | None]) -> Tensor:
    """The logits (B, V), with -inf for the ids that each row's constraint does not allow; unchanged where no row has one."""
    rows = [row for row, one in enumerate(constraints) if one is not None]
    if not rows:
        return logits
    allowed = np.zeros((len(rows), logits.size(-1)), dtype=bool)  # the model may have more ids than the tokenizer
    for place, row in enumerate(rows):
        mask = constraints[row].allowed()[: logits.size(-1)]  # type: ignore[union-attr]
        allowed[place, : len(mask)] = mask
    limited = logits.clone()
    limited[rows] = limited[rows].masked_fill(~to_device(torch.from_numpy(allowed), logits.device), -torch.inf)
    return limited
