"""The chat template of exports: contents are texts or lists of parts, also the system message's."""

import jinja2
from transformers.utils.chat_template_utils import render_jinja_template

from nanochat.export.vocabulary import TEMPLATE, plain_template


def rendered(system: object, user: object) -> str:
    messages = [{"role": "system", "content": system}, {"role": "user", "content": user}]
    return str(render_jinja_template(conversations=[messages], chat_template=TEMPLATE.read_text(encoding="utf-8"))[0][0])


def test_parts_are_read_as_their_text() -> None:
    parts = [{"type": "text", "text": "Be "}, {"type": "text", "text": "brief."}]
    plain = rendered("Be brief.", "hi")
    assert plain == "<|bos|><|user_start|>Be brief.\n\nhi<|user_end|>"
    assert rendered(parts, [{"type": "text", "text": "hi"}]) == plain


def test_the_assistants_tokens_are_marked() -> None:
    """What a model is taught: its answers with their end and its calls of the calculator, not the results of these."""
    parts = [
        {"type": "text", "text": "It is "},
        {"type": "python", "text": "1+1"},
        {"type": "python_output", "text": "2"},
        {"type": "text", "text": "two."},
    ]
    talk = [
        {"role": "user", "content": "1+1?"},
        {"role": "assistant", "content": parts},
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "ho"},
    ]
    template = TEMPLATE.read_text(encoding="utf-8")
    (text,), (spans,) = render_jinja_template(conversations=[talk], chat_template=template, return_assistant_tokens_mask=True)
    learned = "".join(text[first:last] for first, last in spans)
    assert learned == "It is <|python_start|>1+1<|python_end|>two.<|assistant_end|>ho<|assistant_end|>"
    assert text == (
        "<|bos|><|user_start|>1+1?<|user_end|><|assistant_start|>It is <|python_start|>1+1<|python_end|><|output_start|>2<|output_end|>"
        "two.<|assistant_end|><|user_start|>hi<|user_end|><|assistant_start|>ho<|assistant_end|>"
    )


def test_a_gguf_files_template_is_plain_jinja() -> None:
    """llama.cpp and Ollama need not know the marks."""
    talk = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]
    plain = plain_template()
    assert "generation -%" not in plain
    rendered_plain, marked = (render_jinja_template(conversations=[talk], chat_template=one)[0][0] for one in (plain, TEMPLATE.read_text()))
    assert rendered_plain == marked == jinja2.Environment().from_string(plain).render(messages=talk)
