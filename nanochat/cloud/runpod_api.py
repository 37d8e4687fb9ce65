"""RunPod's REST API, version 2: the few calls that a training run needs, the errors of its HTTP statuses, and the log's stream.

The key is sent to one host, in one header, and nowhere else: it is kept out of messages, logs and tracebacks.
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
    """404: there is no such pod (any more)."""


class NoCapacity(NanochatError):
    """400 at a creation: this GPU type is not available now; the next one may be."""


class Forbidden(NanochatError):
    """403: the key may not do this."""


class PaymentRequired(NanochatError):
    """402: the account is empty."""


class Conflict(NanochatError):
    """409: the pod's state does not allow this."""


class Indeterminate(NanochatError):
    """The connection broke, or 5xx: whether the request was carried out is not known."""


_KINDS: dict[int, tuple[type[NanochatError], str]] = {
    400: (NoCapacity, "another card (--gpu), another data centre, or later"),
    401: (UsageError, "check RUNPOD_API_KEY: the account's page of API keys shows which are valid"),
    402: (PaymentRequired, "add credit to the account, then the same command"),
    403: (Forbidden, "the API key lacks the right for this: make one with pods: read and write"),
    404: (NotFound, "`nanochat submit status --on runpod` lists the pods"),
    409: (Conflict, "`nanochat submit status --on runpod` shows the pod's state"),
    422: (UsageError, "the message names the field that RunPod refuses"),
}


class _Key(AuthBase):
    """Sets the header, so that no ~/.netrc takes its place."""

    def __init__(self, key: str):
        self._key = key

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        request.headers["Authorization"] = f"Bearer {self._key}"
        return request


class RunPod:
    """The API with one key. Methods raise the errors above; what may be repeated is, with pauses."""

    def __init__(self, key: str, url: str = "", pause: float = 1.0):
        if not key.strip():
            raise UsageError("no RunPod API key", "export RUNPOD_API_KEY, or --api-key-file FILE")
        if not key.strip().isprintable() or not key.isascii() or " " in key.strip():
            raise UsageError("the RunPod API key has characters that no key has", "the file holds the key alone, on one line")
        url = (url or os.environ.get(URL_VARIABLE, "") or URL).rstrip("/")
        parts = urlsplit(url)
        if parts.scheme != "https" and parts.hostname not in ("127.0.0.1", "localhost", "::1"):
            raise UsageError(f"{URL_VARIABLE} would send the key unencrypted", "it begins with https://")
        self._key, self.url, self.pause = key.strip(), url, pause
        self._session = requests.Session()
        self._session.auth = _Key(self._key)

    def hide(self, text: str) -> str:
        """`text` without the key, and without what could steer a terminal."""
        return printable(text.replace(self._key, HIDDEN))

    def gpus(self, count: int, cloud: str, cuda: str) -> list[dict[str, Any]]:
        """The catalogue: GPU types with price, the most in one pod, and availability."""
        query = {"include": "AVAILABILITY", "product": "POD", "count": str(count), "cloud": cloud} | (
            {"minCudaVersion": cuda} if cuda else {}
        )
        return list(self._call("GET", "/v2/catalog/gpus", query=query)["gpus"])

    def pods(self) -> list[dict[str, Any]]:
        """The account's pods; a terminated one is not among them."""
        return list(self._call("GET", "/v2/pods").get("pods", []))

    def pod(self, identifier: str) -> dict[str, Any]:
        """One pod. Raises NotFound."""
        return self._call("GET", f"/v2/pods/{quote(identifier, safe='')}")

    def create(self, body: dict[str, Any]) -> dict[str, Any]:
        """A new pod. Not repeated where it is unclear whether one was made (Indeterminate): the caller looks for it by its name."""
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
            except (requests.RequestException, ValueError) as error:  # its text may hold headers: only its kind is told
                problem = Indeterminate(f"RunPod: {method} {path}: {type(error).__name__}", "is the network up? the same command goes on")
                if once or last:
                    raise problem from None
            log(f"{problem.message}; again in {wait:.0f} s")
            time.sleep(wait)
        raise AssertionError("the last try raises")

    def _problem(self, answer: requests.Response, what: str) -> NanochatError:
        """The error that an answer means, with its own words (RFC 9457)."""
        kind, hint = _KINDS.get(
            answer.status_code, (Indeterminate if answer.status_code >= 500 else NanochatError, "later, or see RunPod's status page")
        )
        if answer.status_code == 429:
            kind, hint = NanochatError, "RunPod asks for patience: the same command again in a minute"
        words = ""
        with contextlib.suppress(ValueError, AttributeError, TypeError):
            said = answer.json()
            words = "; ".join([str(said.get("detail") or said.get("title") or ""), *map(str, said.get("errors") or [])])
        return kind(self.hide(f"RunPod: {what}: {answer.status_code} {words[:500]}"), hint)

    def events(self, identifier: str, after: str = "", silence: float = LONGEST_PAUSE, tail: int = 1000) -> Iterator[tuple[str, str]]:
        """One connection's log lines as (cursor, line); ("", "") where the stream is alive but silent. Ends where it breaks.

        `after`, the cursor of the last line that was seen, makes the stream go on behind it; it
        ends after `silence` seconds without a byte. Raises NotFound and its fellows.
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
    """What Retry-After asks for, within bounds; a date is taken as `default`."""
    return min(max(float(retry_after), 0.0), LONGEST_PAUSE) if retry_after.isdigit() else default


def read_key(file: str) -> str:
    """The key of `file`, else of RUNPOD_API_KEY. Raises UsageError or PreflightError; never shows it."""
    if not file:
        return os.environ.get("RUNPOD_API_KEY", "")
    try:
        with open(file, encoding="utf-8") as opened:
            if os.fstat(opened.fileno()).st_mode & 0o077:
                log(f"warning: others can read {file}; chmod 600 {file}")
            return opened.read().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise PreflightError(f"the key file {file} cannot be read: {type(error).__name__}", "--api-key-file names a text file") from None
