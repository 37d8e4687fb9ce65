"""Request schemas of the OpenAI routes: OpenAI's fields, with all numbers and lists bounded.

docs/guides/chat-and-api.md has the table of what is supported, refused and ignored.
"""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StrictBool, model_validator

MAX_MESSAGES = 2_000
MAX_ANSWERS = 8
MAX_STOPS = 4
MAX_TOOLS = 128


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

_NO_TOOLS = (
    "the models that are trained here were not taught to call tools; the calculator is built in, "
    "and chat completions take a tool that tool_choice names"
)
REASONS = {  # a refused field -> why it cannot be ignored
    **dict.fromkeys(("tools", "tool_choice", "functions", "function_call"), _NO_TOOLS),
    **dict.fromkeys(("modalities", "audio"), "the models here read and write text alone"),
    **dict.fromkeys(("previous_response_id", "conversation", "background", "prompt"), "this server keeps no conversation: send all of it"),
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


class JsonSchema(BaseModel):
    """A named JSON schema. If not `strict`, keywords that cannot be enforced are ignored."""

    value: dict[str, Any] = Field(alias="schema")
    strict: StrictBool | None = None


class ResponseFormat(BaseModel):
    """The form of an answer: any text, any JSON object, or the JSON of a schema."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None

    @model_validator(mode="after")
    def _has_its_schema(self) -> "ResponseFormat":
        if self.type == "json_schema" and self.json_schema is None:
            raise ValueError("the type json_schema needs the field json_schema")
        return self

    @property
    def schema_of_answer(self) -> JsonSchema | None:
        """The schema of the answer, None for any text."""
        return JsonSchema(schema={"type": "object"}) if self.type == "json_object" else self.json_schema if self.type != "text" else None


class Function(BaseModel):
    """A tool: its name, and the JSON schema of its arguments."""

    name: Annotated[Text, Field(min_length=1, max_length=64)]
    parameters: dict[str, Any] = {"type": "object", "properties": {}, "additionalProperties": False}
    strict: StrictBool | None = None


class Tool(BaseModel):
    """A tool that may be called."""

    type: Literal["function"]
    function: Function


class NamedFunction(BaseModel):
    """A function by its name."""

    name: Text


class NamedTool(BaseModel):
    """The tool that is to be called."""

    type: Literal["function"] = "function"
    function: NamedFunction


class BaseRequest(BaseModel):
    """Fields shared by chat completions and completions. top_k is an addition, as in other open servers."""

    model_config = ConfigDict(extra="ignore")
    refused: ClassVar[dict[str, tuple[Any, ...]]] = REFUSED

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
        for name, nothing in cls.refused.items():
            if isinstance(values, dict) and name in values and values[name] not in nothing:
                raise ValueError(f"unsupported parameter: {name}")
        return values

    @property
    def stops(self) -> list[str]:
        """The stop strings."""
        return [self.stop] if isinstance(self.stop, str) else list(self.stop or [])


class ChatRequest(BaseRequest):
    """POST /v1/chat/completions. An assistant's message at the end is continued, as `continue_final_message` asks in other servers."""

    refused = {name: nothing for name, nothing in REFUSED.items() if name not in ("tools", "tool_choice")}

    continue_final_message: StrictBool | None = None
    messages: list[Message] = Field(min_length=1, max_length=MAX_MESSAGES)
    max_completion_tokens: int | None = Field(None, ge=1, le=1_000_000)
    response_format: ResponseFormat | None = None
    tools: Annotated[list[Tool], Field(max_length=MAX_TOOLS)] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
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
