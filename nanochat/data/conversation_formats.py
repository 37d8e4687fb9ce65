"""Conversations in the forms that people have them: Hugging Face and OpenAI messages, ShareGPT, Alpaca, prompt and completion.

`understand` converts a record of a file or a public set into a Conversation and counts what it leaves out, by reason.
"""

from collections import Counter
from collections.abc import Mapping
from typing import Any

from nanochat import untrusted
from nanochat.tokenizer.conversation import Conversation, Message, conversation_fault, json_type

ROLES = {
    **dict.fromkeys(("user", "human", "prompter"), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "bot", "model", "ai", "chatbot"), "assistant"),
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("tool", "function", "observation", "function_response", "ipython"), "tool"),
    **dict.fromkeys(("function_call", "tool_call"), "call"),
}
LISTS = ("messages", "conversations", "conversation")  # fields that may hold the messages
PAIRS = (  # fields of a question and of its answer
    *(("instruction", "output"), ("instruction", "response"), ("prompt", "completion"), ("prompt", "response")),
    *(("question", "answer"), ("question", "response"), ("query", "response"), ("input", "output")),
)
CONTEXTS = ("input", "context")  # of an instruction, after it
FORMS = "messages (Hugging Face, OpenAI), conversations (ShareGPT), instruction and output (Alpaca), prompt and completion or response"
# Why something is left out.
NULL, NO_ANSWER = "empty rows", "conversations without an answer"
EMPTY, BEGINS, ENDS = "empty answers with their questions", "answers before the first question", "questions without an answer at the end"
OURS = ("text", "python", "python_output")  # types of the parts that an answer may have
CALLS, PARTS, UNTRAINED = "calls of tools", "parts that are not text", "conversations whose every answer has weight 0"


def is_message(value: Any) -> bool:
    """Whether `value` is one message: a list that begins with it is a conversation, not a list of conversations."""
    return isinstance(value, dict) and ("role" in value or "from" in value) and not any(isinstance(value.get(key), list) for key in LISTS)


def understand(row: Any, left: Counter[str]) -> tuple[str, Conversation]:
    """The form of a row, and its Conversation ([] where nothing is left of it); `left` counts what is left out, by reason.

    A conversation that is one already stays as it is, but for empty answers. Raises ValueError with what is wrong.
    """
    form, messages = _messages(row)
    if not messages:
        left[NULL] += 1
        return form, []
    conversation = [_plain(message) for message in messages if isinstance(message, dict)]
    if len(conversation) < len(messages) or conversation_fault(conversation, answered=True) or any(map(_is_empty_answer, conversation)):
        conversation = _repaired(messages, left)
    if not conversation:
        left[NO_ANSWER] += 1
    elif all(message.get("weight") == 0 for message in conversation if message["role"] == "assistant"):
        left[UNTRAINED] += 1
        conversation = []
    if wrong := conversation and conversation_fault(conversation, answered=True):
        raise ValueError(wrong)
    return form, conversation


def _messages(row: Any) -> tuple[str, list[Any]]:
    """The form of a row and its messages, as they are. Raises ValueError if it is none of the forms."""
    if row is None:
        return "messages", []
    if isinstance(row, list):
        return _form(row), row
    if not isinstance(row, dict):
        raise ValueError(f"a {json_type(row)} instead of an object; the known forms are {FORMS}")
    for key in LISTS:
        value = row.get(key)
        if isinstance(value, str) and value.lstrip().startswith("["):  # tables without nested columns
            value = untrusted.parse_json(value)
        if isinstance(value, list):
            system = row.get("system") or row.get("system_prompt")
            return _form(value), [{"role": "system", "content": system}, *value] if isinstance(system, str) and value else value
    for question, answer in PAIRS:
        if question in row and answer in row and row[question] is not None:
            return "Alpaca" if question == "instruction" else f"{question} and {answer}", _pair(row, question, answer)
    fields = ", ".join(map(str, row)) or "none"
    if not any(value is not None for value in row.values()):
        return "messages", []
    raise ValueError(f"no list of messages among the fields {fields}; the known forms are {FORMS}")


def _form(messages: list[Any]) -> str:
    return "ShareGPT" if messages and isinstance(messages[0], dict) and "from" in messages[0] else "messages"


def _pair(row: Mapping[str, Any], question: str, answer: str) -> list[Any]:
    """The messages of a row with a question and an answer, each a text or a list of messages, and perhaps what was said before."""
    asked, said = row[question], row[answer]
    system = row.get("system") or row.get("system_prompt")
    messages: list[Any] = [{"role": "system", "content": system}] if isinstance(system, str) else []
    for earlier in row.get("history") or []:
        if not isinstance(earlier, list) or len(earlier) != 2:
            raise ValueError("history is not a list of pairs of a question and an answer")
        messages += [{"role": "user", "content": earlier[0]}, {"role": "assistant", "content": earlier[1]}]
    if question == "instruction":
        context = next((row[key] for key in CONTEXTS if key != answer and isinstance(row.get(key), str) and row[key].strip()), "")
        asked = f"{asked}\n\n{context}" if context and asked else asked or context
    messages += asked if isinstance(asked, list) else [{"role": "user", "content": asked}]
    return messages + (said if isinstance(said, list) else [{"role": "assistant", "content": said}])


def _plain(message: dict[str, Any]) -> Message:
    """A message with what we read of it alone. An answer of weight 0 (OpenAI's files) is read but not learned."""
    plain: Message = {key: message[key] for key in ("role", "content") if key in message}
    return plain | {"weight": 0} if message.get("weight") == 0 and plain.get("role") == "assistant" else plain


def _is_empty_answer(message: Message) -> bool:
    return message["role"] == "assistant" and not _blankless(message["content"])


def _blankless(content: Any) -> bool:
    """Whether there is more than blanks in a content."""
    return bool(content.strip()) if isinstance(content, str) else any(part["text"].strip() for part in content)


def _repaired(messages: list[Any], left: Counter[str]) -> Conversation:
    """A conversation of messages that are none yet: systems joined in front, neighbours of one role joined, loose ends left out."""
    system: list[str] = []
    turns: Conversation = []
    for number, message in enumerate(messages, 1):
        role, content = _read(message, number, left)
        if role == "system":
            system += [content] if content.strip() else []
        elif role == "call" or (role == "assistant" and not _blankless(content) and message.get("tool_calls")):
            left[CALLS] += 1  # the question stays, and what the tool said comes after it
        elif role == "tool":
            _join(turns, {"role": "user", "content": content})
        else:
            _join(turns, _plain({**message, "role": role, "content": content}))
    answered: Conversation = []
    for turn in turns:
        if turn["role"] == "assistant" and not _blankless(turn["content"]):
            left[EMPTY] += 1
            if answered and answered[-1]["role"] == "user":
                answered.pop()
        elif turn["role"] == "assistant" and not answered:
            left[BEGINS] += 1
        else:
            _join(answered, turn)
    if answered and answered[-1]["role"] == "user":
        answered.pop()
        left[ENDS] += 1
    return [*([{"role": "system", "content": "\n\n".join(system)}] if system and answered else []), *answered]


def _join(turns: Conversation, message: Message) -> None:
    """Put a message behind `turns`, into the last one where that has the same role."""
    if not turns or turns[-1]["role"] != message["role"]:
        turns.append(message)
        return
    first, second = turns[-1]["content"], message["content"]
    if isinstance(first, str) and isinstance(second, str):
        joined: Any = "\n\n".join(filter(None, (first, second)))
    else:
        joined = [*_parts(first), {"type": "text", "text": "\n\n"}, *_parts(second)]
    turns[-1] = {**message, **turns[-1], "content": joined}  # where one of two has weight 0, neither is learned


def _parts(content: Any) -> list[dict[str, str]]:
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


def _read(message: Any, number: int, left: Counter[str]) -> tuple[str, Any]:
    """The role of a message (user, assistant, system, tool or call), and its content as text or parts. Raises ValueError."""
    if not isinstance(message, dict) or not ({"role", "from"} & message.keys() and {"content", "value", "tool_calls"} & message.keys()):
        raise ValueError(f"message {number} is not an object with role and content (or from and value)")
    said = message.get("role", message.get("from"))
    role = ROLES.get(said.lower()) if isinstance(said, str) else None
    if role is None:
        raise ValueError(f"message {number} has the role {said!r}; known roles are {', '.join(ROLES)}")
    content = message.get("content", message.get("value"))
    if isinstance(content, list):
        ours = role == "assistant" and all(isinstance(part, dict) and part.get("type") in OURS for part in content)
        if ours and any(part["type"] != "text" for part in content):
            return role, content
        texts = [part if isinstance(part, str) else part.get("text") if isinstance(part, dict) else None for part in content]
        left[PARTS] += sum(not isinstance(text, str) for text in texts)
        content = "".join(text for text in texts if isinstance(text, str))
    if content is not None and not isinstance(content, str):
        raise ValueError(f"the content of message {number} is a {json_type(content)}, not a string")
    return role, content or ""
