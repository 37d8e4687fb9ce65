"""A foreign model's chat template in jinja2's sandbox, with bounded time and memory.

The template is somebody else's program. Beside the sandbox, which gives it no access to Python, only what chat templates need is allowed:
no macros and imports, a short list of filters and methods, and limits for loops and for the text that it builds.
"""

import json
import threading
from collections.abc import Iterable, Iterator
from typing import Any

from nanochat.errors import DataError
from nanochat.hardware.extras import needed
from nanochat.untrusted import reason

TEMPLATE_CHARACTERS = 200_000
LOOP_STEPS = 200_000  # of all loops of one rendering
BUILT = 64 << 20  # characters and items that one rendering may build
FILTERS = frozenset(
    ("trim", "length", "count", "tojson", "string", "default", "d", "first", "last", "list", "lower", "upper", "items", "safe", "int")
)
METHODS: dict[type, frozenset[str]] = {
    str: frozenset(("strip", "lstrip", "rstrip", "split", "rsplit", "startswith", "endswith", "upper", "lower", "title")),
    dict: frozenset(("get", "items", "keys", "values")),
}
OPERATORS = frozenset(("+", "-", "*", "/", "//", "%", "**"))


class ChatTemplate:
    """A template that renders messages as text. Raises DataError if it is not a template, or uses what is not allowed."""

    def __init__(self, source: str):
        if len(source) > TEMPLATE_CHARACTERS:
            raise DataError(f"the chat template has {len(source):,} characters; at most {TEMPLATE_CHARACTERS:,} are allowed")
        jinja2 = needed("jinja2", "jinja2", "a model with a chat template of its own")
        self.source = source
        self._environment = _environment()
        try:
            tree = self._environment.parse(source)
            code = self._environment.compile(_limited(tree))
            self._template = jinja2.Template.from_code(self._environment, code, self._environment.globals)
        except (jinja2.TemplateError, ValueError, RecursionError, SyntaxError, MemoryError, OverflowError) as error:
            raise DataError(f"the chat template cannot be used: {reason(error)}") from error

    def render(self, messages: list[dict[str, str]], answer: bool, names: dict[str, str]) -> str:
        """The text of `messages` ({role, content}), and with `answer` the beginning of the assistant's next message.

        `names` are further variables: bos_token and eos_token. Raises DataError if the template refuses the messages or takes too much.
        """
        self._environment.used.steps = self._environment.used.built = 0
        parts: list[str] = []
        try:
            for part in self._template.generate(messages=messages, add_generation_prompt=answer, tools=None, documents=None, **names):
                self._environment.built(len(part))
                parts.append(part)
        except Exception as error:  # whatever a template does wrong: TypeError, KeyError, jinja2's own
            raise DataError(f"the model's chat template refuses this conversation: {reason(error)}") from error
        return "".join(parts)


def _environment() -> Any:
    """The sandbox."""
    import jinja2
    import jinja2.ext
    import jinja2.sandbox

    class Generation(jinja2.ext.Extension):
        """{% generation %}, transformers' mark of the text that a model is trained to write: shown as it is."""

        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node:
            line = next(parser.stream).lineno
            return jinja2.nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)

    class Environment(jinja2.sandbox.ImmutableSandboxedEnvironment):
        intercepted_binops = OPERATORS

        def __init__(self) -> None:
            super().__init__(trim_blocks=True, lstrip_blocks=True, optimized=False, extensions=["jinja2.ext.loopcontrols", Generation])
            self.used = threading.local()
            self.globals.clear()
            self.globals |= {"namespace": jinja2.utils.Namespace, "raise_exception": _raise}
            self.filters = {name: filter for name, filter in self.filters.items() if name in FILTERS}
            self.filters |= {"tojson": _tojson, "_steps": self.steps, "_joined": self.joined}

        def built(self, size: int) -> None:
            self.used.built += size
            if self.used.built > BUILT:
                raise jinja2.exceptions.SecurityError("it builds too much text")

        def steps(self, values: Iterable[Any]) -> Iterator[Any]:
            for value in values:
                self.used.steps += 1
                if self.used.steps > LOOP_STEPS:
                    raise jinja2.exceptions.SecurityError("its loops are too long")
                yield value

        def joined(self, values: list[Any]) -> str:
            text = "".join(map(str, values))
            self.built(len(text))
            return text

        def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
            if isinstance(obj, (str, dict, list, tuple, int, float)) and attr not in METHODS.get(type(obj), ()):
                return False
            return super().is_safe_attribute(obj, attr, value)

        def wrap_str_format(self, value: Any) -> None:
            """No str.format, whose widths take memory: the list of methods then refuses it."""

        def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
            if operator == "+" and isinstance(left, (str, list, tuple)):
                self.built(len(left) + (len(right) if isinstance(right, (str, list, tuple)) else 0))
            elif not all(isinstance(side, (int, float)) and abs(side) < 2**53 for side in (left, right)) or operator == "**":
                raise jinja2.exceptions.SecurityError(f"it uses {operator} with something else than small numbers")
            return super().call_binop(context, operator, left, right)

    return Environment()


def _raise(message: Any) -> None:
    raise ValueError(str(message)[:300])


def _tojson(value: Any, indent: int | None = None) -> str:
    """As transformers' filter of this name: without HTML escapes."""
    return json.dumps(value, ensure_ascii=False, indent=indent if indent in (None, 2, 4) else None)


def _limited(tree: Any) -> Any:
    """The template's syntax tree with counted loops. Raises ValueError for what is not allowed."""
    from jinja2 import nodes
    from jinja2.visitor import NodeTransformer

    forbidden = (nodes.Macro, nodes.CallBlock, nodes.FilterBlock, nodes.Import, nodes.FromImport, nodes.Include, nodes.Extends, nodes.Block)

    class Limits(NodeTransformer):
        def generic_visit(self, node: Any, *args: Any, **kwargs: Any) -> Any:
            if isinstance(node, forbidden):
                raise ValueError(f"it uses {type(node).__name__.lower()}, which is not supported")
            if isinstance(node, nodes.Filter) and node.name not in FILTERS:
                raise ValueError(f"it uses the filter {node.name}, which is not supported")
            node = super().generic_visit(node, *args, **kwargs)
            if isinstance(node, nodes.For):
                if node.recursive:
                    raise ValueError("it uses a recursive loop, which is not supported")
                node.iter = nodes.Filter(node.iter, "_steps", [], [], None, None, lineno=node.lineno)
            if isinstance(node, nodes.Concat):
                return nodes.Filter(nodes.List(node.nodes, lineno=node.lineno), "_joined", [], [], None, None, lineno=node.lineno)
            return node

    return Limits().visit(tree)
