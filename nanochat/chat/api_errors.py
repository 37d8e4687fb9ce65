"""The API's errors in OpenAI's shape: every HTTP status this server answers, with its type and its headers."""

from typing import Any

from nanochat.errors import NanochatError

STATUSES = {
    400: "The request cannot be answered",
    401: "A key is needed",
    403: "Host or origin not allowed",
    404: "No such model or path",
    408: "The body came too slowly",
    409: "Not possible now: another training run is under way, or none",
    413: "The body is too large",
    429: "Too many requests; Retry-After says when",
    503: "No model yet, or the engine failed",
}
RESPONSES: dict[int | str, dict[str, Any]] = {status: {"description": text} for status, text in STATUSES.items()}  # for OpenAPI
MESSAGE_CHARACTERS = 500  # of an error's message, whatever of a request it names
NAME_CHARACTERS = 80
TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


def shown(text: str) -> str:
    """A client's or a user's value in quotes for a message: control characters escaped, cut where it is long."""
    return repr(text[:NAME_CHARACTERS]) + ("..." if len(text) > NAME_CHARACTERS else "")


class ApiError(NanochatError):
    """An error in OpenAI's shape: HTTP status, type, code, and the parameter that caused it. The message is one line of bounded length."""

    def __init__(self, status: int, message: str, code: str | None = None, param: str | None = None, retry_after: int | None = None):
        if len(message) > MESSAGE_CHARACTERS:
            message = message[: MESSAGE_CHARACTERS - 3] + "..."
        super().__init__("".join(char if char.isprintable() else repr(char)[1:-1] for char in message))
        self.status, self.code, self.param, self.retry_after = status, code, param, retry_after

    def body(self) -> dict[str, Any]:
        """The response's JSON."""
        kind = TYPES.get(self.status) or ("server_error" if self.status >= 500 else "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def headers(self) -> dict[str, str]:
        """The response's headers beside those of its content."""
        found = {}
        if self.retry_after is not None:
            found["retry-after"] = str(self.retry_after)
        if self.status == 401:
            found["www-authenticate"] = "Bearer"
        if self.status in (408, 413):  # the rest of the body will not be read
            found["connection"] = "close"
        return found
