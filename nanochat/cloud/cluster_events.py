"""A cluster's events, with reasons why an object has no pod or a pod does not start, such as an exceeded quota."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from nanochat.console import printable

SHOWN = 500  # characters of a message


@dataclass(frozen=True)
class Warn:
    """The newest warning about an object, in printable form."""

    object: str  # Kind/name
    reason: str
    message: str

    def __str__(self) -> str:
        return f"{self.object}: {self.reason}: {self.message}"

    @property
    def hint(self) -> str:
        """A hint if the reason is a quota, else ""."""
        if not any(word in self.message for word in ("exceeded quota", "failed quota", "LimitRange", "per Pod is", "per Container is")):
            return ""
        see = "see the limits with `kubectl describe quota,limitrange`"
        return f"{see}, then run `nanochat submit cancel NAME` and submit again with lower --cpus, --memory or --nodes"


def newest_warnings(events: Iterable[dict[str, Any]], objects: Iterable[dict[str, Any]]) -> dict[str, Warn]:
    """Kind/name of each of `objects` with a warning -> its newest warning."""
    known = {_key(one["kind"], one["metadata"]): one["metadata"].get("uid", "") for one in objects}
    found: dict[str, Warn] = {}
    for event in sorted(events, key=_time):
        about = event.get("involvedObject", {})
        key = _key(about.get("kind", ""), about)
        if event.get("type") != "Warning" or key not in known or about.get("uid", known[key]) != known[key]:
            continue  # the last condition means an earlier object of that name
        reason, message = (printable(" ".join(str(event.get(name, "")).split())) for name in ("reason", "message"))
        found[key] = Warn(key, reason, message[:SHOWN])
    return found


def _key(kind: str, meta: dict[str, Any]) -> str:
    return f"{kind}/{meta.get('name', '')}"


def _time(event: dict[str, Any]) -> str:
    """Time when an event was last seen, in ISO 8601, which is sortable."""
    series = event.get("series") or {}
    seen = (series.get("lastObservedTime"), event.get("lastTimestamp"), event.get("eventTime"))
    return str(next(filter(None, seen), event.get("metadata", {}).get("creationTimestamp") or ""))
