"""Client of RunPod's REST API, version 2: the calls that a training run needs, errors by HTTP status, and the log stream.

The key is sent only to one host in one header, and is kept out of messages, logs and tracebacks.
"""

import contextlib
import json
import os
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote, urlsplit

import requests
from requests.auth import AuthBase

from nanochat.console import log, printable
from nanochat.errors import NanochatError, PreflightError, UsageError
from nanochat.redaction import HIDDEN

URL = "https://api.runpod.io"
URL_VARIABLE = "NANOCHAT_RUNPOD_URL"
TIMEOUT = (10.0, 30.0)  # seconds to connect, and between two bytes
TRIES = 5
LONGEST_PAUSE = 60.0


class NotFound(NanochatError):
    """404: the pod does not exist."""


class NoCapacity(NanochatError):
    """400 when creating a pod: this GPU type is not available now; another one may be."""


class Forbidden(NanochatError):
    """403: the key lacks the permission."""


class PaymentRequired(NanochatError):
    """402: the account has no credit."""


class Conflict(NanochatError):
    """409: the pod's state does not allow the request."""


class Indeterminate(NanochatError):
    """A broken connection or 5xx: it is unknown whether the request took effect."""


_KINDS: dict[int, tuple[type[NanochatError], str]] = {
    400: (NoCapacity, "choose another GPU (--gpu) or another data centre, or try again later"),
    401: (UsageError, "check RUNPOD_API_KEY on the account's page of API keys"),
    402: (PaymentRequired, "add credit to the account, then run the same command"),
    403: (Forbidden, "create an API key with read and write permission for pods"),
    404: (NotFound, "list the pods with `nanochat submit status --on runpod`"),
    409: (Conflict, "see the pod's state with `nanochat submit status --on runpod`"),
    422: (UsageError, "correct the field that the message names"),
}


class _Key(AuthBase):
    """Sets the header explicitly, so that ~/.netrc is not used."""

    def __init__(self, key: str):
        self._key = key

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        request.headers["Authorization"] = f"Bearer {self._key}"
        return request


class RunPod:
    """The API with one key. Methods raise the errors above; idempotent requests are repeated, with pauses."""

    def __init__(self, key: str, url: str = "", pause: float = 1.0):
        if not key.strip():
            raise UsageError("no RunPod API key", "set RUNPOD_API_KEY, or use --api-key-file FILE")
        if not key.strip().isprintable() or not key.isascii() or " " in key.strip():
            raise UsageError("the RunPod API key has invalid characters", "write only the key into the file, on one line")
        url = (url or os.environ.get(URL_VARIABLE, "") or URL).rstrip("/")
        parts = urlsplit(url)
        if parts.scheme != "https" and parts.hostname not in ("127.0.0.1", "localhost", "::1"):
            raise UsageError(f"{URL_VARIABLE} would send the key unencrypted", "use an address that begins with https://")
        self._key, self.url, self.pause = key.strip(), url, pause
        self._session = requests.Session()
        self._session.auth = _Key(self._key)

    def hide(self, text: str) -> str:
        """`text` without the key and without control characters."""
        return printable(text.replace(self._key, HIDDEN))

    def gpus(self, count: int, cloud: str, cuda: str) -> list[dict[str, Any]]:
        """The catalogue: GPU types with price, largest number per pod, and availability."""
        query = {"include": "AVAILABILITY", "product": "POD", "count": str(count), "cloud": cloud} | (
            {"minCudaVersion": cuda} if cuda else {}
        )
        return list(self._call("GET", "/v2/catalog/gpus", query=query)["gpus"])

    def pods(self) -> list[dict[str, Any]]:
        """The account's pods, without terminated ones."""
        return list(self._call("GET", "/v2/pods").get("pods", []))

    def pod(self, identifier: str) -> dict[str, Any]:
        """One pod. Raises NotFound."""
        return self._call("GET", f"/v2/pods/{quote(identifier, safe='')}")

    def create(self, body: dict[str, Any]) -> dict[str, Any]:
        """Create a pod. Not repeated if the result is unknown (Indeterminate): the caller looks for the pod by its name."""
        return self._call("POST", "/v2/pods", body, once=True)

    def change(self, identifier: str, body: dict[str, Any]) -> dict[str, Any]:
        """Set fields of a pod."""
        return self._call("PATCH", f"/v2/pods/{quote(identifier, safe='')}", body)

    def act(self, identifier: str, action: str) -> None:
        """start, stop, restart or terminate. Raises Conflict if the pod's state does not allow it."""
        self._call("POST", f"/v2/pods/{quote(identifier, safe='')}/action", {"action": action})

    def _call(
        self, method: str, path: str, body: dict[str, Any] | None = None, *, query: dict[str, str] | None = None, once: bool = False
    ) -> dict[str, Any]:
        for attempt in range(TRIES):
            last = attempt == TRIES - 1
            wait = self.pause * 2**attempt
            try:
                answer = self._session.request(method, self.url + path, json=body, params=query, timeout=TIMEOUT, allow_redirects=False)
                if answer.status_code < 300:
                    value = answer.json() if answer.content else {}
                    if not isinstance(value, dict):
                        raise ValueError
                    return value
                problem = self._problem(answer, f"{method} {path}")
                if answer.status_code == 429:
                    wait = _seconds(answer.headers.get("Retry-After", ""), wait)
                    if last:
                        raise problem
                elif answer.status_code < 500 or once or last:
                    raise problem
            except (requests.RequestException, ValueError) as error:  # only its type is printed, because its text may contain headers
                problem = Indeterminate(
                    f"RunPod: {method} {path}: {type(error).__name__}", "check the network, then run the same command again"
                )
                if once or last:
                    raise problem from None
            log(f"{problem.message}; trying again in {wait:.0f} s")
            time.sleep(wait)
        raise AssertionError("the last attempt raises")

    def _problem(self, answer: requests.Response, what: str) -> NanochatError:
        """The error for a response, with its message (RFC 9457)."""
        kind, hint = _KINDS.get(
            answer.status_code,
            (Indeterminate if answer.status_code >= 500 else NanochatError, "try again later, or see RunPod's status page"),
        )
        if answer.status_code == 429:
            kind, hint = NanochatError, "wait a minute, then run the same command again (RunPod limits requests)"
        words = ""
        with contextlib.suppress(ValueError, AttributeError, TypeError):
            said = answer.json()
            words = "; ".join([str(said.get("detail") or said.get("title") or ""), *map(str, said.get("errors") or [])])
        return kind(self.hide(f"RunPod: {what}: {answer.status_code} {words[:500]}"), hint)

    def events(self, identifier: str, after: str = "", silence: float = LONGEST_PAUSE, tail: int = 1000) -> Iterator[tuple[str, str]]:
        """One connection's log lines as (cursor, line); ("", "") while the stream is silent. Ends when the connection breaks.

        `after` is the cursor of the last line that was read. The stream ends after `silence` seconds without a byte. Raises the errors
        above.
        """
        path = f"/v2/pods/{quote(identifier, safe='')}/logs"
        headers = {"Accept": "text/event-stream"} | ({"Last-Event-ID": after} if after else {})
        query = {} if after else {"tail": str(tail)}
        try:
            with self._session.get(
                self.url + path, params=query, headers=headers, stream=True, timeout=(TIMEOUT[0], silence), allow_redirects=False
            ) as answer:
                if answer.status_code != 200:
                    raise self._problem(answer, f"GET {path}")
                cursor, data = "", ""
                for raw in answer.iter_lines(chunk_size=1):
                    field, _, text = raw.decode("utf-8", "replace").partition(":")
                    text = text.removeprefix(" ")
                    if field == "id":
                        cursor = text
                    elif field == "data":
                        data += text
                    elif not field and data:
                        with contextlib.suppress(ValueError, AttributeError, TypeError):
                            yield cursor, self.hide(str(json.loads(data).get("line", "")))
                        data = ""
                    elif not field:
                        yield "", ""
        except requests.RequestException:
            return


def _seconds(retry_after: str, default: float) -> float:
    """The seconds in Retry-After, within bounds; `default` for a date."""
    return min(max(float(retry_after), 0.0), LONGEST_PAUSE) if retry_after.isdigit() else default


def read_key(file: str) -> str:
    """The key in `file`, else in RUNPOD_API_KEY. Raises UsageError or PreflightError, without showing it."""
    if not file:
        return os.environ.get("RUNPOD_API_KEY", "")
    try:
        with open(file, encoding="utf-8") as opened:
            if os.fstat(opened.fileno()).st_mode & 0o077:
                log(f"warning: other users can read {file}; run `chmod 600 {file}`")
            return opened.read().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise PreflightError(f"the key file {file} cannot be read: {type(error).__name__}", "set --api-key-file to a text file") from None
