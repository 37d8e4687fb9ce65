"""Chat templates of other models: rendered as transformers renders them; hostile ones end in one error, soon and in little memory."""

import resource
import time
from pathlib import Path

import pytest

from nanochat.errors import DataError
from nanochat.tokenizer.template import ChatTemplate

QWEN3 = (Path(__file__).parents[1] / "export" / "qwen3_template.jinja").read_text()
TALK = [
    {"role": "system", "content": "S"},
    {"role": "user", "content": "hi"},
    {"role": "assistant", "content": "<think>\nx\n</think>\n\nyo"},
    {"role": "user", "content": "<b> & 你"},
    {"role": "assistant", "content": "\n\n end \n"},
]


def test_qwen3s_template_is_rendered_as_by_transformers() -> None:
    utilities = pytest.importorskip("transformers.utils.chat_template_utils")
    template = ChatTemplate(QWEN3)
    for first in (0, 1):
        for last in (2, 3, 4, 5):
            for answer in (True, False):
                talk = TALK[first:last]
                [expected], _ = utilities.render_jinja_template(conversations=[talk], chat_template=QWEN3, add_generation_prompt=answer)
                assert template.render(talk, answer, {}) == expected


def test_marks_of_generated_text_are_rendered_as_by_transformers() -> None:
    utilities = pytest.importorskip("transformers.utils.chat_template_utils")
    source = (
        "{% set x = 'a' %}{% for message in messages %}{% if message.role == 'assistant' %}\n"
        "  {%- generation %}{% set x = 'b' %}{{ message.content }}{{ x }}<end>{% endgeneration %}\n"
        "{% else %}[{{ message.content }}]{% endif %}{{ x }}{% endfor %}"
    )
    [expected], _ = utilities.render_jinja_template(conversations=[TALK], chat_template=source)
    assert ChatTemplate(source).render(TALK, False, {}) == expected


@pytest.mark.parametrize(
    "source",
    [
        "{% for a in range(10**9) %}{% endfor %}",
        "{{ 'a' * 10**9 }}",
        "{{ '%0999999999d' % 1 }}",
        "{{ '{:>999999999}'.format(1) }}",
        "{{ messages[0].content.format(1) }}",
        "{{ 'a'.ljust(10**9) }}",
        "{{ 'a'|center(10**9) }}",
        "{{ 9**9**9**9 }}",
        "{% macro f() %}{{ f() }}{{ f() }}{% endmacro %}{{ f() }}",
        "{% set ns = namespace(x='aa') %}{% for c in messages[0].content %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
        "{% set ns = namespace(x='aa') %}{% for c in messages[0].content %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
        "{% for a in messages[0].content %}" * 3 + "{% endfor %}" * 3,
        "{% for a in messages recursive %}{{ loop(messages) }}{% endfor %}",
        "{% include 'x' %}",
        "{{ messages.__class__.__mro__ }}",
        "{{ namespace.__init__.__globals__ }}",
        "{{ ().__class__.__base__.__subclasses__() }}",
        "{{ lipsum(5) }}",
        "{{ raise_exception('no') }}",
        "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
        "{% for x in messages %}" * 300,
        "{% generation %}{% for a in range(10**9) %}{% endfor %}{% endgeneration %}",
        "{% generation %}" * 300,
        "{{ messages",
        "x" * 300_000,
    ],
    ids=lambda source: source[:40],
)
def test_a_hostile_template_ends_in_one_error(source: str) -> None:
    began, memory = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(DataError, match="template"):
        ChatTemplate(source).render([{"role": "user", "content": "x" * 2000}], True, {})
    assert time.process_time() - began < 5
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory) << 10 < 500 << 20


def test_undefined_attributes_show_nothing() -> None:
    assert ChatTemplate("{{ ''.__class__ }}{{ messages[0].nothing }}").render([{"role": "user", "content": "x"}], True, {}) == ""
