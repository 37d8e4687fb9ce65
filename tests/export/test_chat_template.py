"""The chat template of exports: contents are texts or lists of parts, also the system message's."""

from transformers.utils.chat_template_utils import render_jinja_template

from nanochat.export.vocabulary import TEMPLATE


def rendered(system: object, user: object) -> str:
    messages = [{"role": "system", "content": system}, {"role": "user", "content": user}]
    return str(render_jinja_template(conversations=[messages], chat_template=TEMPLATE.read_text(encoding="utf-8"))[0][0])


def test_parts_are_read_as_their_text() -> None:
    parts = [{"type": "text", "text": "Be "}, {"type": "text", "text": "brief."}]
    plain = rendered("Be brief.", "hi")
    assert plain == "<|bos|><|user_start|>Be brief.\n\nhi<|user_end|>"
    assert rendered(parts, [{"type": "text", "text": "hi"}]) == plain
