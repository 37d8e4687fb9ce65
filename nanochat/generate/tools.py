"""The assistant's calculator: an evaluator of syntax trees with an allow-list of nodes.

Nothing is executed as Python. Length, nesting and all intermediate numbers are bounded, and with them time and memory, without
timers or signals.
"""

import ast
import math
import operator
import re
from collections.abc import Callable

MAX_CHARACTERS = 200
MAX_NESTING = 40  # of parentheses
MAX_INTEGER = 10**50  # exclusive bound of all integers, intermediate ones included
MAX_EXPONENT = 1000

_Number = int | float

_STRING = re.compile(r"'[^'\\]*'|\"[^\"\\]*\"")
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
_ALLOWED = frozenset("0123456789.eE+-*/%() ")  # outside of strings and .count


def _power(base: _Number, exponent: _Number) -> _Number:
    if abs(exponent) > MAX_EXPONENT:
        raise ValueError("exponent")
    if isinstance(base, int) and isinstance(exponent, int) and base.bit_length() * exponent > 2 * MAX_INTEGER.bit_length():
        raise ValueError("result")  # estimated before it is computed
    return base**exponent


_BINARY: dict[type[ast.operator], Callable[[_Number, _Number], _Number]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: _power,
}


def calculate(expression: str) -> str | None:
    """The value of `expression` as text, or None if it is not supported or too large; never raises.

    Supported are numbers (also 1,234), + - * / // % **, parentheses, and counts of one literal string in another, as in
    'strawberry'.count('r'). Integers stay integers; a whole float loses its .0.
    """
    expression = expression.strip()
    if len(expression) > MAX_CHARACTERS:
        return None
    if "'" not in expression and '"' not in expression:
        expression = _THOUSANDS.sub("", expression)
    # Checked before parsing: no names, no keywords, no escapes, no deep nesting.
    bare = _STRING.sub("", expression).replace(".count", "")
    if not _ALLOWED.issuperset(bare) or _nesting(bare) > MAX_NESTING:
        return None
    try:
        return _show(_evaluate(ast.parse(expression, mode="eval").body))
    except (SyntaxError, ValueError, TypeError, ArithmeticError, RecursionError, MemoryError):
        return None


def _nesting(text: str) -> int:
    """Depth of the parentheses in `text`."""
    depth = deepest = 0
    for character in text:
        depth += (character == "(") - (character == ")")
        deepest = max(deepest, depth)
    return deepest


def _evaluate(node: ast.expr) -> _Number:
    """The value of `node`. Raises ValueError and ArithmeticError if it is not allowed."""
    value: _Number
    match node:
        case ast.Constant(value=int() | float() as value):
            pass
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            value = -_evaluate(operand)
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _BINARY:
            value = _BINARY[type(op)](_evaluate(left), _evaluate(right))
        case ast.Call(
            func=ast.Attribute(value=ast.Constant(value=str() as text), attr="count"), args=[ast.Constant(value=str() as part)], keywords=[]
        ) if text and part:
            value = text.count(part)
        case _:
            raise ValueError("not allowed")
    if (isinstance(value, int) and abs(value) < MAX_INTEGER) or (isinstance(value, float) and math.isfinite(value)):
        return value
    raise ValueError("too large, or not a real number")


def _show(value: _Number) -> str:
    """`value` with 12 significant digits, so that 0.1 + 0.2 is 0.3."""
    if isinstance(value, float) and not (value.is_integer() and abs(value) < 1e15):
        return f"{value:.12g}"
    return str(int(value))
