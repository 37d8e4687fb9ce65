"""A request becomes ids: OpenAI's messages or prompts, rendered for one model. Next: the queue in scheduler.py.

https://platform.openai.com/docs/api-reference/chat and /completions describe the requests.
"""

import secrets
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from nanochat.chat.api_errors import ApiError, shown
from nanochat.chat.loading import LoadedModel
from nanochat.chat.scheduler import Deliver, GenerationRequest
from nanochat.chat.schema import REASONS, BaseRequest, ChatRequest, CompletionRequest, Function, Message, NamedTool
from nanochat.errors import DataError, UsageError
from nanochat.generate.constraint import Constraint
from nanochat.generate.sampling import Sampling
from nanochat.tokenizer.tokenizer import Conversation

DEFAULT_MAX_TOKENS = 512  # of a chat's answer
COMPLETION_MAX_TOKENS = 16  # as OpenAI's
COMPILE_WAIT = 2.0  # seconds that a request waits while other requests' schemas are compiled
_COMPILING = threading.Semaphore(2)  # large schemas must not take the threads in which all requests are prepared


@dataclass
class PreparedRequest:
    """One HTTP request, ready for the scheduler, with the metadata of its response."""

    kind: str  # chat.completion or text_completion
    loaded: LoadedModel
    prompts: list[list[int]]
    max_tokens: int
    sampling: Sampling
    choices_per_prompt: int
    stop: list[str]
    top: int | None
    dropped_turns: int = 0
    constraint: Constraint | None = None  # to copy for each answer
    tool: str | None = None  # the name of the function whose arguments the answers are
    echoes: list[int] | None = None  # with echo: for each prompt, the first id that is the client's
    id: str = field(init=False)
    created: int = field(default_factory=lambda: int(time.time()))

    def __post_init__(self) -> None:
        self.id = ("chatcmpl-" if self.chat else "cmpl-") + secrets.token_hex(12)

    @property
    def chat(self) -> bool:
        """Whether it is a chat completion."""
        return self.kind == "chat.completion"

    @property
    def choices(self) -> int:
        """The number of answers."""
        return len(self.prompts) * self.choices_per_prompt

    @property
    def prompt_tokens(self) -> int:
        """Tokens of all prompts."""
        return sum(map(len, self.prompts))

    def generation_requests(self, deliver: Deliver) -> list[GenerationRequest]:
        """One for each answer, numbered as OpenAI numbers its choices."""
        echoes: list[int | None] = [*self.echoes] if self.echoes else [None] * len(self.prompts)
        prompts = [each for each in zip(self.prompts, echoes, strict=True) for _ in range(self.choices_per_prompt)]
        return [
            GenerationRequest(
                self.loaded,
                prompt,
                self.max_tokens,
                self.sampling,
                deliver,
                index,
                self.stop,
                self.top,
                echo,
                self.constraint and self.constraint.copy(),
            )
            for index, (prompt, echo) in enumerate(prompts)
        ]


def prepare_chat(request: ChatRequest, loaded: LoadedModel) -> PreparedRequest:
    """A chat request as ids. Raises ApiError.

    If the history is too long, its oldest whole turns are dropped. A base model, which was not taught to chat, continues the last
    message's text.
    """
    max_tokens = request.max_completion_tokens or request.max_tokens or DEFAULT_MAX_TOKENS
    prompt_limit = max(loaded.context - max_tokens, loaded.context // 2)  # the answer gets at most half of the context
    conversation, begun = _conversation(request.messages)
    if begun and request.continue_final_message is False:
        message = "the last message is the assistant's: it is continued, unless the conversation ends with a user's message"
        raise ApiError(400, message, "invalid_value", "continue_final_message")
    if request.continue_final_message and not begun:
        message = "continue_final_message needs a last message of the assistant's, with the text to continue"
        raise ApiError(400, message, "invalid_value", "continue_final_message")
    try:
        if loaded.chats:
            ids, dropped = _chat_prompt(loaded, conversation, begun, prompt_limit)
        else:
            ids, dropped = [loaded.tokenizer.bos, *loaded.tokenizer.encode(_text(request.messages[-1]))[1 - prompt_limit :]], 0
    except UsageError as error:
        raise ApiError(400, f"{error.message}; {error.hint}", "context_length_exceeded", "messages") from error
    except DataError as error:
        raise ApiError(400, error.message, "invalid_value", "messages") from error
    top = request.top_logprobs or 0 if request.logprobs else None
    if request.top_logprobs and not request.logprobs:
        raise ApiError(400, "top_logprobs needs logprobs to be true", "invalid_value", "top_logprobs")
    prepared = PreparedRequest(
        "chat.completion", loaded, [ids], max_tokens, _sampling(request), request.n or 1, request.stops, top, dropped
    )
    if tool := _tool(request):
        if begun:
            raise ApiError(400, "a call of a tool cannot continue the assistant's message", "invalid_value", "messages")
        prepared.tool = tool.name
        prepared.constraint = _constraint(tool.parameters, tool.strict, loaded, "tools")
    elif form := request.response_format and request.response_format.schema_of_answer:
        prepared.constraint = _constraint(form.value, form.strict, loaded, "response_format")
        if begun and not prepared.constraint.begin(loaded.tokenizer.encode(begun)):
            raise ApiError(400, "the text to continue does not begin an answer of the form in response_format", "invalid_value", "messages")
    return prepared


def _tool(request: ChatRequest) -> Function | None:
    """The function that the answer must call. Raises ApiError if the model would have to choose, or there is none of that name."""
    tools, choice = {tool.function.name: tool.function for tool in request.tools or []}, request.tool_choice
    if choice == "none" or (not tools and choice in (None, "auto")):
        return None
    if isinstance(choice, NamedTool):
        name = choice.function.name
    elif choice == "required" and len(tools) == 1:
        (name,) = tools
    else:
        raise ApiError(
            400, f"unsupported parameter: tools: {REASONS['tools']} (docs/guides/chat-and-api.md)", "unsupported_parameter", "tools"
        )
    if name not in tools:
        raise ApiError(400, f"tool_choice names {shown(name)}, which is not in tools", "invalid_value", "tool_choice")
    return tools[name]


def _constraint(schema: dict[str, Any], strict: bool | None, loaded: LoadedModel, param: str) -> Constraint:
    """The form that a request's `param` asks for. Raises ApiError."""
    if not _COMPILING.acquire(timeout=COMPILE_WAIT):
        raise ApiError(429, "too many JSON schemas are being compiled", "too_many_requests", retry_after=2)
    try:
        return loaded.constraints.compile(schema, bool(strict))
    except UsageError as error:
        raise ApiError(400, error.message, "invalid_json_schema", param) from error
    finally:
        _COMPILING.release()


def _chat_prompt(loaded: LoadedModel, conversation: Conversation, begun: str, limit: int) -> tuple[list[int], int]:
    """(ids of a conversation up to the model's answer, number of turns left out).

    `begun` is the text of an answer that it continues. Raises UsageError if at most `limit` ids do not suffice, DataError.
    """
    answer = loaded.tokenizer.encode(begun) if begun else []
    if begun and len(answer) > limit // 2:
        raise UsageError(f"the text to continue has {len(answer):,} tokens; at most {limit // 2:,} fit", "send a shorter one")
    ids, dropped = loaded.tokenizer.render_prompt(conversation, limit - len(answer))
    return ids + answer, dropped


def prepare_completion(request: CompletionRequest, loaded: LoadedModel) -> PreparedRequest:
    """A completion request as ids: BOS, then the prompt. Raises ApiError."""
    prompt = request.prompt
    many: list[Any] = [prompt] if isinstance(prompt, str) or (prompt and isinstance(prompt[0], int)) else list(prompt)
    if not many:
        raise ApiError(400, "there is no prompt", "invalid_value", "prompt")
    max_tokens = COMPLETION_MAX_TOKENS if request.max_tokens is None else request.max_tokens
    if not max_tokens and not request.echo:
        raise ApiError(400, "max_tokens must be at least 1 without echo", "invalid_value", "max_tokens")
    tokenizer = loaded.tokenizer
    prompts, echoes = [], []
    for one in many:
        ids = tokenizer.encode(one) if isinstance(one, str) else list(one)
        own = ids[:1] != [tokenizer.bos]  # the BOS is this server's, unless the client has put it there
        ids = [tokenizer.bos, *ids] if own else ids
        if not all(0 <= id < tokenizer.vocab_size and tokenizer.bytes_of(id) is not None for id in ids[1:]):
            message = f"the ids of a prompt are from 0 to {tokenizer.vocab_size - 1} without special tokens, which are not for clients"
            raise ApiError(400, message, "invalid_value", "prompt")
        if len(ids) + min(max_tokens, 1) > loaded.context:
            message = f"the prompt is {len(ids):,} tokens long, and this model's context is {loaded.context:,}"
            raise ApiError(400, message, "context_length_exceeded", "prompt")
        prompts.append(ids)
        echoes.append(int(own))
    prepared = PreparedRequest(
        "text_completion", loaded, prompts, max_tokens, _sampling(request), request.n or 1, request.stops, request.logprobs
    )
    prepared.echoes = echoes if request.echo else None
    return prepared


def _sampling(request: BaseRequest) -> Sampling:
    seed = None if request.seed is None else request.seed % 2**63
    temperature = 1.0 if request.temperature is None else request.temperature
    return Sampling(temperature, request.top_k, 1.0 if request.top_p is None else request.top_p, seed)


def _conversation(messages: Sequence[Message]) -> tuple[Conversation, str]:
    """OpenAI's messages as the tokenizer's conversation, which ends with a user's message, and the answer that is begun after it.

    One system message in front. A tool's text reads as the user's. Empty messages of the assistant, such as calls of tools, and all
    before the first of the user's are left out, as in training. Neighbours of one role are put together.
    """
    system = [text for message in messages if message.role in ("system", "developer") and (text := _text(message))]
    conversation: Conversation = []
    for message in messages:
        if message.role in ("system", "developer"):
            continue
        role = "assistant" if message.role == "assistant" else "user"
        content: Any = message.content
        if role == "user" or not isinstance(content, list):
            content = _text(message)
        else:
            content = [{"type": part.type, "text": part.text} for part in content]
        if (role == "assistant" and not content) or (message.role != "user" and not conversation):
            continue
        if conversation and conversation[-1]["role"] == role:
            conversation[-1]["content"] = _joined(conversation[-1]["content"], content)
        else:
            conversation.append({"role": role, "content": content})
    begun = ""
    if conversation and conversation[-1]["role"] == "assistant":
        begun = _visible(conversation.pop()["content"])
    front: Conversation = [{"role": "system", "content": "\n\n".join(system)}] if system else []
    return front + conversation, begun


def _joined(first: Any, second: Any) -> Any:
    """The contents of two messages of one role as one."""
    if isinstance(first, str) and isinstance(second, str):
        return f"{first}\n\n{second}"
    parts = [[{"type": "text", "text": each}] if isinstance(each, str) else each for each in (first, second)]
    return [*parts[0], {"type": "text", "text": "\n\n"}, *parts[1]]


def _visible(content: str | list[dict[str, str]]) -> str:
    """The text of a content, without the calculator's calls."""
    return content if isinstance(content, str) else "".join(part["text"] for part in content if part["type"] == "text")


def _text(message: Message) -> str:
    content = message.content or ""
    return content if isinstance(content, str) else "".join(part.text for part in content if part.type == "text")
