"""The calculator that the assistant may call: an evaluator over the syntax tree, for an allow-list of nodes.

Nothing is ever executed as Python, so an expression can only do what is written here; its length, its nesting and every
number on the way are bounded, and so are its time and memory, with no clock or signal needed.
"""

import ast
import math
import operator
import re
from collections.abc import Callable

MAX_CHARACTERS = 200
MAX_NESTING = 40  # of parentheses
MAX_INTEGER = 10**50  # any integer, intermediate ones included, is smaller than this
MAX_EXPONENT = 1000

_Number = int | float

_STRING = re.compile(r"'[^'\\]*'|\"[^\"\\]*\"")
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
_ALLOWED = frozenset("0123456789.eE+-*/%() ")  # outside strings, and but for .count


def _power(base: _Number, exponent: _Number) -> _Number:
    if abs(exponent) > MAX_EXPONENT:
        raise ValueError("exponent")
    if isinstance(base, int) and isinstance(exponent, int) and base.bit_length() * exponent > 2 * MAX_INTEGER.bit_length():
        raise ValueError("result")  # told by its length, before it is worked out
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
    """The value of `expression` as text, or None for all that is not understood or too large; never raises.

    Understood: numbers (also 1,234), + - * / // % **, parentheses, and how often one literal text holds another:
    'strawberry'.count('r'). Integers stay integers; a float that is whole loses its .0.
    """
    expression = expression.strip()
    if len(expression) > MAX_CHARACTERS:
        return None
    if "'" not in expression and '"' not in expression:
        expression = _THOUSANDS.sub("", expression)
    # Before the parser sees it: no names, no keywords, no escapes, nothing deep.
    bare = _STRING.sub("", expression).replace(".count", "")
    if not _ALLOWED.issuperset(bare) or _nesting(bare) > MAX_NESTING:
        return None
    try:
        return _show(_evaluate(ast.parse(expression, mode="eval").body))
    except (SyntaxError, ValueError, TypeError, ArithmeticError, RecursionError, MemoryError):
        return None


def _nesting(text: str) -> int:
    """How deep the parentheses of `text` lie at most."""
    depth = deepest = 0
    for character in text:
        depth += (character == "(") - (character == ")")
        deepest = max(deepest, depth)
    return deepest


def _evaluate(node: ast.expr) -> _Number:
    """The number that `node` stands for. Raises ValueError and ArithmeticError for what is not allowed."""
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
    """`value` as the assistant reads it: 12 significant digits, so that 0.1 + 0.2 is 0.3."""
    if isinstance(value, float) and not (value.is_integer() and abs(value) < 1e15):
        return f"{value:.12g}"
    return str(int(value))
