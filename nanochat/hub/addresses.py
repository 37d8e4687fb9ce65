"""A Hugging Face hub or a plain web server: its addresses and mirrors, what it lists, and one request with its retries.

HF_ENDPOINT names the hub, NANOCHAT_MIRRORS further ones (with commas) that are asked where it fails, HF_TOKEN a token for
what is private. Proxies are those of the environment (such as HTTPS_PROXY).
"""

import dataclasses
import email.utils
import os
import random
import re
import time
import urllib.parse
from collections.abc import Callable
from typing import Any, TypeVar

from nanochat import untrusted
from nanochat.console import log
from nanochat.errors import DataError, UsageError
from nanochat.redaction import redact

ENDPOINT = "https://huggingface.co"  # HF_ENDPOINT replaces it
ATTEMPTS = 6  # in a row that bring nothing, for each file and each page
FIRST_WAIT = 1.0  # seconds before the second attempt; doubled for each further one ...
LONGEST_BACKOFF = 60.0  # ... up to this
LONGEST_WAIT = 300.0  # seconds that a server's Retry-After is honoured
FILE_MOST = 1 << 40  # bytes of a file
LIST_BYTES, LIST_PAGES = 64 << 20, 10_000  # of one page of a list, and how many pages
TIMEOUT = (15.0, 60.0)  # seconds to connect, and without a byte
ADDRESS_HINT = "set HF_ENDPOINT or NANOCHAT_ASSET_URL to an address such as https://mirror.example"
UNKNOWN_LICENCE = "unknown: see the dataset's card"

Result = TypeVar("Result")


@dataclasses.dataclass(frozen=True)
class Remote:
    """A file to fetch; size in bytes and SHA-256 where they are published. `name` is its plain name here; `mirrors` have it too.

    More than `most` bytes are not taken from a server, whatever it says.
    """

    url: str
    name: str
    size: int | None = None
    sha256: str | None = None
    mirrors: tuple[str, ...] = ()
    most: int = FILE_MOST


class NotListed(DataError):
    """The server has no list of the dataset's files, or none that can be understood."""


class TransientError(Exception):
    """A failure that may pass; `wait` is what the server asked for, in seconds."""

    def __init__(self, why: str, wait: float | None = None):
        super().__init__(why)
        self.wait = wait


# --- addresses and lists


def endpoint() -> str:
    """The hub's address: HF_ENDPOINT, else the public one."""
    return (os.environ.get("HF_ENDPOINT") or ENDPOINT).rstrip("/")


def mirrors() -> list[str]:
    """The hub and its mirrors, in the order in which they are asked."""
    further = [address.strip().rstrip("/") for address in os.environ.get("NANOCHAT_MIRRORS", "").split(",")]
    return list(dict.fromkeys([endpoint(), *filter(None, further)]))


def remote(repo: str, path: str, size: int | None = None, sha256: str | None = None) -> Remote:
    """A dataset's file, at the hub and at each mirror; a/b.parquet gets the plain name a__b.parquet."""
    addresses = [f"{place}/datasets/{repo}/resolve/main/{urllib.parse.quote(path)}" for place in mirrors()]
    return Remote(addresses[0], path.replace("/", "__"), size, sha256, tuple(addresses[1:]))


def list_files(repo: str, recursive: bool = True) -> list[Remote]:
    """Every file of a dataset, from all pages of the hub's tree; a mirror's where the hub has none.

    Raises NotListed if the servers refuse or answer nonsense, DataError where none can be reached or a name is unsafe.
    """
    query = f"/api/datasets/{repo}/tree/main" + ("?recursive=true" if recursive else "")
    return _first_that_answers(query, lambda url, attempts: _tree(repo, url, attempts))


def licence(repo: str) -> str:
    """The licence that a dataset's card names, for people to read; UNKNOWN_LICENCE where it names none."""
    named = _card(repo).get("license")
    text = ", ".join(map(str, named)) if isinstance(named, list) else named
    return text if isinstance(text, str) and text.isprintable() and 0 < len(text) < 200 else UNKNOWN_LICENCE


def subsets(repo: str) -> dict[str, list[str]]:
    """The subsets that a dataset's card lists: name -> patterns of its files' paths, those of its train split where it has one.

    The card is as https://huggingface.co/docs/hub/datasets-manual-configuration describes it. {} where it lists none.
    """
    found: dict[str, list[str]] = {}
    listed = _card(repo).get("configs")
    for entry in listed if isinstance(listed, list) else []:
        if not isinstance(entry, dict) or not isinstance(entry.get("config_name"), str):
            continue
        files = entry.get("data_files")
        splits = files if isinstance(files, list) else [files]
        train = [split for split in splits if isinstance(split, dict) and split.get("split") == "train"]
        paths = [split.get("path") if isinstance(split, dict) else split for split in train or splits]
        flat = [path for one in paths for path in (one if isinstance(one, list) else [one])]
        if patterns := [path for path in flat if isinstance(path, str)]:
            found[entry["config_name"]] = patterns
    return found


def _card(repo: str) -> dict[str, Any]:
    """The metadata of a dataset's card; {} where the hub gives none."""
    try:
        card = _first_that_answers(f"/api/datasets/{repo}", lambda url, attempts: retry(url, lambda: _json(url), attempts))
    except DataError:
        return {}
    data = card.get("cardData") if isinstance(card, dict) else None
    return data if isinstance(data, dict) else {}


def _first_that_answers(query: str, ask: Callable[[str, int], Result]) -> Result:
    """The answer of the first place to give one; the hub's own error where none does."""
    places = mirrors()
    first: DataError | None = None
    for place in places:
        try:
            return ask(place + query, ATTEMPTS if place == places[-1] else 2)
        except DataError as error:
            if place != places[-1]:
                log(f"{error.message}: asking the next mirror")
            first = first or error
    assert first is not None
    raise first


def _tree(repo: str, url: str, attempts: int) -> list[Remote]:
    found: list[Remote] = []
    seen: set[str] = set()
    while url and url not in seen:
        seen.add(url)
        if len(seen) > LIST_PAGES:
            raise NotListed(f"{repo}: the list of files has more than {LIST_PAGES} pages")
        entries, following = retry(url, lambda url=url: _page(url), attempts)  # type: ignore[misc]
        found += [_listed(repo, entry) for entry in entries if entry.get("type") == "file"]
        url = urllib.parse.urljoin(url, following) if following else ""
    return found


def _page(url: str) -> tuple[list[dict[str, Any]], str]:
    """One page of the tree: its entries, and the address of the next page or ""."""
    links: dict[str, Any] = {}
    entries = _json(url, links)
    if not isinstance(entries, list) or not all(isinstance(entry, dict) and isinstance(entry.get("path"), str) for entry in entries):
        raise NotListed(f"{url} does not answer as a hub: no list of files")
    return entries, links.get("next", {}).get("url", "")


def _json(url: str, links: dict[str, Any] | None = None) -> Any:
    """The JSON at `url`; its Link headers are put into `links`."""
    import requests

    try:
        with get(url) as response:
            if links is not None:
                links |= response.links
            return untrusted.parse_json(_body(url, response).decode("utf-8"))
    except ValueError as error:
        raise NotListed(f"{url} does not answer as a hub: no JSON") from error
    except requests.RequestException as error:
        raise TransientError(reason(error)) from error
    except DataError as error:
        raise NotListed(error.message, error.hint) from error


def _body(url: str, response: Any) -> bytes:
    """A whole response of at most LIST_BYTES bytes. Raises NotListed for a longer one."""
    body = bytearray()
    for block in response.iter_content(1 << 16):
        body += block
        if len(body) > LIST_BYTES:
            raise NotListed(f"{url} does not answer as a hub: more than {LIST_BYTES:,} bytes")
    return bytes(body)


def _listed(repo: str, entry: dict[str, Any]) -> Remote:
    """The file that an entry of the tree describes. Raises DataError for a path that would lead out of the folder."""
    path = entry["path"]
    parts = path.split("/")
    if not path.isprintable() or "\\" in path or ":" in path or any(part in ("", ".", "..") for part in parts):
        raise DataError(f"{repo} lists a file with the unsafe name {path!r}", "use another dataset")
    lfs: dict[str, Any] = entry["lfs"] if isinstance(entry.get("lfs"), dict) else {}
    size = lfs.get("size", entry.get("size"))
    return remote(repo, path, size if type(size) is int and 0 <= size <= FILE_MOST else None, digest_of(lfs.get("oid")))


def digest_of(text: Any) -> str | None:
    """`text` as 64 hex digits where it is a SHA-256, else None."""
    digest = str(text).removeprefix("sha256:").lower()
    return digest if re.fullmatch(r"[0-9a-f]{64}", digest) else None


# --- one request


def retry_after(value: str | None) -> float | None:
    """Seconds to wait by a Retry-After header, which holds seconds or an HTTP date; None if it is absent or nonsense."""
    if not value:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(value).timestamp() - time.time()
        except ValueError:
            return None
    return min(max(seconds, 0.0), LONGEST_WAIT) if seconds == seconds else None


def pause(error: TransientError, failures: int) -> float:
    """Seconds before the next attempt: what the server asked for, else longer each time; the random part spreads many clients."""
    backoff = min(FIRST_WAIT * 2 ** (failures - 1), LONGEST_BACKOFF)
    return backoff * random.uniform(0.5, 1.0) if error.wait is None else error.wait + FIRST_WAIT * random.uniform(0.0, 0.5)


def retry(label: str, action: Callable[[], Result], attempts: int = ATTEMPTS) -> Result:
    """`action`'s result, tried `attempts` times. Raises DataError."""
    for attempt in range(1, attempts + 1):
        try:
            return action()
        except TransientError as error:
            if attempt == attempts:
                raise DataError(f"{label}: {error} ({attempt} attempts)") from error
            log(f"{label}: {error}; trying again")
            time.sleep(pause(error, attempt))
    raise AssertionError("unreachable")


def get(url: str, headers: dict[str, str] | None = None) -> Any:
    """One GET, streamed: a response of status 200, 206 or 416. Raises TransientError for what may pass, DataError for what will not."""
    import requests

    sent = {"Accept-Encoding": "identity", "User-Agent": "nanochat"} | (headers or {})
    try:
        response = requests.get(url, stream=True, timeout=TIMEOUT, headers=sent, auth=_token(url))
    except ValueError as error:  # InvalidURL and its like too. Its words are left out: they may hold a part of a password
        raise DataError(f"{url} is not an address", ADDRESS_HINT) from error
    except requests.RequestException as error:
        raise TransientError(reason(error)) from error
    status = response.status_code
    if status in (200, 206, 416):
        return response
    wait = retry_after(response.headers.get("Retry-After"))
    response.close()
    if status in (408, 425, 429) or status >= 500:
        raise TransientError(f"the server answered {status}", wait)
    private = "it is private or gated: HF_TOKEN must hold the token of an account that may read it"
    hint = {401: private, 403: private, 404: "check its name and HF_ENDPOINT"}.get(status, "")
    raise DataError(f"{url}: the server answered {status}", hint)


def hub_token(url: str) -> str:
    """HF_TOKEN for requests to the hub over TLS or loopback, "" for other addresses. Mirrors never receive the token.

    Blanks at its ends are left out, such as a file's last newline. Raises UsageError if a header cannot hold it.
    """
    token, hub = os.environ.get("HF_TOKEN", "").strip(), urllib.parse.urlsplit(endpoint())
    private = hub.scheme == "https" or hub.hostname in ("localhost", "127.0.0.1", "::1")
    if not token or not private or not f"{url}/".startswith(endpoint() + "/"):
        return ""
    if not re.fullmatch(r"[!-~]+", token):
        raise UsageError(
            "HF_TOKEN is not a token, because it contains spaces, control characters or letters beyond ASCII", "copy it again from the hub"
        )
    return token


def _token(url: str) -> Callable[[Any], Any] | None:
    """A callable that adds the hub's token to requests, or None. A redirect to another host loses it (requests sees to that)."""
    token = hub_token(url)
    if not token:
        return None

    def add(request: Any) -> Any:
        request.headers["Authorization"] = f"Bearer {token}"
        return request

    return add


def reason(error: BaseException) -> str:
    """The innermost cause of a network error, in a few words and without credentials, which a library may tell with the address."""
    while inner := error.__cause__ or error.__context__:
        error = inner
    return redact(f"{type(error).__name__}: {error}")[:200]
