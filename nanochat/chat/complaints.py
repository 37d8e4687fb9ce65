"""Validation errors for clients, from pydantic's: the field as written in JSON, and its expected value."""

import json
import re
from collections.abc import Sequence
from typing import Any

_FIELD = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_KINDS = ("str", "int", "float", "bool", "list", "dict")  # names of types, which pydantic adds to a location if several types are allowed
_EXPECTED = {
    "string_type": "a text",
    "list_type": "a list",
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "bool_type": "true or false",
    "dict_type": "an object",
    "model_type": "an object",
    "model_attributes_type": "an object",
}


def complaint(errors: Sequence[Any]) -> tuple[str, str]:
    """The field, such as messages[0].content ("" for the whole request), and its error: the most relevant of pydantic's `errors`.

    If a value may be of several types, pydantic reports an error for each. The error inside a value of a matching type is returned, or, if
    none matches, all types are named.
    """
    places = [_place(error) for error in errors]
    likeliest = max(range(len(errors)), key=lambda i: (errors[i]["type"] not in _EXPECTED, places[i].count(".") + places[i].count("[")))
    where, error = places[likeliest], errors[likeliest]
    if isinstance(error.get("input"), bytes):  # FastAPI has not parsed it
        return "", "the body was not read as JSON: send the header Content-Type: application/json"
    if error["type"] in _EXPECTED:
        same = [_EXPECTED[each["type"]] for each, place in zip(errors, places, strict=True) if place == where and each["type"] in _EXPECTED]
        return where, f"must be {' or '.join(dict.fromkeys(same))}, and is {_shown(error.get('input'))}"
    return where, _message(error)


def _place(error: Any) -> str:
    """A pydantic location as a path: fields with dots, items in brackets, without names of types."""
    if error["type"] == "json_invalid":
        return ""
    place = ""
    for part in error["loc"][1:] if error["loc"][:1] == ("body",) else error["loc"]:
        if isinstance(part, int):
            place += f"[{part}]"
        elif _FIELD.fullmatch(part) and part not in _KINDS and not part[0].isupper():
            place += f".{part}" if place else part
    return place


def _message(error: Any) -> str:
    """The message of one error."""
    kind, context = error["type"], error.get("ctx") or {}
    if kind == "missing":
        return "is missing"
    if kind == "literal_error":
        return f"{_shown(error.get('input'))} is not supported here; it may be {context.get('expected')}"
    if kind in ("too_long", "too_short") and "actual_length" in context:
        bound = f"at most {context['max_length']}" if kind == "too_long" else f"at least {context['min_length']}"
        return f"has {context['actual_length']} items; {bound} are allowed"
    if kind == "json_invalid":
        return f"the body is not JSON: {context.get('error', error['msg'])}"
    message = str(error["msg"]).removeprefix("Value error, ").replace("Input should be", "must be")
    return message[:1].lower() + message[1:]


def _shown(value: Any) -> str:
    """A short value as JSON, or the type of a longer one."""
    if value is None or isinstance(value, bool | int | float):
        return json.dumps(value)
    if isinstance(value, str):
        return repr(value) if len(value) <= 40 and value.isprintable() else "a text"
    return "a list" if isinstance(value, list) else "an object"
