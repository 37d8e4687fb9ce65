"""Request schemas of the OpenAI routes: OpenAI's fields, with all numbers and lists bounded.

docs/guides/chat-and-api.md has the table of what is supported, refused and ignored.
"""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StrictBool, model_validator

MAX_MESSAGES = 2_000
MAX_ANSWERS = 8
MAX_STOPS = 4


def _valid_text(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("the text has a lone surrogate: it is no valid Unicode") from None
    return text


Text = Annotated[str, AfterValidator(_valid_text)]
Role = Literal["system", "developer", "user", "assistant", "tool", "function"]

# Fields of OpenAI's that change the answer and that this server does not have -> the values that ask for nothing.
REFUSED: dict[str, tuple[Any, ...]] = {
    "tools": (None, []),
    "tool_choice": (None, "none", "auto"),
    "functions": (None, []),
    "function_call": (None, "none", "auto"),
    "response_format": (None, {"type": "text"}),
    "logit_bias": (None, {}),
    "frequency_penalty": (None, 0),
    "presence_penalty": (None, 0),
    "modalities": (None, ["text"]),
    "audio": (None,),
    "prediction": (None,),
    "web_search_options": (None,),
    "suffix": (None, ""),
    "best_of": (None, 1),
}

_NO_TOOLS = "the models that are trained here were not taught to call tools; the calculator is built in"
REASONS = {  # a refused field -> why it cannot be ignored
    **dict.fromkeys(("tools", "tool_choice", "functions", "function_call"), _NO_TOOLS),
    "response_format": "answers are not constrained to a grammar; ask for the form in words, and check what comes",
    **dict.fromkeys(("modalities", "audio"), "the models here read and write text alone"),
    **dict.fromkeys(("previous_response_id", "conversation", "background", "prompt"), "this server keeps no conversation: send all of it"),
    "text": "answers are not constrained to a grammar; ask for the form in words, and check what comes",
    "best_of": "n gives several answers to choose from",
}


class Part(BaseModel):
    """A part of a message's content. python and python_output are an assistant's call of the calculator and its result."""

    type: Literal["text", "python", "python_output"]
    text: Text


class Message(BaseModel):
    """One message of a conversation. A content of null is none, as of an assistant that called a tool."""

    role: Role
    content: Text | Annotated[list[Part], Field(max_length=256)] | None = None


class StreamOptions(BaseModel):
    """Options of a streamed answer."""

    include_usage: StrictBool | None = None


class BaseRequest(BaseModel):
    """Fields shared by chat completions and completions. top_k is an addition, as in other open servers."""

    model_config = ConfigDict(extra="ignore")

    model: Text | None = None
    max_tokens: int | None = Field(None, ge=1, le=1_000_000)
    temperature: float | None = Field(None, ge=0, le=2, allow_inf_nan=False)
    top_p: float | None = Field(None, gt=0, le=1, allow_inf_nan=False)
    top_k: int | None = Field(None, ge=0, le=1_000_000)
    n: int | None = Field(None, ge=1, le=MAX_ANSWERS)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    stop: (
        Annotated[Text, Field(max_length=256)] | Annotated[list[Annotated[Text, Field(max_length=256)]], Field(max_length=MAX_STOPS)] | None
    ) = None
    stream: StrictBool | None = None
    stream_options: StreamOptions | None = None

    @model_validator(mode="before")
    @classmethod
    def _refuse(cls, values: Any) -> Any:
        for name, nothing in REFUSED.items():
            if isinstance(values, dict) and name in values and values[name] not in nothing:
                raise ValueError(f"unsupported parameter: {name}")
        return values

    @property
    def stops(self) -> list[str]:
        """The stop strings."""
        return [self.stop] if isinstance(self.stop, str) else list(self.stop or [])


class ChatRequest(BaseRequest):
    """POST /v1/chat/completions. An assistant's message at the end is continued, as `continue_final_message` asks in other servers."""

    continue_final_message: StrictBool | None = None
    messages: list[Message] = Field(min_length=1, max_length=MAX_MESSAGES)
    max_completion_tokens: int | None = Field(None, ge=1, le=1_000_000)
    logprobs: StrictBool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)


class CompletionRequest(BaseRequest):
    """POST /v1/completions: text, ids, or a list of either. With `echo` the prompt comes before the answer, which may be of no token."""

    max_tokens: int | None = Field(None, ge=0, le=1_000_000)
    echo: StrictBool | None = None
    prompt: (
        Text | Annotated[list[Text], Field(max_length=MAX_ANSWERS)] | list[int] | Annotated[list[list[int]], Field(max_length=MAX_ANSWERS)]
    ) = ""
    logprobs: int | None = Field(None, ge=0, le=5)
