"""Removal of credentials from text: all messages, errors and stored addresses pass through `redact`."""

import os
import re
from urllib.parse import quote, unquote

HIDDEN = "***"
SHORTEST = 4  # characters; a shorter secret is hidden only within its address
# Variables whose value is a secret, and variables that hold addresses (proxy variables in upper and lower case).
SECRETS = (
    *("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "WANDB_API_KEY", "TRACKIO_WRITE_TOKEN", "RUNPOD_API_KEY", "NANOCHAT_API_KEY"),
    *("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"),
)
_PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")
ADDRESSES = ("HF_ENDPOINT", "NANOCHAT_MIRRORS", "NANOCHAT_ASSET_URL", *_PROXIES, *map(str.lower, _PROXIES))
# Up to the last @ of the authority. A password may hold an unquoted slash: then the @ comes later, and no port is before the slash.
_USERINFO = re.compile(r"(?<=://)(?:[^\s/?#]*|[^\s/?#@:]*:(?!\d*(?:[/?#]|$))\S*)@")
# Any query value may be a key or a signature, except those of these parameters of the hub's API.
_QUERY = re.compile(r"""([?&#](?!(?:recursive|expand|limit|cursor)=)[^\s=&#?/"<>]+=)([^\s&#"<>]+?)(?=[:,.;)'\]}]*(?:[\s&#"<>]|$))""")
_remembered: set[str] = set()


def redact(text: str) -> str:
    """Return `text` with *** in place of the credentials and query values of its addresses, and of known secrets."""
    text = _QUERY.sub(rf"\1{HIDDEN}", _USERINFO.sub(f"{HIDDEN}@", text))
    for secret in sorted(_remembered | _from_environment(), key=len, reverse=True):
        text = text.replace(secret, HIDDEN)
    return text


def remember(address: str) -> None:
    """Have `redact` hide the credentials of `address` anywhere, because libraries print them decoded or apart from the address."""
    _remembered.update(_credentials(address))


def _from_environment() -> set[str]:
    """The secrets in this process's environment variables."""
    found = {value for value in map(os.environ.get, SECRETS) if value and len(value) >= SHORTEST}
    for value in filter(None, map(os.environ.get, ADDRESSES)):
        for address in value.split(","):
            found |= _credentials(address)
    return found


def _credentials(address: str) -> set[str]:
    """The password and query values of an address, quoted and unquoted; a user name without a password may be a token."""
    whole = address.strip() if "://" in address else f"://{address.strip()}"
    named = [found[0].removesuffix("@") for found in _USERINFO.finditer(whole)]
    values = [name.partition(":")[2] or name for name in named] + [found[2] for found in _QUERY.finditer(whole)]
    spelled = {form for value in values for form in (value, unquote(value), quote(unquote(value), safe=""))}
    return {form for form in spelled if len(form) >= SHORTEST}
