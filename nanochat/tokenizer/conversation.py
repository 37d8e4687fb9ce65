"""Conversations as messages: their structure, special tokens and validation."""

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
    "<|output_start|>",  # ... and reads its result
    "<|output_end|>",
)

Message = dict[str, Any]  # {"role": system|user|assistant, "content": str or, from the assistant, a list of parts}
Conversation = list[Message]

# A part of an assistant's message -> (opening delimiter, closing delimiter, trained on).
PARTS = {
    "text": ("", "", 1),
    "python": ("<|python_start|>", "<|python_end|>", 1),
    "python_output": ("<|output_start|>", "<|output_end|>", 0),
}


def conversation_fault(conversation: Any, answered: bool = False) -> str | None:
    """The reason why a value is not a valid Conversation, None if it is valid.

    A Conversation is an optional system message, then messages whose roles alternate, beginning with user. Contents are strings, the
    assistant's also lists of parts {"type": text|python|python_output, "text": str}. If `answered`, the assistant must be last.
    """
    if not isinstance(conversation, list):
        return f"a {type(conversation).__name__}, not a list of messages"
    for number, message in enumerate(conversation, 1):
        if not isinstance(message, dict) or not {"role", "content"} <= message.keys():
            return f"message {number} is not an object with role and content"
    turns = conversation[1:] if conversation and conversation[0]["role"] == "system" else conversation
    if not turns:
        return "it has no user message"
    first = len(conversation) - len(turns) + 1
    for number, message in enumerate(turns, first):
        expected = ("user", "assistant")[(number - first) % 2]
        if message["role"] != expected:
            return f"message {number} has the role {message['role']!r} instead of {expected!r}"
    for number, message in enumerate(conversation, 1):
        if wrong := _content_fault(message, number):
            return wrong
    return "it does not end with an answer of the assistant" if answered and turns[-1]["role"] != "assistant" else None


def _content_fault(message: Message, number: int) -> str | None:
    content = message["content"]
    if isinstance(content, list) and message["role"] == "assistant":
        good = (isinstance(part, dict) and part.get("type") in tuple(PARTS) and _is_text(part.get("text")) for part in content)
        return None if all(good) else f"message {number} has a part that is not {{type: {'|'.join(PARTS)}, text}}"
    if not isinstance(content, str):
        return f"the content of message {number} is a {json_type(content)}, not a string"
    return None if _is_text(content) else f"the content of message {number} is not valid text"


def _is_text(value: Any) -> bool:
    """Whether `value` is a str that UTF-8 can encode (not a lone surrogate)."""
    if not isinstance(value, str):
        return False
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def json_type(value: Any) -> str:
    """JSON's name for the type of `value`."""
    return {dict: "object", list: "list", str: "string", bool: "boolean", type(None): "null"}.get(type(value), "number")


def validate_conversation(conversation: Any) -> None:
    """Raise DataError with the reason if `conversation` is not a valid Conversation."""
    if wrong := conversation_fault(conversation):
        raise DataError(f"not a conversation: {wrong}", "write it as a list of {role, content}, with roles that alternate from user")


def merge_system(conversation: Conversation) -> Conversation:
    """The conversation with its system message, if any, moved to the beginning of the first user message."""
    if conversation[0]["role"] != "system":
        return conversation
    system, first, *rest = conversation
    return [{**first, "content": f"{system['content']}\n\n{first['content']}"}, *rest]
