"""Strict parsers of request headers: a value that violates its standard is ignored and allows nothing."""

import ipaddress
import re
from collections.abc import Iterable, Sequence
from contextlib import suppress

from nanochat.chat.api_errors import ApiError, shown
from nanochat.errors import UsageError

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

SINGLE = ("host", "origin", "authorization", "content-length", "content-type")  # two of one: somebody would read the other
_HOST = r"(?P<name>\[[0-9a-f:.]+(?:%[\w.-]+)?\]|[a-z0-9_.-]+)(?::[0-9]{0,5})?"
HOST = re.compile(_HOST, re.ASCII | re.IGNORECASE)  # no user, path or query, which urlsplit would take
ORIGIN = re.compile(rf"[a-z][a-z0-9+.-]*://(?P<netloc>{_HOST})", re.ASCII | re.IGNORECASE)
MAX_FORWARDED = 64  # addresses of X-Forwarded-For that are looked at


def read_headers(raw: Iterable[tuple[bytes, bytes]]) -> dict[str, str]:
    """Headers by their lower-case names; several of one name are joined by commas. Raises ApiError for a second one of SINGLE."""
    headers: dict[str, str] = {}
    for key, value in raw:
        name, text = key.decode("latin-1").lower(), value.decode("latin-1")
        if name in headers and name in SINGLE:
            raise ApiError(400, f"more than one {name.title()} header", "invalid_value")
        headers[name] = f"{headers[name]},{text}" if name in headers else text
    return headers


def host_name(host: str) -> str:
    """The lower-case name or address in a Host header, without port, brackets and final dot; "" for anything else."""
    found = HOST.fullmatch(host)
    return found["name"].strip("[]").rstrip(".").lower() if found else ""


def origin_netloc(origin: str) -> str:
    """The lower-case host and port of an Origin header; "" for null and for anything that is no origin."""
    found = ORIGIN.fullmatch(origin)
    return found["netloc"].lower() if found else ""


def bearer_key(authorization: str) -> bytes:
    """The key of an Authorization header as it was sent; b"" where there is none."""
    kind, _, key = authorization.partition(" ")
    return key.strip(" ").encode("latin-1") if kind.lower() == "bearer" else b""


def content_length(value: str) -> int | None:
    """The number of a Content-Length header, None for anything else."""
    return int(value) if re.fullmatch(r"[0-9]{1,18}", value) else None


def address_of(text: str) -> Address | None:
    """An address, also in brackets or with a port, as proxies write it; IPv4 inside IPv6 as IPv4. None for anything else."""
    bracketed = re.fullmatch(r"\[([^\]]*)\](?::[0-9]{1,5})?|([0-9.]+):[0-9]{1,5}", text.strip(), re.ASCII)
    with suppress(ValueError):
        address = ipaddress.ip_address((bracketed[1] or bracketed[2] or "") if bracketed else text.strip())
        return getattr(address, "ipv4_mapped", None) or address
    return None


def within(address: Address | None, networks: Sequence[Network]) -> bool:
    """Whether an address belongs to one of the networks."""
    return address is not None and any(address in network for network in networks)


def client_of(peer: str, forwarded: str, proxies: Sequence[Network]) -> str:
    """The client's address: the peer's, or, where the peer is a trusted proxy, the last address of X-Forwarded-For that is not one.

    Addresses before it were written by the client and may be false. Without an address there, it is the peer.
    """
    if not proxies or not within(address_of(peer), proxies):
        return peer
    for part in reversed(forwarded.split(",")[-MAX_FORWARDED:]):
        address = address_of(part)
        if address is None:
            return peer
        if not within(address, proxies):
            return str(address)
    return peer


def allowed_host(value: str, source: str) -> str:
    """A declared host name (NAME, NAME:PORT, *.NAME or an address) as `host_name` writes it. Raises UsageError; `source` gave it."""
    text = value.strip()
    wild = text.startswith("*.")
    with suppress(ValueError):  # UnicodeError, of a name that no domain can have, is one
        return str(ipaddress.ip_address(text.strip("[]")))
    with suppress(ValueError):
        if name := host_name(text.removeprefix("*.").encode("idna").decode()):
            return f"*.{name}" if wild else name
    inner = re.match(r"[a-z]+://([^/:@]+)", text, re.IGNORECASE)
    example = inner[1] if inner and host_name(inner[1]) else "chat.example.org"
    raise UsageError(f"{shown(value)} is no host name ({source})", f"name the host alone: {example}, or *.example.org for all under it")


def trusted_proxy(value: str, source: str) -> Network:
    """An address or a network in CIDR notation. Raises UsageError; `source` gave it."""
    try:
        return ipaddress.ip_network(value.strip(), strict=False)
    except ValueError:
        raise UsageError(
            f"{shown(value)} is no address and no network ({source})", "use an address such as 192.0.2.10, or a network such as 10.0.0.0/8"
        ) from None
