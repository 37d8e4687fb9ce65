"""A conversation as messages: what it is made of, the special tokens that mark it, and what is wrong with one that is none."""

from typing import Any

from nanochat.errors import DataError

SPECIAL_TOKENS = (
    "<|bos|>",  # before every document and every conversation
    "<|user_start|>",
    "<|user_end|>",
    "<|assistant_start|>",
    "<|assistant_end|>",
    "<|python_start|>",  # the assistant calls the calculator ...
    "<|python_end|>",
    "<|output_start|>",  # ... and reads what it said
    "<|output_end|>",
)

Message = dict[str, Any]  # {"role": system|user|assistant, "content": str, or for the assistant a list of parts}
Conversation = list[Message]

# A part of an assistant's message -> (opening delimiter, closing delimiter, trained on).
PARTS = {
    "text": ("", "", 1),
    "python": ("<|python_start|>", "<|python_end|>", 1),
    "python_output": ("<|output_start|>", "<|output_end|>", 0),
}


def conversation_fault(conversation: Any, answered: bool = False) -> str | None:
    """What keeps a value from being a Conversation, None if nothing does.

    One has an optional system message, then roles that alternate from user; contents are text, an assistant's also a list of
    parts {"type": text|python|python_output, "text": str}. Either role may come last; where it is `answered`, the assistant does.
    """
    if not isinstance(conversation, list):
        return f"a {type(conversation).__name__}, not a list of messages"
    for number, message in enumerate(conversation, 1):
        if not isinstance(message, dict) or not {"role", "content"} <= message.keys():
            return f"message {number} is no object with role and content"
    turns = conversation[1:] if conversation and conversation[0]["role"] == "system" else conversation
    if not turns:
        return "it has no user message"
    first = len(conversation) - len(turns) + 1
    for number, message in enumerate(turns, first):
        expected = ("user", "assistant")[(number - first) % 2]
        if message["role"] != expected:
            return f"message {number} has the role {message['role']!r} where {expected!r} is due"
    for number, message in enumerate(conversation, 1):
        if wrong := _content_fault(message, number):
            return wrong
    return "it has no answer of the assistant's at its end" if answered and turns[-1]["role"] != "assistant" else None


def _content_fault(message: Message, number: int) -> str | None:
    content = message["content"]
    if isinstance(content, list) and message["role"] == "assistant":
        good = (isinstance(part, dict) and part.get("type") in tuple(PARTS) and _is_text(part.get("text")) for part in content)
        return None if all(good) else f"message {number} has a part that is no {{type: {'|'.join(PARTS)}, text}}"
    if not isinstance(content, str):
        return f"the content of message {number} is a {json_type(content)}, not a string"
    return None if _is_text(content) else f"the content of message {number} is no valid text"


def _is_text(value: Any) -> bool:
    """Whether `value` is a str that UTF-8 can hold (a lone surrogate cannot be encoded)."""
    if not isinstance(value, str):
        return False
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def json_type(value: Any) -> str:
    """What JSON calls the type of `value`."""
    return {dict: "object", list: "list", str: "string", bool: "boolean", type(None): "null"}.get(type(value), "number")


def validate_conversation(conversation: Any) -> None:
    """Raise DataError, with the reason, unless `conversation` is a Conversation."""
    if wrong := conversation_fault(conversation):
        raise DataError(f"not a conversation: {wrong}", "a conversation is a list of {role, content}, with roles alternating from user")


def merge_system(conversation: Conversation) -> Conversation:
    """The conversation with its system message, if any, put before the first user turn's text and a blank line."""
    if conversation[0]["role"] != "system":
        return conversation
    system, first, *rest = conversation
    return [{**first, "content": f"{system['content']}\n\n{first['content']}"}, *rest]
